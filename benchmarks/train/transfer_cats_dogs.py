"""Does transfer learning help with 100 labelled pictures a class? Cats against dogs of CIFAR-10, with no download.

A network is pre-trained on the eight other classes of CIFAR-10 (jobs/recipes/cifar10-cpu.yaml). Then cats against dogs
is learned from 100 pictures a class: a new head on the frozen network (cats-dogs-transfer.yaml), the same network from
scratch (cats-dogs-scratch.yaml), and the whole pre-trained network at a fifth of that learning rate. Each with several
seeds, which choose the 200 pictures as well. Measured on the 2,000 cats and dogs of the test set.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import REPOSITORY
from benchmarks.common.result_file import machine, save
from benchmarks.train.recipe_results import run, spread_of
from cluster.connection.session import connect
from jobs.ingest import ingest, plan_ingest
from library.errors import StriateError, UsageError
from library.randomness import seed_of
from library.recipe import Recipe
from library.training.rows import read_pictures, read_rows

_RECIPES = REPOSITORY / "jobs" / "recipes"
_SHARED = REPOSITORY.parent / "shared" / "data" / "cifar10.tar.gz"
_PAIR = ["cat", "dog"]
_A_CLASS = 100


def main() -> int:
    """Exit code 0, 1 for a failure, 2 for misuse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, default=_SHARED, help="archive with train/CLASS and test/CLASS")
    parser.add_argument("--recipe", default=str(_RECIPES / "cifar10-cpu.yaml"), help="of the network")
    parser.add_argument("--pretrain-epochs", type=int, default=10, help="epochs on the eight classes (10)")
    parser.add_argument("--epochs", type=int, default=30, help="epochs on the 200 pictures (30)")
    parser.add_argument("--seeds", type=int, default=5, help="how many (5)")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results", help="folder of the result")
    options = parser.parse_args()
    try:
        if not options.cifar10.is_file():
            raise UsageError(f"{options.cifar10} is not there; name the archive with --cifar10")
        with tempfile.TemporaryDirectory(prefix="striate-transfer-") as folder, connect():
            result = _measure(options, Path(folder))
        print(json.dumps(result["val_top1"], indent=1))
        print(save(result, options.out))
    except StriateError as error:
        print(f"transfer_cats_dogs: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    described = machine(torch.get_num_threads())
    described["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    ingest(plan_ingest(str(options.cifar10), str(work / "cifar10")))
    train, test = str(work / "cifar10" / "train"), str(work / "cifar10" / "test")
    others = [name for name in read_rows(train).classes if name not in _PAIR]
    base = Recipe.load(
        options.recipe,
        [
            f"data.train={train}",
            f"data.val={test}",
            f"data.classes={json.dumps(others)}",
            f"epochs={options.pretrain_epochs}",
        ],
    )
    pretrained = run(base, work / "pretrained", "1")
    _say(f"pre-trained on {len(others)} classes: {pretrained}")
    runs: dict[str, list[dict[str, Any]]] = {"frozen": [], "fine_tuned": [], "scratch": []}
    for seed in range(options.seeds):
        few = _few(train, work / f"few-{seed}", seed)
        for name in runs:
            recipe = _recipe(options, few, test, seed, name, str(work / "pretrained"))
            runs[name].append(run(recipe, work / f"{name}-{seed}", "1"))
            _say(f"seed {seed}, {name}: {runs[name][-1]}")
    return {
        "benchmark": "transfer_cats_dogs",
        "machine": described,
        "parameters": {
            "pictures_a_class": _A_CLASS,
            "test_pictures": 2000,
            "epochs": options.epochs,
            "recipe": Path(options.recipe).read_text(encoding="utf-8"),
        },
        "pretrained": pretrained,
        "runs": runs,
        "val_top1": {name: spread_of([one["val_top1"] for one in results]) for name, results in runs.items()},
    }


def _recipe(options: argparse.Namespace, train: str, test: str, seed: int, name: str, weights: str) -> Recipe:
    """The shipped recipes on this data; for as many epochs, where the network is not frozen."""
    overrides = [f"data.train={train}", f"data.val={test}", f"seed={seed}"]
    if name == "frozen":
        return Recipe.load(str(_RECIPES / "cats-dogs-transfer.yaml"), [*overrides, f"weights={weights}"])
    overrides.append(f"epochs={options.epochs}")
    if name == "fine_tuned":
        overrides += [f"weights={weights}", "optimizer.lr=0.01"]
    return Recipe.load(str(_RECIPES / "cats-dogs-scratch.yaml"), overrides)


def _few(dataset: str, folder: Path, seed: int) -> str:
    """100 pictures of each of the two classes as a dataset."""
    rows = read_rows(dataset, _PAIR)
    for name in _PAIR:
        (folder / "files" / name).mkdir(parents=True)
        records = (
            record
            for shard, count in enumerate(rows.counts.tolist())
            for record in read_pictures(rows, (shard, 0, count))
            if record["label"] == name
        )
        few = heapq.nsmallest(_A_CLASS, records, key=lambda record: seed_of("few", seed, record["key"]))
        for number, record in enumerate(few):
            (folder / "files" / name / f"{number}.jpg").write_bytes(record["bytes"])
    ingest(plan_ingest(str(folder / "files"), str(folder / "data")))
    return str(folder / "data")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
