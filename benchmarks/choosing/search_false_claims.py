"""Counts how often a search claims that a filter helps where none can: on clean digits, and on shuffled labels.

Each run is a whole search, with its races and its confirmation, on pictures and digits of its own. On shuffled labels
nothing can help. On clean digits a filter might truly help a little, so its rate is an upper bound of the false claims.
The stated rate is 5%: of claims in a search, and of placebos that come out as helping. Searches that ran out of budget
are counted apart. Both kinds are also pooled, with an exact 95% interval. Its upper end is above 5% for fewer than 72
finished searches, even without any claim, so by default this benchmark shows that claims are rare, but not the stated
rate. Its space is small, and with few confirmation pictures only large gains can be claimed at all. For the rate:
search_simulation.py.

Runs are kept below --work in a folder named by the code and the settings too. So a killed benchmark continues, and a
run of other code is never taken for one of this.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import REPOSITORY
from benchmarks.choosing import search_data
from benchmarks.common.command_line import at_least, make_parser, run_benchmark, say
from benchmarks.common.report import print_table
from benchmarks.common.result_file import code_digest
from cluster.connection.session import connect
from library.dataset.manifest import digest_of

_DATA = REPOSITORY.parent / "shared" / "data"
_KINDS = ("clean", "shuffled")
_SPACE = """
filters: ["median_blur(size=3)", "gaussian_blur(sigma=0.7)", "sharpen(amount=0.5)", equalize, gamma(0.6), invert,
          "clahe(clip_limit=2.0)", "open(size=3)"]
places: [always, sometimes]
length: 2
placebos: 3
"""
_RECIPE = """
data: {train: x}
model: lenet5
optimizer: {name: adamw, lr: 3e-3, weight_decay: 0.01}
schedule: {name: cosine, warmup_epochs: 1}
batch_size: 64
epochs: EPOCHS
"""


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(
        __file__, __doc__, "--runs 20", "--runs 2 --pictures 300 --out /tmp/results --work /tmp/claims"
    )
    parser.add_argument("--mnist", type=Path, default=_DATA / "mnist", help="MNIST (../shared/data/mnist)")
    parser.add_argument("--runs", type=at_least(1), default=20, help="searches of each kind (20)")
    parser.add_argument(
        "--kinds", nargs="+", choices=_KINDS, default=list(_KINDS), help="clean, shuffled or both (both)"
    )
    parser.add_argument("--pictures", type=at_least(100), default=600, help="pictures of train and of val (600)")
    parser.add_argument("--epochs", type=at_least(1), default=6, help="of the recipe (6)")
    parser.add_argument("--budget", default="6m", help="of each search, which should be more than it needs (6m)")
    parser.add_argument("--workers", default="auto", help="trainings at the same time (auto)")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "out" / "search-claims", help="folder that is kept")
    return run_benchmark(__file__, parser, _measure, _show)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    options.work.mkdir(parents=True, exist_ok=True)
    (options.work / "space.yaml").write_text(_SPACE)
    (options.work / "recipe.yaml").write_text(_RECIPE.replace("EPOCHS", str(options.epochs)))
    runs: list[dict[str, Any]] = []
    with connect("local"):
        for number in range(options.runs):
            for kind in options.kinds:
                run = _run(kind, number, options)
                say(f"{kind} {number + 1} of {options.runs}: {run['sentence']} ({run['seconds']:.0f} s)")
                runs.append(run)
    fields = ("runs", "pictures", "epochs", "budget")
    return {
        "parameters": {name: getattr(options, name) for name in fields} | {"space": _SPACE, "recipe": _RECIPE},
        "rates": {
            **{kind: rates([run for run in runs if run["kind"] == kind]) for kind in options.kinds},
            "pooled": rates(runs),
        },
        "runs": runs,
    }


def _run(kind: str, number: int, options: argparse.Namespace) -> dict[str, Any]:
    from jobs.search.running import run_search
    from jobs.search.search_plan import plan_search

    settings = [code_digest(), _SPACE, _RECIPE, options.pictures, options.epochs, options.budget, options.workers]
    folder = options.work / f"{kind}-{digest_of(settings)[:16]}" / f"{number:03d}"
    kept = folder / "run.json"
    if kept.exists():
        return json.loads(kept.read_text())
    sizes = {"train": options.pictures, "val": options.pictures}
    splits = search_data.digits(options.mnist, sizes, number)
    if kind == "shuffled":
        rng = np.random.default_rng(number)
        splits = {name: (pixels, rng.permutation(labels).tolist()) for name, (pixels, labels) in splits.items()}
    search_data.write_splits(folder, splits, lambda pictures: pictures)
    start = time.perf_counter()
    plan = plan_search(
        str(folder / "train"),
        str(folder / "val"),
        out=str(folder / "search"),
        budget=options.budget,
        space=str(options.work / "space.yaml"),
        recipe=str(options.work / "recipe.yaml"),
    )
    report = run_search(plan, workers=options.workers).report
    gains = report.answer.gains
    run = {
        "kind": kind,
        "number": number,
        "outcome": report.answer.outcome,
        "sentence": report.answer.sentence,
        "placebo_won": report.answer.placebo_won,
        "placebo_called_worse": any(g.candidate.placebo is not None and g.verdict == "worse" for g in gains),
        "smallest_adjusted_p": min((gain.adjusted_p for gain in gains), default=None),
        "finalists": len(gains),
        "trainings": report.trainings,
        "seconds": round(time.perf_counter() - start, 1),
        "unfinished": report.unfinished,
    }
    kept.write_text(json.dumps(run))
    return run


def rates(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts claims of finished searches, with 95% intervals (Clopper and Pearson, exact); 0 to 1 without any."""
    finished = [run for run in runs if run["unfinished"] is None]
    claims = {
        "helps": sum(run["outcome"] == "helps" for run in finished),
        "placebo_won": sum(run["placebo_won"] for run in finished),
    }
    counted: dict[str, Any] = {
        "finished": len(finished),
        "unfinished": len(runs) - len(finished),
        "unfinished_that_claim": sum(run["outcome"] == "helps" for run in runs if run["unfinished"] is not None),
    }
    for name, count in claims.items():
        low, high, rate = 0.0, 1.0, None
        if finished:
            low, high = stats.binomtest(count, len(finished)).proportion_ci(method="exact")
            rate = count / len(finished)
        counted[name] = {"count": count, "rate": rate, "interval": [round(float(low), 4), round(float(high), 4)]}
    return counted


def _show(result: Mapping[str, Any]) -> None:
    rows = [
        (
            kind,
            each["finished"],
            each["unfinished"],
            f"{each[name]['count']} {name.replace('_', ' ')}",
            *each[name]["interval"],
        )
        for kind, each in result["rates"].items()
        for name in ("helps", "placebo_won")
    ]
    print_table(
        "claims where there is nothing to find",
        ("data", "finished", "unfinished", "claims", "rate from", "to"),
        rows,
        left=1,
    )


if __name__ == "__main__":
    sys.exit(main())
