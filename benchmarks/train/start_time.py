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
import tempfile
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import REPOSITORY
from benchmarks.common.measuring import spread
from benchmarks.common.result_file import machine, save
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

_EXAMPLES = """examples:
  .venv/bin/python benchmarks/train/start_time.py
  .venv/bin/python benchmarks/train/start_time.py --rounds 1 --workers 2 --out /tmp/results
"""


def main() -> int:
    """Exit code 0, or 1 for a failure."""
    options = _parser().parse_args()
    try:
        result = measure(options.rounds, options.workers, options.device)
        for name, seconds in result["seconds"].items():
            print(f"{name:22} {seconds['median']:7.2f} s ({seconds['min']:.2f} to {seconds['max']:.2f})")
        print(save(result, options.out))
    except StriateError as error:
        print(f"start_time: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one that warms up (5)")
    parser.add_argument("--workers", type=int, default=1, help="training workers (1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device of the workers (cpu)")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results", help="folder of the result")
    return parser


def measure(rounds: int, workers: int, device: str) -> dict[str, Any]:
    """Trains once to warm up the page cache, then `rounds` times."""
    described = machine(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="striate-bench-") as name:
        folder = Path(name)
        recipe = _recipe(folder)
        runs: list[dict[str, float]] = []
        for number in range(rounds + 1):
            seconds = _run(recipe, folder / f"bundle-{number}", workers, device)
            print(f"round {number}{'' if number else ' (not counted)'}: {seconds}", file=sys.stderr, flush=True)
            runs += [seconds] * (number > 0)
    return {
        "benchmark": "start_time",
        "machine": described,
        "parameters": {"pictures": _PICTURES, "workers": workers, "rounds": rounds, "device": device},
        "seconds": {part: spread([run[part] for run in runs]) for part in runs[0]},
        "rounds": runs,
    }


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
