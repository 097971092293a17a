"""The contestants of filter_throughput.py: what each of them gets and returns, and the rounds in which they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.command_line import say
from benchmarks.common.measuring import RATE, NotRunError, Run
from benchmarks.common.photo_files import PhotoSet


@dataclass(frozen=True)
class Setup:
    """The input and the cores, the same for all contestants.

    Attributes:
        photos: the input as files.
        dataset: the same photos as a Striate dataset; does not exist if no chosen contestant reads one.
        tiny: a dataset of the photos of the tiny job; does not exist if `dataset` does not.
        work: folder for outputs, which are removed after each run.
        cores: number of processes, workers or threads of each contestant.
        slow_photos: number of photos for ImageMagick.
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
class Contestant:
    """One row of the table.

    Attributes:
        name: for `--only`.
        what: its description in the table and in the result.
        run: measures once.
        quick: runs in every round; the others run in the first round only.
        needs_dataset: reads the datasets of the setup.
    """

    name: str
    what: str
    run: Callable[[Setup], Run]
    quick: bool = True
    needs_dataset: bool = False


#: By contestant: the figures of its rounds in order, or the reason why it did not run.
Results = Mapping[str, Sequence[Mapping[str, Any]] | str]


def measured_rounds(contestants: Sequence[Contestant], setup: Setup, rounds: int) -> Results:
    """Runs every contestant once per round, those that are not quick in the first round only.

    A contestant that raises NotRunError does not run again.
    """
    results: dict[str, list[dict[str, Any]] | str] = {contestant.name: [] for contestant in contestants}
    for number in range(rounds):
        for contestant in contestants:
            done = results[contestant.name]
            if isinstance(done, str) or (number and not contestant.quick):
                continue
            try:
                figures = contestant.run(setup).figures()
            except NotRunError as reason:
                results[contestant.name] = str(reason)
                say(f"{contestant.name}: not run: {reason}")
                continue
            done.append(figures)
            rate, seconds = figures[RATE], figures["seconds"]
            say(f"round {number + 1}/{rounds}, {contestant.name}: {rate:,.0f} pictures/s, {seconds:.2f} s")
    return results
