"""How much memory the driver of `striate evaluate` needs: synthetic scores of up to a million pictures, no cluster.

Two processes make scores of random pictures and sum them up as a worker does, shard by shard. A driver in a process of
its own takes up their reports with the code of the command: it keeps each below the report's folder, adds it up, and
writes the page. Then a second driver resumes from these reports. Memory is the kernel's high-water mark of the driver.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import REPOSITORY
from benchmarks.common.result_file import machine, save
from benchmarks.scale.empty_shards import peak_mb
from jobs.evaluate import EvaluatePlan, EvaluateResults, content_of, write_page
from jobs.shards.pool_size import WorkerPool
from library.bundle.description import BundleRecord
from library.dataset.manifest import FileEntry, Job, Manifest, Tally
from library.dataset.shards import SUFFIX, shard_name
from library.dataset.task import ShardTask
from library.errors import StriateError
from library.evaluation.sums import EvaluateReport, Example, Outcomes, Pairs, Sums
from library.imaging import codec
from library.work.classifying import BATCH
from library.work.score_shard import EvaluateJob

_PROCESSES = 2
# As photos of 100 kB in shards of 128 MiB.
_IN_A_SHARD = 1280
_MOST_MB = 2000
# What is measured: pictures, classifiers, and how far the true class stands out. 0 is the worst case: nearly every
# picture is a mistake, and all kinds of mistakes are there.
_FIGURES = ("driver_peak_mb", "driver_before_mb", "add_s", "page_s", "reports_mb")
_CASES = ((100_000, 1, 4.2), (1_000_000, 1, 4.2), (1_000_000, 2, 0.0))


def main() -> int:
    """Exit code 0, or 1 for a failure; a goal that is missed is no failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000, help="of the classifiers (1000)")
    parser.add_argument("--times", type=float, default=1.0, help="as many pictures as this times the usual numbers (1)")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results", help="folder of the result")
    parser.add_argument("--driver", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.driver:
        json.dump(_driven(**json.loads(options.driver)), sys.stdout)
        return 0
    described, cases = machine(len(os.sched_getaffinity(0))), list[dict[str, Any]]()
    try:
        for pictures, classifiers, skill in _CASES:
            cases.append(_measured(round(pictures * options.times), options.classes, classifiers, skill))
    except StriateError as error:
        print(f"evaluate_memory: {error}", file=sys.stderr)
        return error.exit_code
    worst = max(case[run]["driver_peak_mb"] for case in cases for run in ("first", "resumed"))
    result = {
        "benchmark": "evaluate_memory",
        "machine": described,
        "parameters": {"classes": options.classes, "pictures_in_a_shard": _IN_A_SHARD, "batch": BATCH},
        "cases": cases,
        "goals": [
            {
                "what": "driver memory in MB (10^6 bytes)",
                "at_most": _MOST_MB,
                "value": worst,
                "reached": worst < _MOST_MB,
            }
        ],
    }
    _print(result)
    print(f"\n{save(result, options.out)}")
    return 0


def _measured(pictures: int, classes: int, classifiers: int, skill: float) -> dict[str, Any]:
    case = {"pictures": pictures, "classes": classes, "classifiers": classifiers, "skill": skill}
    with tempfile.TemporaryDirectory(prefix="striate-bench-") as folder:
        runs = {
            name: _separately({**case, "folder": folder, "resume": name == "resumed"}) for name in ("first", "resumed")
        }
    return {**case, "all_probabilities_mb": round(pictures * classes * classifiers * 4 / 1e6), **runs}


def _separately(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A driver in a process of its own, whose memory nothing before it has used."""
    command = [sys.executable, "-m", "benchmarks.scale.evaluate_memory", "--driver", json.dumps(arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise StriateError(f"the driver ended with exit code {done.returncode}")
    return json.loads(done.stdout)


def _driven(pictures: int, classes: int, classifiers: int, skill: float, folder: str, resume: bool) -> dict[str, Any]:
    """What the driver does: it adds up the reports of new shards, or those that it finds."""
    from jobs.shards.results import ShardRun

    plan, before, start = _plan(pictures, classes, classifiers, folder), peak_mb(), time.perf_counter()
    names = zip(plan.manifest.shards, (f"{number:064x}" for number in range(len(plan.manifest.shards))), strict=True)
    tasks = [ShardTask(plan.dataset, entry.name.removesuffix(SUFFIX), digest, entry.rows) for entry, digest in names]
    job = EvaluateJob(plan.bundles, tuple(record.id for record in plan.records), examples=True)
    results, run = EvaluateResults(plan), ShardRun()
    todo = results.resume(tasks, job)
    if bool(todo) == resume:
        raise StriateError(f"{len(todo)} shards of {len(tasks)} are left to do")
    for task, report in zip(todo, _reports(todo, job, classes, skill), strict=True):
        run.pictures[plan.dataset] += results.add(task, report).tally.rows_in
    added = time.perf_counter() - start
    content = content_of(plan, WorkerPool(_PROCESSES), results, run)
    write_page(folder, content)
    report_sizes = [path.stat().st_size for path in Path(folder, "_reports").iterdir()]
    return {
        "driver_peak_mb": peak_mb(),
        "driver_before_mb": before,
        "add_s": round(added, 1),
        "page_s": round(time.perf_counter() - start - added, 1),
        "top1": content.subjects[0].evaluation.top1,
        "confused_pairs": len(results.totals.sums[0].confusion),
        "shards": len(tasks),
        "reports_mb": round(sum(report_sizes) / 1e6, 1),
        "page_mb": round(Path(folder, "index.html").stat().st_size / 1e6, 2),
        "summary_mb": round(Path(folder, "summary.json").stat().st_size / 1e6, 2),
    }


def _plan(pictures: int, classes: int, classifiers: int, folder: str) -> EvaluatePlan:
    entries: list[FileEntry] = []
    for number, first in enumerate(range(0, pictures, _IN_A_SHARD)):
        rows = min(_IN_A_SHARD, pictures - first)
        entries.append(FileEntry(name=shard_name(number) + SUFFIX, rows=rows, bytes=0, digest=""))
    tally = Tally(rows_in=pictures, rows_out=pictures)
    manifest = Manifest(complete=True, jobs=[Job(kind="ingest", source="none")], tally=tally, shards=entries)
    names = tuple(f"class {number}" for number in range(classes))
    records = tuple(BundleRecord(classes=names, provenance={"number": number}) for number in range(classifiers))
    uris = tuple(f"/bundles/{number}" for number in range(classifiers))
    return EvaluatePlan(uris, records, ((),) * classifiers, "/dataset", manifest, folder, 0)


def _reports(tasks: list[ShardTask], job: EvaluateJob, classes: int, skill: float) -> Iterator[str]:
    """The reports of shards as JSON in order, of which few wait at a time, as Ray Data has it."""
    with ProcessPoolExecutor(_PROCESSES, get_context("spawn")) as pool:
        waiting: deque[Future[str]] = deque()
        for task in tasks:
            waiting.append(pool.submit(_report, task, job, classes, skill))
            if len(waiting) > 2 * _PROCESSES:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _report(task: ShardTask, job: EvaluateJob, classes: int, skill: float) -> str:
    """What a worker sends of a shard: its own sums, of scores that are drawn."""
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
    logits = rng.standard_normal((len(truth), classes), np.float32)
    logits[np.arange(len(truth)), truth] += np.float32(skill)
    odds = np.exp(logits)
    return odds / odds.sum(1, keepdims=True)


def _picture(rng: np.random.Generator) -> tuple[bytes, str]:
    """Noise of 160 x 120: larger than a photo would be."""
    return codec.encode(rng.integers(0, 256, (120, 160, 3), np.uint8), codec.Encoding("jpeg", 85))


def _print(result: Mapping[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("pictures", "classifiers", "top-1", "", *(figure.replace("_", " ") for figure in _FIGURES)):
        table.add_column(column, justify="right")
    for case in result["cases"]:
        for name in ("first", "resumed"):
            run = case[name]
            figures = (
                run[figure] for figure in ("driver_peak_mb", "driver_before_mb", "add_s", "page_s", "reports_mb")
            )
            table.add_row(
                f"{case['pictures']:,}", str(case["classifiers"]), f"{run['top1']:.1%}", name, *map(str, figures)
            )
    Console(width=120, highlight=False, markup=False).print(table)
    for goal in result["goals"]:
        reached = "reached" if goal["reached"] else "NOT reached"
        print(f"{goal['what']}: {goal['value']} (goal: under {goal['at_most']}, {reached})")


if __name__ == "__main__":
    sys.exit(main())
