"""Measurements: one run, rounds over several contestants, and empty folders for their output."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common.command_line import say

RATE, STEADY = "pictures_per_s", "steady_pictures_per_s"

#: The figures of each contestant, by round.
Rounds = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Run:
    """One measurement.

    Attributes:
        pictures: number of pictures written.
        seconds: from call to return.
        details: further figures; rates end in `_per_s`.
    """

    pictures: int
    seconds: float
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def figures(self) -> dict[str, Any]:
        return {
            "pictures": self.pictures,
            "seconds": round(self.seconds, 4),
            RATE: round(self.pictures / self.seconds, 2),
            **self.details,
        }


class NotRunError(Exception):
    """Another tool is missing or failed, with the reason and what to install. A failure of Striate ends the run."""


def measured_rounds(
    contestants: Mapping[str, Callable[[], dict[str, Any]]], rounds: int, subject: str | None = None
) -> Rounds:
    """Runs every contestant once per round, so that a machine that gets slower favours none of them.

    Args:
        contestants: functions that measure once and return figures, by name, in the order in which they run.
        rounds: number of rounds.
        subject: what is measured, for the progress lines.
    """
    measured: Rounds = {name: [] for name in contestants}
    for number in range(rounds):
        for name, run in contestants.items():
            measured[name].append(run())
            title = f"{subject}, {name}" if subject else name
            say(f"round {number + 1}/{rounds}, {title}: {measured[name][-1]}")
    return measured


def ratios(
    numerators: Sequence[Mapping[str, Any]], denominators: Sequence[Mapping[str, Any]], figure: str
) -> list[float]:
    """Returns the ratio of one figure of two contestants for each round."""
    return [above[figure] / below[figure] for above, below in zip(numerators, denominators, strict=True)]


@contextmanager
def fresh_folder(folder: Path) -> Generator[Path]:
    """An empty folder until the block ends.

    All writes of earlier runs are on the disk when the block starts, so that they do not slow down this run.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.sync()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
