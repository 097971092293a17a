"""Seconds that `striate tour` needs for its whole book on this machine, and for each chapter.

Once, into an empty folder, with every training, the server and the filter search; the goal is ten minutes on two cores.
The time of a chapter is the one that the command gives; beside the chapters there is the start of Ray and the command.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common.command_line import make_parser, run_benchmark, work_folder
from benchmarks.common.report import print_table
from benchmarks.common.result_file import torch_facts
from library.errors import StriateError, UsageError

_GOAL_S = 600
_STRIATE = Path(sys.executable).with_name("striate")


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(__file__, __doc__, "", "--book out/tour --out /tmp/results")
    parser.add_argument("--book", type=Path, help="new folder for the pages, which stay (a temporary folder)")
    return run_benchmark(__file__, parser, _measure, print_chapters, machine_facts=lambda _: torch_facts())


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    if options.book is not None and options.book.exists():
        raise UsageError(f"--book {options.book} exists; chapters that are made already would count as no time")
    with work_folder(None) as folder:
        start = time.monotonic()
        tour = _tour(options.book or folder / "tour")
        seconds = time.monotonic() - start
    chapters = {name: chapter["seconds"] for name, chapter in tour["chapters"].items()}
    return {
        "seconds": round(seconds, 1),
        "goal_s": _GOAL_S,
        "within_goal": seconds <= _GOAL_S,
        "chapters": chapters,
        "beside_the_chapters": round(seconds - sum(chapters.values()), 1),
    }


def _tour(out: Path) -> dict[str, Any]:
    """Runs the command, whose lines of progress stay visible, and returns its JSON."""
    # Without the address of a cluster that runs on this machine.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [_STRIATE, "tour", "--out", str(out), "--json"], stdout=subprocess.PIPE, text=True, env=environment
    )
    if done.returncode:
        raise StriateError(f"striate tour failed with exit code {done.returncode}: {done.stdout.strip()[-2000:]}")
    return json.loads(done.stdout)


def print_chapters(result: Mapping[str, Any]) -> None:
    """Prints the seconds of each chapter, of the rest, and of the whole command beside the goal."""
    rows = [*result["chapters"].items(), ("Ray and the command", result["beside_the_chapters"])]
    print_table("", ("chapter", "seconds"), [*rows, ("whole command", result["seconds"])])
    print(f"{'within' if result['within_goal'] else 'above'} the goal of {result['goal_s']} s")


if __name__ == "__main__":
    sys.exit(main())
