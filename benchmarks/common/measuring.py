"""Runs and contestants of a benchmark, and statistics over their figures."""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common.photo_files import PhotoSet


@dataclass(frozen=True)
class Setup:
    """The input and the machine's share that all contestants get.

    Attributes:
        photos: the input as files.
        dataset: the same photos as a Striate dataset; empty where no chosen contestant reads one.
        tiny: a dataset of the tiny job's photos; empty where `dataset` is.
        work: folder for outputs, which are removed after each run.
        cores: processes, workers or threads of each contestant.
        slow_photos: number of photos that ImageMagick gets.
        daft_python: an interpreter with Daft; None without one.
    """

    photos: PhotoSet
    dataset: str
    tiny: str
    work: Path
    cores: int
    slow_photos: int
    daft_python: Path | None


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
        rate = self.pictures / self.seconds
        return {
            "pictures": self.pictures,
            "seconds": round(self.seconds, 4),
            "pictures_per_s": round(rate, 2),
            **self.details,
        }


class NotRunError(Exception):
    """Another tool is missing or failed, with the reason and what to install. A failure of Striate ends the run."""


@dataclass(frozen=True)
class Contestant:
    """One row of the table.

    Attributes:
        name: for `--only`.
        what: its description in the table and in the result.
        run: measures once.
        quick: runs in every round; the others run in the first round only.
        needs_dataset: whether the shards must be made first.
    """

    name: str
    what: str
    run: Callable[[Setup], Run]
    quick: bool = True
    needs_dataset: bool = False


#: By contestant: the figures of its rounds in order, or the reason why it did not run.
Results = Mapping[str, Sequence[Mapping[str, Any]] | str]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {
        "min": round(min(values), 4),
        "median": round(statistics.median(values), 4),
        "max": round(max(values), 4),
    }


def values_of(results: Results, contestant: str, figure: str) -> dict[int, float]:
    """One figure by round; empty if it was not measured."""
    rounds = results.get(contestant, ())
    if isinstance(rounds, str):
        return {}
    return {number: figures[figure] for number, figures in enumerate(rounds) if figures.get(figure) is not None}


def ratios(results: Results, numerator: tuple[str, str], denominator: tuple[str, str]) -> list[float]:
    """One ratio per round in which both ran, so that a machine that gets slower favours neither.

    Args:
        results: of all contestants.
        ours: contestant and figure above the line.
        theirs: below it.
    """
    above, below = values_of(results, *numerator), values_of(results, *denominator)
    return [above[number] / below[number] for number in sorted(above.keys() & below.keys())]


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
