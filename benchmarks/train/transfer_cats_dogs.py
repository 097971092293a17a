"""Measures whether transfer learning helps with 100 labelled pictures per class: cats and dogs of CIFAR-10.

A network is trained on the eight other classes of CIFAR-10 (jobs/recipes/cifar10-cpu.yaml). Cats and dogs are then
learned from 100 pictures per class in three ways: a new head on the frozen network (cats-dogs-transfer.yaml), the same
network from scratch (cats-dogs-scratch.yaml), and the whole pre-trained network at a fifth of that learning rate. Each
runs with several seeds, which also choose the 200 pictures. The test set has 2,000 cats and dogs.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import REPOSITORY
from benchmarks.common.command_line import at_least, existing_file, make_parser, run_benchmark, say, work_folder
from benchmarks.common.result_file import torch_facts
from benchmarks.train.recipe_results import add_cifar10, print_accuracy, run, spread_of
from cluster.connection.session import connect
from jobs.ingest import ingest, plan_ingest
from library.randomness import seed_of
from library.recipe import Recipe
from library.training.rows import read_pictures, read_rows

_RECIPES = REPOSITORY / "jobs" / "recipes"
_CLASSES = ["cat", "dog"]
_PICTURES_PER_CLASS = 100


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(
        __file__, __doc__, "", "--epochs 15 --pretrain-epochs 5", "--epochs 1 --seeds 1 --out /tmp/results"
    )
    add_cifar10(parser)
    recipe = _RECIPES / "cifar10-cpu.yaml"
    parser.add_argument(
        "--recipe", type=existing_file, default=str(recipe), help=f"recipe of the network ({recipe.name})"
    )
    parser.add_argument("--pretrain-epochs", type=at_least(1), default=10, help="epochs on the eight classes (10)")
    parser.add_argument("--epochs", type=at_least(1), default=30, help="epochs on the 200 pictures (30)")
    parser.add_argument("--seeds", type=at_least(1), default=5, help="number of seeds (5)")
    return run_benchmark(__file__, parser, _measure, print_accuracy, machine_facts=lambda _: torch_facts())


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    with work_folder(None) as work, connect():
        pretrained, runs = _trainings(options, work)
    return {
        "parameters": {
            "pictures_a_class": _PICTURES_PER_CLASS,
            "test_pictures": 2000,
            "epochs": options.epochs,
            "recipe": options.recipe.read_text(encoding="utf-8"),
        },
        "pretrained": pretrained,
        "runs": runs,
        "val_top1": {name: spread_of([metrics["val_top1"] for metrics in results]) for name, results in runs.items()},
    }


def _trainings(options: argparse.Namespace, work: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Runs all trainings; returns the metrics of the pre-trained network, and those of the others by name and seed."""
    ingest(plan_ingest(str(options.cifar10), str(work / "cifar10")))
    train, test = str(work / "cifar10" / "train"), str(work / "cifar10" / "test")
    others = [name for name in read_rows(train).classes if name not in _CLASSES]
    base = Recipe.load(
        str(options.recipe),
        [
            f"data.train={train}",
            f"data.val={test}",
            f"data.classes={json.dumps(others)}",
            f"epochs={options.pretrain_epochs}",
        ],
    )
    pretrained = run(base, work / "pretrained", "1")
    say(f"pre-trained on {len(others)} classes: {pretrained}")
    runs: dict[str, list[dict[str, Any]]] = {"frozen": [], "fine_tuned": [], "scratch": []}
    for seed in range(options.seeds):
        few = _small_dataset(train, work / f"few-{seed}", seed)
        for name in runs:
            recipe = _recipe(options, few, test, seed, name, str(work / "pretrained"))
            runs[name].append(run(recipe, work / f"{name}-{seed}", "1"))
            say(f"seed {seed}, {name}: {runs[name][-1]}")
    return pretrained, runs


def _recipe(options: argparse.Namespace, train: str, test: str, seed: int, name: str, weights: str) -> Recipe:
    """Returns the shipped recipe for this training; `--epochs` applies where the network is not frozen."""
    overrides = [f"data.train={train}", f"data.val={test}", f"seed={seed}"]
    if name == "frozen":
        return Recipe.load(str(_RECIPES / "cats-dogs-transfer.yaml"), [*overrides, f"weights={weights}"])
    overrides.append(f"epochs={options.epochs}")
    if name == "fine_tuned":
        overrides += [f"weights={weights}", "optimizer.lr=0.01"]
    return Recipe.load(str(_RECIPES / "cats-dogs-scratch.yaml"), overrides)


def _small_dataset(dataset: str, folder: Path, seed: int) -> str:
    """Writes a dataset with 100 pictures of each of the two classes, chosen by the seed; returns its path."""
    rows = read_rows(dataset, _CLASSES)
    for name in _CLASSES:
        (folder / "files" / name).mkdir(parents=True)
        records = (
            record
            for shard, count in enumerate(rows.counts.tolist())
            for record in read_pictures(rows, (shard, 0, count))
            if record["label"] == name
        )
        chosen = heapq.nsmallest(_PICTURES_PER_CLASS, records, key=lambda record: seed_of("few", seed, record["key"]))
        for number, record in enumerate(chosen):
            (folder / "files" / name / f"{number}.jpg").write_bytes(record["bytes"])
    ingest(plan_ingest(str(folder / "files"), str(folder / "data")))
    return str(folder / "data")


if __name__ == "__main__":
    sys.exit(main())
