"""Trains a recipe with several seeds and writes mean and spread of its accuracy to a result file."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import REPOSITORY
from benchmarks.common.command_line import at_least, existing_file, make_parser, run_benchmark, say, work_folder
from benchmarks.common.result_file import torch_facts
from cluster.connection.session import connect
from jobs.train.driver import train
from jobs.train.plan import plan_train
from library.recipe import Recipe
from library.training.progress import read_metrics

_CIFAR10 = REPOSITORY.parent / "shared" / "data" / "cifar10.tar.gz"


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(
        __file__,
        __doc__,
        "jobs/recipes/lenet-mnist.yaml --workers 1 --seeds 3",
        "jobs/recipes/cifar10-cpu.yaml --set epochs=2 --out /tmp/results",
    )
    parser.add_argument("recipe", type=existing_file, help="YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override a field")
    parser.add_argument("--seeds", type=at_least(1), default=3, help="number of seeds, from 0 (3)")
    parser.add_argument("--workers", default="1", help="training workers (1)")
    return run_benchmark(__file__, parser, _measure, print_accuracy, machine_facts=lambda _: torch_facts())


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    """Trains with seeds 0, 1, ... and reports the last epoch, which is not chosen by its accuracy."""
    runs: list[dict[str, Any]] = []
    with work_folder(None) as folder, connect():
        for seed in range(options.seeds):
            recipe = Recipe.load(str(options.recipe), [*options.set, f"seed={seed}"])
            runs.append(run(recipe, folder / str(seed), options.workers))
            say(f"seed {seed}: {runs[-1]}")
    return {
        "benchmark": f"recipe-{options.recipe.stem}",  # one result file for each recipe
        "recipe": options.recipe.read_text(encoding="utf-8"),
        "overrides": options.set,
        "workers": options.workers,
        "runs": runs,
        "val_top1": spread_of([metrics["val_top1"] for metrics in runs]),
    }


def print_accuracy(result: Mapping[str, Any]) -> None:
    """Prints mean and spread of the accuracy on the validation set."""
    print(json.dumps(result["val_top1"], indent=1))


def add_cifar10(parser: argparse.ArgumentParser) -> None:
    """Adds `--cifar10`, the archive of CIFAR-10 as folders of classes."""
    parser.add_argument(
        "--cifar10",
        type=existing_file,
        default=str(_CIFAR10),
        help="archive with train/CLASS and test/CLASS (../shared/data/cifar10.tar.gz)",
    )


def run(recipe: Recipe, out: Path, workers: str) -> dict[str, Any]:
    """Trains once; returns the metrics of the last epoch, and how long it took."""
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
    """Returns the mean, the standard deviation of a sample (0 for one value), minimum and maximum."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    summary = {"mean": statistics.mean(values), "std": deviation, "min": min(values), "max": max(values)}
    return {name: round(value, 5) for name, value in summary.items()}


if __name__ == "__main__":
    sys.exit(main())
