"""Seconds from the call of `striate train` to its first step and to its end, divided into parts.

A LeNet learns from a few hundred pictures, so that nearly all of the time is the start. benchmarks/README.md explains
the parts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common.command_line import at_least, make_parser, run_benchmark, say, work_folder
from benchmarks.common.report import print_table, spread
from jobs.train.worker_task import TrainTimes
from library.errors import StriateError

_PICTURES, _CLASSES, _SIDE = 640, 4, 28
_STRIATE = Path(sys.executable).with_name("striate")
#: What ends at each of `TrainTimes`.
_PARTS = {
    "planned": "command and plan",
    "connected": "start of Ray",
    "put": "pictures",
    "entered": "start of the workers",
    "imported": "imports of the loop",
    "built": "model and loader",
    "first_step": "first step",
    "trained": "training",
    "written": "bundle",
}


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(__file__, __doc__, "", "--rounds 1 --workers 2 --out /tmp/results")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="measured rounds, after one that warms up (5)")
    parser.add_argument("--workers", type=at_least(1), default=1, help="training workers (1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device of the workers (cpu)")
    return run_benchmark(__file__, parser, _measure, print_parts)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    """Trains once to warm up the page cache, then as often as there are rounds."""
    runs: list[dict[str, float]] = []
    with work_folder(None) as folder:
        recipe = _recipe(folder)
        for number in range(options.rounds + 1):
            seconds = _run(recipe, folder / f"bundle-{number}", options.workers, options.device)
            say(f"round {number}{'' if number else ' (not counted)'}: {seconds}")
            runs += [seconds] * (number > 0)
    return {
        "parameters": {name: getattr(options, name) for name in ("workers", "rounds", "device")}
        | {"pictures": _PICTURES},
        "seconds": {part: spread([run[part] for run in runs]) for part in runs[0]},
        "rounds": runs,
    }


def print_parts(result: Mapping[str, Any]) -> None:
    """Prints the seconds of each part."""
    rows = [
        (part, *(seconds[name] for name in ("min", "median", "max"))) for part, seconds in result["seconds"].items()
    ]
    print_table("", ("seconds", "min", "median", "max"), rows)


def _recipe(folder: Path) -> Path:
    """Makes a dataset of random pictures and a recipe that learns from it."""
    random = np.random.default_rng(0)
    for number in range(_PICTURES):
        path = folder / "pictures" / f"class-{number % _CLASSES}" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (_SIDE, _SIDE), np.uint8)).save(path)
    _command("ingest", str(folder / "pictures"), str(folder / "data"))
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                "data": {"train": str(folder / "data")},
                "model": "lenet5",
                "optimizer": {"name": "adamw", "lr": 1e-3},
                "batch_size": 64,
                "epochs": 2,
            }
        )
    )
    return recipe


def _run(recipe: Path, out: Path, workers: int, device: str) -> dict[str, float]:
    """Seconds of each part, to the first step and of the whole command."""
    start = time.time()
    gpu = "--gpu" if device == "cuda" else "--no-gpu"
    text = _command("train", str(recipe), "--out", str(out), "--workers", str(workers), gpu, "--json")
    end = time.time()
    return parts(start, json.loads(text)["times"], end)


def parts(start: float, times: Mapping[str, float], end: float) -> dict[str, float]:
    """Seconds of each part, from the Unix times of the call, of the ends of the parts, and of the command's end."""
    at = [start, *(times[field.name] for field in fields(TrainTimes)), end]
    names = [*(_PARTS[field.name] for field in fields(TrainTimes)), "end of Ray"]
    lengths = [last - first for first, last in itertools.pairwise(at)]
    return {
        **{name: round(length, 3) for name, length in zip(names, lengths, strict=True)},
        "to the first step": round(times["first_step"] - start, 3),
        "whole command": round(end - start, 3),
    }


def _command(*arguments: str) -> str:
    # Without the address of a cluster that runs on this machine.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([_STRIATE, *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise StriateError(f"striate {' '.join(arguments)} failed:\n{done.stderr.strip()[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
