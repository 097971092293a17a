"""Compares an epoch of a new head on cached features with an epoch that runs the frozen backbone again.

The data are cats and dogs of CIFAR-10 (10,000 pictures, no augmentation); the network is the ResNet-9 of
jobs/recipes/cifar10-cpu.yaml with random weights, which take as long as trained ones. The time to compute the features
is reported separately.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.command_line import at_least, make_parser, run_benchmark, work_folder
from benchmarks.common.measuring import RATE, measured_rounds, ratios
from benchmarks.common.report import goal, print_rounds
from benchmarks.common.result_file import torch_facts
from benchmarks.train.recipe_results import add_cifar10
from cluster.connection.session import connect
from jobs.ingest import ingest, plan_ingest
from jobs.train.driver import train
from jobs.train.plan import plan_train
from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord
from library.models.build import create
from library.recipe import Recipe
from library.training.progress import read_metrics

_MODEL = "resnet9(width=16)"
_MIN_RATIO = 10.0


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(__file__, __doc__, "", "--epochs 2 --out /tmp/results")
    add_cifar10(parser)
    parser.add_argument("--model", default=_MODEL, help=f"call of the model ({_MODEL})")
    parser.add_argument("--epochs", type=at_least(2), default=3, help="epochs; the first is not counted (3)")
    parser.add_argument("--rounds", type=at_least(1), default=1, help="number of rounds (1)")
    return run_benchmark(__file__, parser, _measure, print_rounds, machine_facts=lambda _: torch_facts())


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    with work_folder(None) as work, connect():
        ingest(plan_ingest(str(options.cifar10), str(work / "cifar10")))
        torch.manual_seed(0)
        record = BundleRecord(model=options.model, classes=("a", "b"), input_size=(32, 32), channels=3)
        Bundle.of_model(record, create(options.model, num_classes=2)).save(str(work / "weights"))
        runs = {
            name: functools.partial(_run, options, work, cached)
            for name, cached in (("cached", True), ("frozen", False))
        }
        rounds = measured_rounds(runs, options.rounds)
    values = ratios(rounds["frozen"], rounds["cached"], "epoch_s")
    return {
        "parameters": {"model": options.model, "pictures": 10000, "epochs": options.epochs, "rounds": options.rounds},
        "contestants": rounds,
        "goals": [goal("seconds an epoch, frozen backbone / cached features", values, at_least=_MIN_RATIO)],
    }


def _run(options: argparse.Namespace, work: Path, cached: bool) -> dict[str, Any]:
    """Trains a new head; returns the medians over the counted epochs, and the times of the whole training."""
    out = Path(tempfile.mkdtemp(dir=work)) / "bundle"
    recipe = Recipe.parse(
        json.dumps(
            {
                "data": {"train": str(work / "cifar10" / "train"), "classes": ["cat", "dog"]},
                "input": {"steps": "rgb", "size": 32},
                "model": options.model,
                "weights": str(work / "weights"),
                "freeze": "all",
                "cache_features": cached,
                "optimizer": {"name": "adamw", "lr": 3e-3},
                "batch_size": 128,
                "epochs": options.epochs,
            }
        )
    )
    start = time.perf_counter()
    result = train(plan_train(recipe, str(out)), workers="1")
    whole = time.perf_counter() - start
    lines = read_metrics(str(out / "logs"))
    return {
        "epoch_s": round(statistics.median(line["seconds"] for line in lines[1:]), 4),
        RATE: round(statistics.median(line["pictures_per_s"] for line in lines[1:]), 1),
        "training_s": round(result.seconds, 2),
        "before_and_after_s": round(whole - result.seconds, 2),
    }


if __name__ == "__main__":
    sys.exit(main())
