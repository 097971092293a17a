"""Pictures per second that are classified into a new dataset: `striate predict` beside the limit of the same cores.

Photos as they are, for a small network, where decoding rules, and for larger ones. benchmarks/README.md says what each
contestant does.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import REPOSITORY
from benchmarks.common import striate_runs
from benchmarks.common.measuring import Run, fresh_folder, spread
from benchmarks.common.photo_files import PhotoSet, make_photos
from benchmarks.common.result_file import code_digest, machine, save, summary
from benchmarks.filter.worker_memory import WorkerMemory
from benchmarks.serve.prediction_limit import limit
from benchmarks.serve.served_models import make_bundle
from library.bundle.bundle import Bundle
from library.dataset.manifest import load_manifest
from library.errors import StriateError, UsageError
from library.runtimes import open_runtime

_MODELS = ("lenet5", "resnet18", "resnet50")
_LEAST = 0.9
_CHECKED = 20
#: How far two probabilities of one picture may differ.
_NEAR = 1e-5
_QUIET_LOAD = 0.5

_EXAMPLES = """examples:
  .venv/bin/python benchmarks/serve/predict_throughput.py
  .venv/bin/python benchmarks/serve/predict_throughput.py --pictures 200 --rounds 1 --model lenet5 --out /tmp/results
"""


@dataclass(frozen=True)
class Setup:
    """What all contestants share: photos as files and as a dataset, the bundle, and how many cores there are."""

    photos: PhotoSet
    dataset: str
    bundle: Path
    work: Path
    cores: int


def main() -> int:
    """Exit code 0, 1 for a failure, 2 for misuse; a goal that is missed is no failure."""
    options = _parser().parse_args()
    try:
        if options.pictures < 1 or options.rounds < 1:
            raise UsageError("--pictures and --rounds: at least 1")
        result = _measure(options)
        _print(result)
        print(f"\n{save(result, options.out)}")
    except StriateError as error:
        print(f"predict_throughput: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=5_000, help="how many photos (5000)")
    parser.add_argument("--model", action="append", help=f"call of a model; may be repeated ({', '.join(_MODELS)})")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (3)")
    parser.add_argument("--shard-mb", type=float, default=16, help="shard size in MiB (16)")
    parser.add_argument(
        "--tar", type=Path, help="photos, repeated as needed (../shared/data/photos-500.tar, else synthetic)"
    )
    parser.add_argument("--work", type=Path, help="folder for some 3 GB of temporary data, removed at the end")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results", help="folder of the result")
    return parser


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    described = machine(cores)
    if described["load_1min_before"] > _QUIET_LOAD:
        _say(f"this machine is busy (load {described['load_1min_before']}); the result will say so, and mean little")
    models: list[str] = options.model or list(_MODELS)
    rounds: dict[str, dict[str, list[dict[str, Any]]]] = {model: {} for model in models}
    with tempfile.TemporaryDirectory(prefix="striate-bench-", dir=options.work) as folder:
        work = Path(folder)
        photos = make_photos(options.tar, work / "photos", options.pictures)
        striate_runs.make_dataset(photos.folder, work / "dataset", cores, options.shard_mb)
        for number, model in enumerate(models):
            make_bundle(model, work / f"bundle-{number}")
            setup = Setup(photos, str(work / "dataset"), work / f"bundle-{number}", work, cores)
            for turn in range(options.rounds):
                for name, (_, run) in _CONTESTANTS.items():
                    figures = run(setup).figures()
                    rounds[model].setdefault(name, []).append(figures)
                    _say(f"{model}, round {turn + 1}/{options.rounds}, {name}: {figures['pictures_per_s']:,.0f} /s")
    return {
        "benchmark": "predict_throughput",
        "machine": described,
        "code_changed_meanwhile": code_digest() != described["code_digest"],
        "parameters": {
            "photos": photos.facts | {"source": photos.source},
            "models": models,
            "rounds": options.rounds,
            "shard_mb": options.shard_mb,
        },
        "models": {
            model: {name: summary(_CONTESTANTS[name][0], rounds) for name, rounds in contestants.items()}
            for model, contestants in rounds.items()
        },
        "goals": [goal for model, contestants in rounds.items() for goal in _goals(model, contestants)],
    }


def _limit_processes(setup: Setup) -> Run:
    return limit(setup.bundle, setup.photos.paths, setup.photos.distinct, setup.cores, 1)


def _limit_threads(setup: Setup) -> Run:
    return limit(setup.bundle, setup.photos.paths, setup.photos.distinct, 1, setup.cores)


def _striate(setup: Setup) -> Run:
    """As `striate predict` does by itself: a worker a core."""
    return _predicted(setup, setup.cores, 1)


def _striate_threads(setup: Setup) -> Run:
    return _predicted(setup, 1, setup.cores)


_CONTESTANTS: Mapping[str, tuple[str, Callable[[Setup], Run]]] = {
    "limit_processes": ("limit: a process a core, bytes in memory", _limit_processes),
    "striate": ("striate predict: a worker a core, shards to shards", _striate),
    "limit_threads": ("limit: one process, all threads", _limit_threads),
    "striate_threads": ("striate, but one worker with all threads", _striate_threads),
}


def _predicted(setup: Setup, workers: int, threads: int) -> Run:
    with striate_runs.connected(setup.cores), fresh_folder(setup.work / "scored") as out, WorkerMemory() as memory:
        # After `connected`, which sets what Ray reads when it is imported.
        from jobs.predict import plan_predict
        from jobs.shards.dataset_job import make_shards
        from jobs.shards.pool_size import WorkerPool

        clock, start = time.time(), time.perf_counter()
        plan = plan_predict(str(setup.bundle), setup.dataset, str(out), gpu=False)
        plan = dataclasses.replace(plan, work=dataclasses.replace(plan.work, threads=threads))
        manifest = make_shards("predict", plan, WorkerPool(workers, threads))
        seconds = time.perf_counter() - start
        if manifest.rows != len(setup.photos.names):
            raise StriateError(f"{manifest.rows} pictures were made of {len(setup.photos.names)}; no fair comparison")
        _check(setup, out, threads)
        commits = striate_runs.commits_of(out, load_manifest(str(out)))
    steady = striate_runs.steady_rate(commits, workers)
    details: dict[str, Any] = {
        "steady_pictures_per_s": steady and round(steady, 2),
        "first_shard_s": round(commits[0].at - clock, 3),
        "shards": len(commits),
        "worker_peak_mb": memory.peak_bytes and round(memory.peak_bytes / 1e6, 1),
        "stage_s": manifest.run["seconds"],
    }
    return Run(manifest.rows, seconds, details)


def _check(setup: Setup, out: Path, threads: int) -> None:
    """Some answers must be those of the bundle through the same runtime, as near as batches of other sizes are."""
    torch.set_num_threads(threads)
    bundle = Bundle.load(str(setup.bundle), "cpu")
    runtime = open_runtime(bundle, "onnx", threads=threads, measure=False)
    shard = load_manifest(str(out)).shards[0].name
    columns = ["image", "top_classes", "top_probabilities"]
    for row in pq.read_table(out / shard, columns=columns).slice(0, _CHECKED).to_pylist():
        (alone,) = runtime.probabilities([bundle.prepare(row["image"]["bytes"])])
        expected = dict(zip(bundle.classes, alone, strict=True))
        shares = zip(row["top_classes"], row["top_probabilities"], strict=True)
        if any(abs(share - expected[name]) > _NEAR for name, share in shares):
            raise StriateError("striate predict and the bundle give different answers, which is a defect")


def _goals(model: str, contestants: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Against the faster limit of each round; judged by the median."""
    summaries: list[dict[str, Any]] = []
    rate = "pictures_per_s"
    limits = [
        max(one[rate], other[rate])
        for one, other in zip(contestants["limit_processes"], contestants["limit_threads"], strict=True)
    ]
    for figure, what in ((rate, "whole call"), (f"steady_{rate}", "steady state")):
        pairs = zip(contestants["striate"], limits, strict=True)
        values = [ours[figure] / theirs for ours, theirs in pairs if ours.get(figure)]
        summaries.append(
            {
                "what": f"{model}, {what} / the faster limit",
                "at_least": _LEAST,
                "ratio": spread(values) if values else None,
                "reached": spread(values)["median"] >= _LEAST if values else None,
            }
        )
    return summaries


def _print(result: Mapping[str, Any]) -> None:
    console = Console(width=120, highlight=False, markup=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    table.add_column("contestant")
    for title in ("pictures/s", "steady/s", "first shard s", "worker MB"):
        table.add_column(title, justify="right")
    for model, contestants in result["models"].items():
        for summaries in contestants.values():
            first = summaries["rounds"][0]
            steady = summaries.get("steady_pictures_per_s")
            table.add_row(
                model,
                summaries["what"],
                f"{summaries['pictures_per_s']['median']:,.1f}",
                f"{steady['median']:,.1f}" if steady else "",
                f"{first['first_shard_s']:.1f}" if "first_shard_s" in first else "",
                f"{first['worker_peak_mb']:,.0f}" if first.get("worker_peak_mb") else "",
            )
    console.print(table)
    for goal in result["goals"]:
        if goal["ratio"] is not None:
            reached = "reached" if goal["reached"] else "NOT reached"
            console.print(f"{goal['what']}: {goal['ratio']['median']:.2f} (goal {goal['at_least']}, {reached})")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
