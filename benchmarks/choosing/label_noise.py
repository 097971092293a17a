"""Measures how many planted wrong labels confident learning finds, beside the cleanlab package on the same numbers.

A share of the labels of MNIST and of CIFAR-10 is changed to another class, chosen at random. Pictures get out-of-fold
probabilities as in `striate audit --model patches`: patch features, five folds, a logistic regression without each
fold. Found errors are compared with the planted ones. Both datasets have wrong labels of their own (Northcutt et al.
2021, https://arxiv.org/abs/2103.14749); those count as false here, so precision is a lower bound. cleanlab gets the
same labels and probabilities in an interpreter of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks import REPOSITORY
from benchmarks.common.command_line import at_least, make_parser, run_benchmark, say, work_folder
from library.choosing.labels.confident_learning import Pruning, find_label_errors
from library.choosing.labels.linear_head import out_of_fold
from library.choosing.labels.patch_features import SAMPLE_PICTURES, PatchFilters, patch_inputs
from library.sources import Options, list_source, read_pictures

_DATA = REPOSITORY.parent / "shared" / "data"
_FOLDS = 5
#: cleanlab's names of the same two rules.
_CLEANLAB = {"noise_rate": "prune_by_noise_rate", "confident": "confident_learning"}
_PROGRAM = """
import json, sys
import cleanlab, numpy as np
from cleanlab.filter import find_label_issues
with np.load(sys.argv[1]) as stored:
    labels, probabilities = stored["labels"], stored["probabilities"]
found = {
    rule: find_label_issues(
        labels, probabilities, filter_by=rule, return_indices_ranked_by="normalized_margin", n_jobs=1
    ).tolist()
    for rule in sys.argv[2:]
}
print(json.dumps({"version": cleanlab.__version__, "found": found}))
"""


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(__file__, __doc__, "", "--pictures 2000 --out /tmp/results")
    parser.add_argument("--mnist", default=str(_DATA / "mnist"), help="MNIST (../shared/data/mnist)")
    parser.add_argument("--cifar10", default=str(_DATA / "cifar10.tar.gz"), help="CIFAR-10 (../shared/data)")
    parser.add_argument("--pictures", type=at_least(100), default=20_000, help="training pictures of each (20,000)")
    parser.add_argument("--percent", type=at_least(1), default=5, help="percentage of wrong labels (5)")
    parser.add_argument("--peers-python", type=Path, help="an interpreter with cleanlab; left out without one")
    return run_benchmark(__file__, parser, _measure, _show)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name in ("mnist", "cifar10"):
        features, truth = _features(getattr(options, name), options.pictures)
        say(f"{name}: features {features.shape}")
        labels = _with_noise(truth, options.percent / 100)
        classes = int(truth.max()) + 1
        folds = np.random.default_rng(1).permutation(len(labels)) % _FOLDS
        probabilities = out_of_fold(features, labels, classes, folds)
        results[name] = _judged(labels, truth, probabilities, options.peers_python)
    return {
        "parameters": {"pictures": options.pictures, "percent": options.percent, "folds": _FOLDS},
        "datasets": results,
    }


def _features(uri: str, pictures: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns patch features and class ids of some training pictures, evenly spread over the source."""
    listing = list_source(uri, Options())
    keys = listing.index["key"].to_pylist()
    splits = listing.index["split"].to_pylist() if "split" in listing.index.column_names else [""] * len(keys)
    train = [row for row, (key, split) in enumerate(zip(keys, splits, strict=True)) if "train" in (split or key)]
    chosen = train[:: max(1, len(train) // pictures)][:pictures]
    table = listing.index.take(chosen)
    names = sorted(set(table["label"].to_pylist()))
    channels = 1 if uri.endswith("mnist") else 3
    inputs = patch_inputs(channels)
    stored: dict[int, NDArray[np.uint8]] = {}
    for read in read_pictures(listing.kind, table, listing.gzip_indexes, Options()):
        if read.data is not None:
            stored[read.row] = inputs.prepare(read.data)
    rows = sorted(stored)
    filters = PatchFilters.learn([stored[row] for row in rows[:SAMPLE_PICTURES]])
    with ProcessPoolExecutor(2) as pool:
        encoded = list(pool.map(partial(_encode, filters), [stored[row] for row in rows], chunksize=256))
    labels = table["label"].to_pylist()
    return np.stack(encoded), np.array([names.index(labels[row]) for row in rows], np.int64)


def _encode(filters: PatchFilters, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    return filters.encode(picture)


def _with_noise(truth: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """Returns the labels, of which exactly a share is another class than the true one."""
    rng = np.random.default_rng(0)
    wrong = rng.choice(len(truth), round(share * len(truth)), replace=False)
    classes = int(truth.max()) + 1
    labels = truth.copy()
    labels[wrong] = (truth[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return labels


def _judged(
    labels: NDArray[np.int64], truth: NDArray[np.int64], probabilities: NDArray[np.float32], peers: Path | None
) -> dict[str, Any]:
    planted = labels != truth
    rules: tuple[Pruning, ...] = get_args(Pruning)
    found = {rule: find_label_errors(labels, probabilities, pruning=rule).rows.tolist() for rule in rules}
    result: dict[str, Any] = {
        "pictures": len(labels),
        "planted": int(planted.sum()),
        "accuracy_on_true_labels": round(float((probabilities.argmax(1) == truth).mean()), 4),
        "estimated_noise": round(find_label_errors(labels, probabilities).share, 4),
        "striate": {rule: _scores(rows, planted) for rule, rows in found.items()},
    }
    if peers is not None:
        other = _cleanlab(labels, probabilities, peers)
        result["cleanlab_version"] = other["version"]
        result["cleanlab"] = {rule: _scores(other["found"][_CLEANLAB[rule]], planted) for rule in rules}
        for rule in rules:
            ours, theirs = set(found[rule]), set(other["found"][_CLEANLAB[rule]])
            result["cleanlab"][rule]["found_by_both"] = len(ours & theirs)
    return result


def _cleanlab(labels: NDArray[np.int64], probabilities: NDArray[np.float32], peers: Path) -> dict[str, Any]:
    with work_folder(None) as work:
        path = work / "numbers.npz"
        np.savez(path, labels=labels, probabilities=probabilities.astype(np.float64))
        command = [str(peers), "-c", _PROGRAM, str(path), *_CLEANLAB.values()]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _scores(rows: list[int], planted: NDArray[np.bool_]) -> dict[str, Any]:
    """Returns precision and recall, and the precision of the first half of as many as were planted."""
    first = planted[rows][: int(planted.sum()) // 2]
    hits = int(planted[rows].sum())
    return {
        "found": len(rows),
        "precision": round(hits / max(len(rows), 1), 4),
        "recall": round(hits / max(int(planted.sum()), 1), 4),
        "precision_of_the_first_half": round(float(first.mean()) if len(first) else 0.0, 4),
    }


def _show(result: Mapping[str, Any]) -> None:
    for name, facts in result["datasets"].items():
        print(
            f"\n{name}: {facts['planted']:,} of {facts['pictures']:,} labels wrong; out-of-fold accuracy "
            f"{facts['accuracy_on_true_labels']:.1%}, estimated noise {facts['estimated_noise']:.1%}"
        )
        for program in ("striate", "cleanlab"):
            for rule, scores in facts.get(program, {}).items():
                print(
                    f"  {program:9} {rule:11} found {scores['found']:6,}  precision {scores['precision']:.1%}  recall "
                    f"{scores['recall']:.1%}  of the first half {scores['precision_of_the_first_half']:.1%}"
                )


if __name__ == "__main__":
    sys.exit(main())
