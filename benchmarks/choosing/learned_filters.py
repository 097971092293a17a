"""What the first layer of a network learns on CIFAR-10: which kernels of the textbook its kernels resemble.

`striate learn-filter` with several seeds; beside it the same network before training, and random kernels as smooth and
as coloured. The best epoch is chosen by a tenth of the training set; the test set is asked once, at the end. The cosine
is that of library/choosing/learned_filters/references.py: over all channels, its sign ignored, moved by up to a pixel
with kernels of 5x5.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.common.command_line import at_least, make_parser, run_benchmark, say, work_folder
from benchmarks.common.report import print_table, spread
from benchmarks.common.result_file import torch_facts
from benchmarks.train.recipe_results import add_cifar10
from cluster.connection.session import connect
from jobs.evaluate import plan_evaluate, run_evaluate
from jobs.ingest import ingest, plan_ingest
from jobs.search.learning import PICTURE, plan_learn, run_learn
from library.choosing.learned_filters.references import Match, chance, nearest
from library.evaluation.report.content import summary
from library.models.build import create


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(__file__, __doc__, "", "--epochs 1 --seeds 1 --out /tmp/results")
    add_cifar10(parser)
    parser.add_argument("--dataset", type=Path, help="CIFAR-10 as ingested before, with train and test, to save time")
    parser.add_argument("--epochs", type=at_least(1), default=10, help="epochs of each training (10)")
    parser.add_argument("--seeds", type=at_least(1), default=3, help="number of seeds (3)")
    parser.add_argument("--count", type=at_least(1), default=16, help="kernels (16)")
    parser.add_argument("--size", type=int, default=5, help="side of a kernel in pixels (5)")
    parser.add_argument("--picture", type=Path, help="copy the picture of the first seed to this file")
    return run_benchmark(__file__, parser, _measure, _print, machine_facts=lambda _: torch_facts())


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    runs: list[dict[str, Any]] = []
    with work_folder(None) as work, connect():
        data = options.dataset or work / "cifar10"
        if options.dataset is None:
            ingest(plan_ingest(str(options.cifar10), str(data)))
        for seed in range(options.seeds):
            out = work / f"learned-{seed}"
            plan = plan_learn(
                str(data / "train"),
                str(out),
                size=options.size,
                count=options.count,
                epochs=options.epochs,
                seed=seed,
            )
            learned, result = run_learn(plan)
            test = summary(run_evaluate(plan_evaluate([result.out], str(data / "test"))))
            matches = [kernel.match for kernel in learned.kernels]
            runs.append(
                {
                    "seed": seed,
                    "test_top1": test["top1"],
                    "seconds": round(result.seconds, 1),
                    "chance_cosine": round(learned.chance, 4),
                    **_described(matches, learned.chance),
                    "kernels": learned.summary()["kernels"],
                }
            )
            say(f"seed {seed}: { ({name: value for name, value in runs[-1].items() if name != 'kernels'}) }")
            if seed == 0 and options.picture is not None:
                Image.open(out / PICTURE).save(options.picture, optimize=True)
    untrained = [_untrained(options, seed) for seed in range(options.seeds)]
    return {
        "parameters": {
            "epochs": options.epochs,
            "count": options.count,
            "size": options.size,
            "model": f"filter_net(count={options.count}, kernel_size={options.size})",
        },
        "trained": runs,
        "untrained": untrained,
    }


def _untrained(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    network: Any = create(f"filter_net(count={options.count}, kernel_size={options.size})", num_classes=10)
    kernels = network.net.kernels.weight.detach().numpy().astype(np.float64)
    bound = chance(kernels)
    return {"chance_cosine": round(bound, 4), **_described(nearest(kernels), bound)}


def _described(matches: list[Match], bound: float) -> dict[str, Any]:
    """Returns the spread of the cosines, and how many kernels of each kind are above the cosine of chance."""
    above = [match for match in matches if match.cosine > bound]
    kinds = Counter(f"{'colour' if match.is_colour else 'grey'} {match.family}" for match in above)
    return {
        "cosine": spread([match.cosine for match in matches]),
        "above_chance": len(above),
        "kinds": dict(sorted(kinds.items())),
    }


def _print(result: Mapping[str, Any]) -> None:
    columns = ("kernels, seed", "top-1", "median cosine", "95% of random", "above", "kinds")
    rows = [
        [
            f"{name}, {number}",
            f"{run['test_top1']:.2%}" if "test_top1" in run else None,
            run["cosine"]["median"],
            run["chance_cosine"],
            run["above_chance"],
            ", ".join(f"{kind} {count}" for kind, count in run["kinds"].items()),
        ]
        for name in ("trained", "untrained")
        for number, run in enumerate(result[name])
    ]
    print_table("learned kernels, beside random ones as smooth and as coloured", columns, rows)
    tops = [run["test_top1"] for run in result["trained"]]
    print(f"median top-1 {statistics.median(tops):.2%}")


if __name__ == "__main__":
    sys.exit(main())
