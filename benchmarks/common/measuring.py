"""Runs, contestants, and the figures that are drawn from them."""

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
    """What all contestants share.

    Attributes:
        photos: the input as files.
        dataset: the same as a striate dataset; empty where no chosen contestant reads one.
        tiny: a dataset of the tiny job's photos; as `dataset`.
        work: outputs go below it and are removed after each run.
        cores: processes, workers or threads of each contestant.
        slow_photos: how many photos ImageMagick gets.
        daft_python: an interpreter that has Daft; None where there is none.
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
        pictures: how many were made.
        seconds: from call to return.
        details: what else is worth keeping; rates end in `_per_s`.
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
    """Another tool that is not here or failed; says why, and what to install. Our own failures end the benchmark."""


@dataclass(frozen=True)
class Contestant:
    """One row of the table.

    Attributes:
        name: for `--only`.
        what: said in the table and in the result.
        run: measures once.
        quick: repeated in every round; the others run in the first only.
        needs_dataset: whether the shards must be made first.
    """

    name: str
    what: str
    run: Callable[[Setup], Run]
    quick: bool = True
    needs_dataset: bool = False


#: By contestant: the figures of its rounds in order, or why it was not run.
Results = Mapping[str, Sequence[Mapping[str, Any]] | str]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Least, median and greatest."""
    return {
        "min": round(min(values), 4),
        "median": round(statistics.median(values), 4),
        "max": round(max(values), 4),
    }


def values_of(results: Results, contestant: str, figure: str) -> dict[int, float]:
    """One figure by round; empty where it was not measured."""
    rounds = results.get(contestant, ())
    if isinstance(rounds, str):
        return {}
    return {number: figures[figure] for number, figures in enumerate(rounds) if figures.get(figure) is not None}


def ratios(results: Results, ours: tuple[str, str], theirs: tuple[str, str]) -> list[float]:
    """One ratio a round that both ran in, so that a machine that drifts favours neither.

    Args:
        results: of all contestants.
        ours: contestant and figure above the line.
        theirs: below it.
    """
    above, below = values_of(results, *ours), values_of(results, *theirs)
    return [above[number] / below[number] for number in sorted(above.keys() & below.keys())]


@contextmanager
def fresh_folder(folder: Path) -> Generator[Path]:
    """An empty folder until the block ends.

    The disk is idle when the block starts: what earlier runs left to be written would slow down whoever comes next.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.sync()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
