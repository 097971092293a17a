"""Compares an epoch of a new head on cached features with an epoch that runs the frozen backbone again.

Cats against dogs of CIFAR-10 (10,000 pictures, no augmentation), the ResNet-9 of jobs/recipes/cifar10-cpu.yaml, with
weights that are random: they cost what learned ones cost. The pass that computes the features is reported
separately.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import REPOSITORY
from benchmarks.common.measuring import spread
from benchmarks.common.result_file import machine, save
from cluster.connection.session import connect
from jobs.ingest import ingest, plan_ingest
from jobs.train.driver import train
from jobs.train.plan import plan_train
from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord
from library.errors import StriateError, UsageError
from library.models.build import create
from library.recipe import Recipe
from library.training.progress import read_metrics

_SHARED = REPOSITORY.parent / "shared" / "data" / "cifar10.tar.gz"
_MODEL = "resnet9(width=16)"
_GOAL = 10.0


def main() -> int:
    """Exit code 0, 1 for a failure, 2 for misuse; a goal that is missed is no failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, default=_SHARED, help="archive with train/CLASS and test/CLASS")
    parser.add_argument("--model", default=_MODEL, help=f"call of the model ({_MODEL})")
    parser.add_argument("--epochs", type=int, default=3, help="epochs; the first is not counted (3)")
    parser.add_argument("--rounds", type=int, default=1, help="rounds (1)")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results", help="folder of the result")
    options = parser.parse_args()
    try:
        if not options.cifar10.is_file():
            raise UsageError(f"{options.cifar10} is not there; name the archive with --cifar10")
        if options.epochs < 2:
            raise UsageError("--epochs: at least 2, for the first is not counted")
        with tempfile.TemporaryDirectory(prefix="striate-features-") as folder, connect():
            result = _measure(options, Path(folder))
        print(json.dumps(result["goals"], indent=1))
        print(save(result, options.out))
    except StriateError as error:
        print(f"cached_features: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    described = machine(torch.get_num_threads())
    described["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    ingest(plan_ingest(str(options.cifar10), str(work / "cifar10")))
    torch.manual_seed(0)
    record = BundleRecord(model=options.model, classes=("a", "b"), input_size=(32, 32), channels=3)
    Bundle.of_model(record, create(options.model, num_classes=2)).save(str(work / "weights"))
    rounds: dict[str, list[dict[str, Any]]] = {"cached": [], "frozen": []}
    for number in range(options.rounds):
        for name, runs in rounds.items():
            runs.append(_run(options, work, name == "cached", work / f"{name}-{number}"))
            print(f"round {number + 1}/{options.rounds}, {name}: {runs[-1]}", file=sys.stderr, flush=True)
    pairs = zip(rounds["frozen"], rounds["cached"], strict=True)
    ratios = [frozen["epoch_s"] / cached["epoch_s"] for frozen, cached in pairs]
    return {
        "benchmark": "cached_features",
        "machine": described,
        "parameters": {"model": options.model, "pictures": 10000, "epochs": options.epochs, "rounds": options.rounds},
        "contestants": rounds,
        "goals": [
            {
                "what": "seconds an epoch, frozen backbone / cached features",
                "at_least": _GOAL,
                "ratio": spread(ratios),
                "reached": statistics.median(ratios) >= _GOAL,
            }
        ],
    }


def _run(options: argparse.Namespace, work: Path, cached: bool, out: Path) -> dict[str, Any]:
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
        "pictures_per_s": round(statistics.median(line["pictures_per_s"] for line in lines[1:]), 1),
        "training_s": round(result.seconds, 2),
        "before_and_after_s": round(whole - result.seconds, 2),
    }


if __name__ == "__main__":
    sys.exit(main())
