"""Measures pictures per second of `striate predict` beside the limit of the same cores.

Photos are classified into a new dataset with a small network, where decoding takes most of the time, and with larger
ones. benchmarks/README.md defines contestants and figures.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from benchmarks.common import striate_runs
from benchmarks.common.command_line import add_photos, at_least, make_parser, run_benchmark, work_folder
from benchmarks.common.measuring import RATE, STEADY, Rounds, Run, fresh_folder, measured_rounds
from benchmarks.common.photo_files import PhotoSet, make_photos
from benchmarks.common.process_tree import WorkerMemory
from benchmarks.common.report import goal, median_of, print_goals, print_table, summary
from benchmarks.serve.prediction_limit import limit
from benchmarks.serve.served_models import make_bundle
from library.bundle.bundle import Bundle
from library.dataset.manifest import load_manifest
from library.errors import StriateError
from library.runtimes.runtime import open_runtime

_MODELS = ("lenet5", "resnet18", "resnet50")
_MIN_RATIO = 0.9
_CHECKED = 20
#: The largest difference between two probabilities of one picture.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Setup:
    """The input of all contestants: the photos as files and as a dataset, the bundle, and the number of cores."""

    photos: PhotoSet
    dataset: str
    bundle: Path
    work: Path
    cores: int


def main() -> int:
    """Returns the exit code."""
    return run_benchmark(__file__, _parser(), _measure, _print)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__file__, __doc__, "", "--pictures 200 --rounds 1 --model lenet5 --out /tmp/results")
    add_photos(parser, disk_gb=3)
    parser.add_argument("--pictures", type=at_least(1), default=5_000, help="number of photos (5000)")
    parser.add_argument("--model", action="append", help=f"call of a model; may be repeated ({', '.join(_MODELS)})")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="number of rounds (3)")
    parser.add_argument("--shard-mb", type=float, default=16, help="shard size in MiB (16)")
    return parser


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    models: list[str] = options.model or list(_MODELS)
    rounds: dict[str, Rounds] = {}
    with work_folder(options.work) as work:
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")  # no graph is kept from an earlier run
        photos = make_photos(options.tar, work / "photos", options.pictures)
        striate_runs.make_dataset(photos.folder, work / "dataset", cores, options.shard_mb)
        for number, model in enumerate(models):
            make_bundle(model, work / f"bundle-{number}")
            setup = Setup(photos, str(work / "dataset"), work / f"bundle-{number}", work, cores)
            runs = {name: functools.partial(_figures, run, setup) for name, (_, run) in _CONTESTANTS.items()}
            rounds[model] = measured_rounds(runs, options.rounds, model)
    return {
        "parameters": {
            "photos": photos.facts | {"source": photos.source},
            "models": models,
            "rounds": options.rounds,
            "shard_mb": options.shard_mb,
        },
        "models": {
            model: {name: summary(_CONTESTANTS[name][0], runs) for name, runs in contestants.items()}
            for model, contestants in rounds.items()
        },
        "goals": [entry for model, contestants in rounds.items() for entry in _goals(model, contestants)],
    }


def _figures(run: Callable[[Setup], Run], setup: Setup) -> dict[str, Any]:
    return run(setup).figures()


def _limit_processes(setup: Setup) -> Run:
    return limit(setup.bundle, setup.photos.paths, setup.photos.distinct, setup.cores, 1)


def _limit_threads(setup: Setup) -> Run:
    return limit(setup.bundle, setup.photos.paths, setup.photos.distinct, 1, setup.cores)


def _striate(setup: Setup) -> Run:
    """Measures `striate predict` with its defaults: one worker per core."""
    return _predict(setup, setup.cores, 1)


def _striate_threads(setup: Setup) -> Run:
    return _predict(setup, 1, setup.cores)


_CONTESTANTS: Mapping[str, tuple[str, Callable[[Setup], Run]]] = {
    "limit_processes": ("limit: one process per core, bytes in memory", _limit_processes),
    "striate": ("striate predict: one worker per core, shards to shards", _striate),
    "limit_threads": ("limit: one process with all threads", _limit_threads),
    "striate_threads": ("striate predict: one worker with all threads", _striate_threads),
}


def _predict(setup: Setup, workers: int, threads: int) -> Run:
    with striate_runs.connected(setup.cores), fresh_folder(setup.work / "scored") as out, WorkerMemory() as memory:
        # After `connected`, which sets variables that Ray reads when it is imported.
        from jobs.predict import plan_predict, predict_shards
        from jobs.shards.pool_size import WorkerPool

        clock, start = time.time(), time.perf_counter()
        plan = plan_predict(str(setup.bundle), setup.dataset, str(out), gpu=False)
        manifest = predict_shards(plan, WorkerPool(workers, threads))
        seconds = time.perf_counter() - start
        if manifest.rows != len(setup.photos.names):
            raise StriateError(
                f"{manifest.rows} pictures written instead of {len(setup.photos.names)}, so rates are not comparable"
            )
        _check(setup, out, threads)
        commits = striate_runs.commits_of(out, load_manifest(str(out)))
    details = {
        **striate_runs.shard_figures(commits, workers, clock),
        "worker_peak_mb": memory.peak_mb,
        "stage_s": manifest.run["seconds"],
    }
    return Run(manifest.rows, seconds, details)


def _check(setup: Setup, out: Path, threads: int) -> None:
    """Raises StriateError if some probabilities differ from those of the bundle by more than rounding."""
    torch.set_num_threads(threads)
    bundle = Bundle.load(str(setup.bundle), "cpu")
    runtime = open_runtime(bundle, "onnx", threads=threads, measure=False)
    shard = load_manifest(str(out)).shards[0].name
    columns = ["image", "top_classes", "top_probabilities"]
    for row in pq.read_table(out / shard, columns=columns).slice(0, _CHECKED).to_pylist():
        (probabilities,) = runtime.probabilities([bundle.prepare(row["image"]["bytes"])])
        expected = dict(zip(bundle.classes, probabilities, strict=True))
        answers = zip(row["top_classes"], row["top_probabilities"], strict=True)
        if any(abs(probability - expected[name]) > _TOLERANCE for name, probability in answers):
            raise StriateError("striate predict and the bundle give different probabilities; please report this")


def _goals(model: str, contestants: Rounds) -> list[dict[str, Any]]:
    """Returns the comparisons with the faster limit of each round."""
    limits = [
        max(processes[RATE], threads[RATE])
        for processes, threads in zip(contestants["limit_processes"], contestants["limit_threads"], strict=True)
    ]
    goals: list[dict[str, Any]] = []
    for figure, what in ((RATE, "whole call"), (STEADY, "steady state")):
        pairs = zip(contestants["striate"], limits, strict=True)
        values = [figures[figure] / limit for figures, limit in pairs if figures.get(figure)]
        goals.append(goal(f"{model}, {what} / the faster limit", values, at_least=_MIN_RATIO))
    return goals


def _print(result: Mapping[str, Any]) -> None:
    rows: list[Sequence[str]] = []
    for model, contestants in result["models"].items():
        for summaries in contestants.values():
            figures = ((RATE, 1), (STEADY, 1), ("first_shard_s", 1), ("worker_peak_mb", 0))
            medians = (median_of(summaries["rounds"], figure, digits) for figure, digits in figures)
            rows.append((model, summaries["what"], *medians))
    columns = ("model", "contestant", "pictures/s", "steady/s", "first shard s", "worker MB")
    print_table("", columns, rows, left=2)
    print_goals(result["goals"])


if __name__ == "__main__":
    sys.exit(main())
