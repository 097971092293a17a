"""Trains a recipe with several seeds and writes mean and spread to a result file."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import REPOSITORY
from benchmarks.common.result_file import machine, save
from cluster.connection.session import connect
from jobs.train.driver import train
from jobs.train.plan import plan_train
from library.errors import StriateError, UsageError
from library.recipe import Recipe
from library.training.progress import read_metrics

_EXAMPLES = """examples:
  .venv/bin/python benchmarks/train/recipe_results.py jobs/recipes/lenet-mnist.yaml --workers 1 --seeds 3
  .venv/bin/python benchmarks/train/recipe_results.py jobs/recipes/cifar10-cpu.yaml --set epochs=2 --out /tmp/results
"""


def main() -> int:
    """Exit code 0, 1 for a failure, 2 for misuse."""
    options = _parser().parse_args()
    try:
        if options.seeds < 1:
            raise UsageError("--seeds: at least 1")
        result = measure(options.recipe, options.set or [], options.seeds, options.workers)
        print(save(result, options.out))
    except StriateError as error:
        print(f"recipe_results: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("--set", action="append", metavar="A.B=VALUE", help="override a field")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 (3)")
    parser.add_argument("--workers", default="1", help="training workers (1)")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results", help="folder of the result")
    return parser


def measure(recipe: str, overrides: list[str], seeds: int, workers: str) -> dict[str, Any]:
    """Train with seeds 0, 1, ...; the last epoch is reported, which no look at the validation set has chosen."""
    described = machine(torch.get_num_threads())
    described["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="striate-recipe-") as folder, connect():
        for seed in range(seeds):
            runs.append(run(Recipe.load(recipe, [*overrides, f"seed={seed}"]), Path(folder) / str(seed), workers))
            print(f"seed {seed}: {runs[-1]}", file=sys.stderr, flush=True)
    return {
        "benchmark": f"recipe-{Path(recipe).stem}",
        "machine": described,
        "recipe": Path(recipe).read_text(encoding="utf-8"),
        "overrides": overrides,
        "workers": workers,
        "runs": runs,
        "val_top1": spread_of([one["val_top1"] for one in runs]),
    }


def run(recipe: Recipe, out: Path, workers: str) -> dict[str, Any]:
    """One training: metrics of its last epoch, and what it took."""
    start = time.perf_counter()
    result = train(plan_train(recipe, str(out)), workers=workers)
    last = read_metrics(str(out / "logs"))[-1]
    return {
        "seed": recipe.seed,
        "epochs": last["epoch"],
        **{name: round(last[name], 5) for name in ("train_loss", "val_loss", "val_top1", "pictures_per_s")},
        "training_s": round(result.seconds, 1),
        "whole_s": round(time.perf_counter() - start, 1),
        "bundle": result.bundle.id,
    }


def spread_of(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation (of a sample; 0 for one value), least and greatest."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    summary = {"mean": statistics.mean(values), "std": deviation, "min": min(values), "max": max(values)}
    return {name: round(value, 5) for name, value in summary.items()}


if __name__ == "__main__":
    sys.exit(main())
