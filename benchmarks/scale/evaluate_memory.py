"""Measures the memory of the driver of `striate evaluate` with up to a million synthetic pictures, without a cluster.

Two processes draw random scores and sum them up shard by shard, with the code of a worker. A driver in a process of its
own stores their reports, adds them up and writes the page with the code of the command. A second driver resumes from
these reports. Memory is the kernel's high-water mark of the driver.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.common.command_line import at_least, make_parser, run_benchmark, run_module, work_folder
from benchmarks.common.report import print_table
from benchmarks.scale.empty_shards import peak_mb
from jobs.evaluate import EvaluatePlan, EvaluateResults, content_of, write_page
from jobs.shards.pool_size import WorkerPool
from library.bundle.description import BundleRecord
from library.dataset.manifest import FileEntry, Job, Manifest, Tally
from library.dataset.shards import SUFFIX, shard_name
from library.dataset.task import ShardTask
from library.errors import StriateError
from library.evaluation.metrics import Evaluation
from library.evaluation.sums import EvaluateReport, Example, Outcomes, Pairs, Sums
from library.imaging import codec
from library.work.classifying import BATCH
from library.work.evaluate_shard import EvaluateJob

_PROCESSES = 2
# As many as photos of 100 kB in a shard of 128 MiB.
_PICTURES_PER_SHARD = 1280
_MAX_MB = 2000
_FIGURES = ("driver_peak_mb", "driver_before_mb", "add_s", "page_s", "reports_mb")
# Pictures, classifiers, and skill: what is added to the logit of the true class. 0 is the worst case: nearly every
# picture is a mistake, and all pairs of classes are confused.
_CASES = ((100_000, 1, 4.2), (1_000_000, 1, 4.2), (1_000_000, 2, 0.0))


def main() -> int:
    """Returns the exit code."""
    if sys.argv[1:2] == ["--driver"]:  # the driver's own process, started by `_measure_case`
        json.dump(_drive(**json.loads(sys.argv[2])), sys.stdout)
        return 0
    parser = make_parser(__file__, __doc__, "", "--times 0.01 --out /tmp/results")
    parser.add_argument("--classes", type=at_least(2), default=1000, help="number of classes (1000)")
    parser.add_argument("--times", type=float, default=1.0, help="multiplies the numbers of pictures (1)")
    return run_benchmark(__file__, parser, _measure, _print)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    cases = [
        _measure_case(round(pictures * options.times), options.classes, classifiers, skill)
        for pictures, classifiers, skill in _CASES
    ]
    largest_mb = max(case[run]["driver_peak_mb"] for case in cases for run in ("first", "resumed"))
    return {
        "parameters": {"classes": options.classes, "pictures_in_a_shard": _PICTURES_PER_SHARD, "batch": BATCH},
        "cases": cases,
        "goals": [
            {
                "what": "driver memory in MB (10^6 bytes)",
                "at_most": _MAX_MB,
                "value": largest_mb,
                "reached": largest_mb < _MAX_MB,
            }
        ],
    }


def _measure_case(pictures: int, classes: int, classifiers: int, skill: float) -> dict[str, Any]:
    case = {"pictures": pictures, "classes": classes, "classifiers": classifiers, "skill": skill}
    with work_folder(None) as folder:
        runs = {
            name: run_module(
                "benchmarks.scale.evaluate_memory",
                "--driver",
                json.dumps({**case, "folder": str(folder), "resume": name == "resumed"}),
            )
            for name in ("first", "resumed")
        }
    return {**case, "all_probabilities_mb": round(pictures * classes * classifiers * 4 / 1e6), **runs}


def _drive(pictures: int, classes: int, classifiers: int, skill: float, folder: str, resume: bool) -> dict[str, Any]:
    """Does the work of the driver: adds up the reports of new shards or, to resume, those in the folder."""
    from jobs.shards.results import ShardRun

    plan, before, start = _plan(pictures, classes, classifiers, folder), peak_mb(), time.perf_counter()
    names = zip(plan.manifest.shards, (f"{number:064x}" for number in range(len(plan.manifest.shards))), strict=True)
    tasks = [ShardTask(plan.dataset, entry.name.removesuffix(SUFFIX), digest, entry.rows) for entry, digest in names]
    job = EvaluateJob(plan.bundles, tuple(record.id for record in plan.records), examples=True)
    results, run = EvaluateResults(plan), ShardRun()
    todo = results.resume(tasks, job)
    if bool(todo) == resume:
        raise StriateError(f"{len(todo)} of {len(tasks)} shards are left, instead of {0 if resume else len(tasks)}")
    for task, report in zip(todo, _reports(todo, job, classes, skill), strict=True):
        run.pictures[plan.dataset] += results.add(task, report).tally.rows_in
    add_s = time.perf_counter() - start
    content = content_of(plan, WorkerPool(_PROCESSES), results, run)
    write_page(folder, content)
    report_sizes = [path.stat().st_size for path in Path(folder, "_reports").iterdir()]
    return {
        "driver_peak_mb": peak_mb(),
        "driver_before_mb": before,
        "add_s": round(add_s, 1),
        "page_s": round(time.perf_counter() - start - add_s, 1),
        "top1": cast(Evaluation, content.subjects[0].evaluation).top1,
        "confused_pairs": len(results.totals.sums[0].confusion),
        "shards": len(tasks),
        "reports_mb": round(sum(report_sizes) / 1e6, 1),
        "page_mb": round(Path(folder, "index.html").stat().st_size / 1e6, 2),
        "summary_mb": round(Path(folder, "summary.json").stat().st_size / 1e6, 2),
    }


def _plan(pictures: int, classes: int, classifiers: int, folder: str) -> EvaluatePlan:
    entries: list[FileEntry] = []
    for number, first in enumerate(range(0, pictures, _PICTURES_PER_SHARD)):
        rows = min(_PICTURES_PER_SHARD, pictures - first)
        entries.append(FileEntry(name=shard_name(number) + SUFFIX, rows=rows, bytes=0, digest=""))
    tally = Tally(rows_in=pictures, rows_out=pictures)
    manifest = Manifest(complete=True, jobs=[Job(kind="ingest", source="none")], tally=tally, shards=entries)
    names = tuple(f"class {number}" for number in range(classes))
    records = tuple(BundleRecord(classes=names, provenance={"number": number}) for number in range(classifiers))
    uris = tuple(f"/bundles/{number}" for number in range(classifiers))
    return EvaluatePlan(uris, records, ((),) * classifiers, "/dataset", manifest, folder, 0)


def _reports(tasks: list[ShardTask], job: EvaluateJob, classes: int, skill: float) -> Iterator[str]:
    """Yields the reports of shards as JSON, in order; only a few wait at a time, as in Ray Data."""
    with ProcessPoolExecutor(_PROCESSES, get_context("spawn")) as pool:
        waiting: deque[Future[str]] = deque()
        for task in tasks:
            waiting.append(pool.submit(_report, task, job, classes, skill))
            if len(waiting) > 2 * _PROCESSES:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _report(task: ShardTask, job: EvaluateJob, classes: int, skill: float) -> str:
    """Returns the report of a worker on one shard, as JSON, from random scores."""
    rng = np.random.default_rng(int(task.stem.rpartition("-")[2]))
    names = tuple(f"class {number}" for number in range(classes))
    sums = [Sums() for _ in job.bundles]
    pairs = Pairs() if len(sums) == 2 else None
    for first in range(0, task.rows, BATCH):
        count = min(BATCH, task.rows - first)
        keys = tuple(f"{task.stem}/{first + number:06d}.jpg" for number in range(count))
        truth = rng.integers(0, classes, count)
        outcomes = [Outcomes(names, keys, truth, _probabilities(rng, truth, classes, skill)) for _ in sums]
        for total, outcome in zip(sums, outcomes, strict=True):
            total.add(outcome)
        if pairs is not None:
            pairs.add(*outcomes)
    for total in sums:
        total.examples = [Example(mistake.key, *_picture(rng)) for mistake in total.mistakes]
    tally = Tally(rows_in=task.rows, rows_out=task.rows)
    report = EvaluateReport(
        stem=task.stem,
        input_digest=task.input_digest,
        work_digest=job.work_digest(task),
        tally=tally,
        sums=sums,
        pairs=pairs,
    )
    return report.model_dump_json()


def _probabilities(rng: np.random.Generator, truth: Any, classes: int, skill: float) -> Any:
    """Returns random float32 probabilities (len(truth) x classes)."""
    logits = rng.standard_normal((len(truth), classes), np.float32)
    logits[np.arange(len(truth)), truth] += np.float32(skill)
    odds = np.exp(logits)
    return odds / odds.sum(1, keepdims=True)


def _picture(rng: np.random.Generator) -> tuple[bytes, str]:
    """Returns noise of 160x120 pixels, which takes more bytes than a photo, and its format."""
    return codec.encode(rng.integers(0, 256, (120, 160, 3), np.uint8), codec.Encoding("jpeg", 85))


def _print(result: Mapping[str, Any]) -> None:
    columns = ("pictures", "classifiers", "top-1", "run", *(figure.replace("_", " ") for figure in _FIGURES))
    rows: list[Sequence[Any]] = []
    for case in result["cases"]:
        for name in ("first", "resumed"):
            run = case[name]
            start = (f"{case['pictures']:,}", case["classifiers"], f"{run['top1']:.1%}", name)
            rows.append((*start, *(run[figure] for figure in _FIGURES)))
    print_table("", columns, rows, left=0)
    for goal in result["goals"]:
        reached = "reached" if goal["reached"] else "NOT reached"
        print(f"{goal['what']}: {goal['value']} (goal: under {goal['at_most']}, {reached})")


if __name__ == "__main__":
    sys.exit(main())
