"""Evaluates one or two classifiers on a dataset, on Ray: `striate evaluate`."""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.connection.session import connect
from cluster.shared_paths import check_shared
from jobs.choosing.leak_search import LeakSearch, plan_leak_search, search_leaks
from jobs.shards.dataset_job import shard_tasks
from jobs.shards.pool_size import WorkerPool, pool_for_classifiers
from jobs.shards.results import ShardRun
from library import storage
from library.bundle.description import BundleRecord, load_record, plugins_of
from library.dataset.destination import reports_below, shard_stem
from library.dataset.lease import hold
from library.dataset.manifest import REPORTS, VERSIONS, Manifest, load_manifest, save_report
from library.dataset.shards import ShardReader
from library.dataset.task import ShardTask
from library.errors import StriateError, UsageError
from library.evaluation.comparison import compare
from library.evaluation.leakage import Leaks, leak_effect
from library.evaluation.metrics import evaluate
from library.evaluation.report.content import Content, Counts, Subject, Throughput, account, summary
from library.evaluation.report.page import render
from library.evaluation.report.templates import PAGE, check_report
from library.evaluation.robustness import measure
from library.evaluation.several_labels import evaluate_labels
from library.evaluation.sums import Counted, EvaluateReport, EvaluateTotals, LabelScores, Sums
from library.pipeline.inputs import InputPipeline
from library.steps.plugins import Plugin, named
from library.storage import FileInfo
from library.training.label_sets import check_column, trained_column
from library.training.progress import read_metrics
from library.work.evaluate_shard import EvaluateJob

SUMMARY = "summary.json"
ROBUSTNESS_PICTURES = 1000
#: A classifier of any number of classes predicts those with at least this probability.
THRESHOLD = 0.5


@dataclass(frozen=True)
class EvaluatePlan:
    """The classifiers to evaluate and the dataset; from `plan_evaluate`.

    Attributes:
        bundles: URIs of one or two classifiers.
        records: the bundles' records.
        curves: the lines of metrics.jsonl of each training.
        dataset: URI.
        report: folder or s3:// of the page; None for no page.
        robustness_pictures: number of pictures for robustness; 0 to skip it.
        used_plugins: the plugins that the bundles need.
        leak_search: where leaks are looked for; None to look for none.
        labels: where the only bundle gives a picture any number of classes: the column with their names.
        threshold: there, the least probability of a predicted class.
    """

    bundles: tuple[str, ...]
    records: tuple[BundleRecord, ...]
    curves: tuple[Sequence[Mapping[str, Any]], ...]
    dataset: str
    manifest: Manifest
    report: str | None
    robustness_pictures: int
    used_plugins: tuple[Plugin, ...] = ()
    leak_search: LeakSearch | None = None
    labels: str | None = None
    threshold: float = 0.5


def plan_evaluate(
    bundles: Sequence[str],
    dataset: str,
    *,
    report: str | None = None,
    robustness_pictures: int = 0,
    without_leaks: Sequence[str] = (),
    near: int | None = 4,
    flips: bool = False,
    labels: str | None = None,
    threshold: float | None = None,
) -> EvaluatePlan:
    """Checks everything that can be checked before Ray starts.

    Args:
        bundles: URIs of one or two classifiers.
        dataset: URI.
        report: folder or s3:// of the page; None for no page.
        robustness_pictures: number of pictures for robustness; 0 to skip it.
        without_leaks: URIs of training sets whose pictures are also left out; `auto` for those that the bundles name.
        near: the most bits in which near duplicates of training pictures differ; None for exact duplicates only.
        flips: mirrored training pictures count as near duplicates, too.
        labels: for a bundle that gives a picture any number of classes, the column with a list of names for each
            picture; None for that of its recipe.
        threshold: for such a bundle, the least probability of a predicted class; None for 0.5.

    Raises:
        UsageError: for anything wrong with the request, e.g. no class in common.
    """
    if not 1 <= len(bundles) <= 2:
        raise UsageError(f"cannot evaluate {len(bundles)} bundles; name one, or two to compare them")
    if robustness_pictures < 0:
        raise UsageError(f"--robustness-pictures {robustness_pictures}: must be at least 1")
    uris, dataset = tuple(storage.normalize(uri) for uri in bundles), storage.normalize(dataset)
    if len(set(uris)) < len(uris):
        raise UsageError(f"{bundles[0]} is given twice; name two bundles to compare them")
    records = tuple(load_record(uri) for uri in uris)
    manifest = load_manifest(dataset)
    named_bundles = list(zip(uris, records, strict=True))
    column = _labels_column(named_bundles, dataset, manifest, labels, threshold)
    if column is not None and (robustness_pictures or without_leaks):
        option = "--robustness" if robustness_pictures else "--without-leaks"
        raise UsageError(f"{option} measures top-1, and {uris[0]} gives a picture any number of classes; leave it out")
    for uri, record in named_bundles:
        if column is None and not set(record.classes) & set(manifest.tally.classes):
            raise UsageError(
                f"no picture of {dataset} has a class that {uri} knows; the dataset has "
                f"{_few(list(manifest.tally.classes)) or 'no labels'}, the bundle knows {_few(record.classes)}"
            )
        if not record.members:
            inputs = InputPipeline.parse(record.steps, record.fit, record.input_size, record.channels)
            inputs.check_channels(dataset, manifest.tally.channels)
    if report is not None:
        report = storage.normalize(report)
        check_report(report, [dataset], "striate evaluate")
    curves = tuple(read_metrics(storage.join(uri, "logs")) for uri in uris)
    used_plugins = named({name for uri, record in zip(uris, records, strict=True) for name in plugins_of(uri, record)})
    search = plan_leak_search(without_leaks, named_bundles, dataset, near, flips=flips) if without_leaks else None
    plan = EvaluatePlan(uris, records, curves, dataset, manifest, report, robustness_pictures, used_plugins, search)
    return dataclasses.replace(plan, labels=column, threshold=THRESHOLD if threshold is None else threshold)


def _labels_column(
    bundles: Sequence[tuple[str, BundleRecord]],
    dataset: str,
    manifest: Manifest,
    wanted: str | None,
    threshold: float | None,
) -> str | None:
    """Returns the column with the classes of each picture; None where the bundles give a picture one class.

    Raises:
        UsageError: the options do not suit the bundles, or there is no such column.
    """
    several = [uri for uri, record in bundles if record.multilabel]
    if not several:
        for option, value in (("--labels", wanted), ("--threshold", threshold)):
            if value is not None:
                raise UsageError(f"{option} has no effect: {bundles[0][0]} gives a picture one class; leave it out")
        return None
    if len(bundles) > 1:
        raise UsageError(
            f"{several[0]} gives a picture any number of classes, so it cannot be compared with another bundle; "
            "evaluate each by itself"
        )
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"--threshold {threshold:g}: must be a probability between 0 and 1")
    ((uri, record),) = bundles
    column = wanted or trained_column(uri, record)
    if column is None:
        raise UsageError(f"{uri} does not say which column holds the names of a picture's classes; add --labels COLUMN")
    if manifest.shards:
        schema = ShardReader(storage.join(dataset, manifest.shards[0].name)).schema()
        check_column(dataset, schema, column, "--labels")
    return column


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12:,} more" if len(names) > 12 else "")


class EvaluateResults:
    """Stores the reports of shards and sums them.

    Attributes:
        totals: over all shards.
        resumed: number of shards with a report from an earlier run.
        start_s: seconds until the first worker began with a shard.
        robustness_s: seconds of all workers for robustness in this run.
    """

    def __init__(self, plan: EvaluatePlan) -> None:
        self.totals = EvaluateTotals(len(plan.bundles) if plan.labels is None else 0)
        self.resumed = 0
        self.start_s: float | None = None
        self.robustness_s = 0.0
        self._folder = plan.report
        self._start = time.monotonic()

    def add(self, task: ShardTask, report: str) -> EvaluateReport:
        """Adds the report of a shard, as JSON, and returns it."""
        done = EvaluateReport.model_validate_json(report)
        if self._folder is not None:
            save_report(self._folder, done)
        self.totals.add(done)
        self.robustness_s += done.seconds.get("robustness", 0.0)
        busy = sum(done.seconds.values()) - done.seconds.get("load", 0.0)
        began = max(0.0, time.monotonic() - self._start - busy)
        self.start_s = began if self.start_s is None else min(self.start_s, began)
        return done

    def resume(self, tasks: Sequence[ShardTask], job: EvaluateJob) -> list[ShardTask]:
        """Adds the reports of an earlier run of the same command; returns the tasks without one."""
        done = set[str]()
        if self._folder is not None:
            sizes = {storage.join(REPORTS, file.path): file.size for file in _report_files(self._folder)}
            for task, report in reports_below(self._folder, sizes, tasks, job, EvaluateReport):
                self.totals.add(report)
                done.add(task.stem)
        self.resumed = len(done)
        return [task for task in tasks if task.stem not in done]


def _report_files(folder: str) -> list[FileInfo]:
    return storage.list_files(storage.join(folder, REPORTS))


def run_evaluate(
    plan: EvaluatePlan,
    *,
    workers: str = "auto",
    gpu: bool | None = None,
    size: str | None = None,
    address: str | None = None,
) -> Content:
    """Evaluates every picture and writes the page of the plan, if any; calling this again resumes a killed run.

    Args:
        plan: from `plan_evaluate`.
        workers: how many; `auto` is one per GPU, or else one per CPU.
        gpu: whether workers use GPUs; None to use them if there are any.
        size: named size that replaces `workers` and `gpu`.
        address: of the Ray cluster.

    Raises:
        UsageError: when another command is writing to the report's folder.
        StriateError: when a shard fails, or no picture at all can be evaluated.
    """
    if plan.report is None:
        return _evaluate(plan, workers, gpu, size, address)
    with hold(plan.report, tidy=_tidy):
        content = _evaluate(plan, workers, gpu, size, address)
        write_page(plan.report, content)
        _tidy(plan.report, {f"{shard_stem(shard.name)}.json" for shard in plan.manifest.shards})
        return content


def write_page(folder: str, content: Content) -> None:
    """Writes `summary.json` and `index.html`."""
    numbers = json.dumps(summary(content), ensure_ascii=False, allow_nan=False)
    storage.write_bytes(storage.join(folder, SUMMARY), (numbers + "\n").encode())
    storage.write_bytes(storage.join(folder, PAGE), render(content).encode("utf-8", "replace"))


def _tidy(folder: str, keep: Set[str] | None = None) -> None:
    """Removes temporary files of a killed run, and all reports but `keep` unless that is None."""
    for file in _report_files(folder):
        if file.path.startswith(storage.TEMPORARY_PREFIX) or (keep is not None and file.path not in keep):
            storage.remove([file.uri])


def _evaluate(plan: EvaluatePlan, workers: str, gpu: bool | None, size: str | None, address: str | None) -> Content:
    tasks = shard_tasks(plan.manifest, plan.dataset, None)
    with connect(address) as session:
        pool = pool_for_classifiers(session, workers, gpu, len(tasks), size)
        check_shared(reads=[*plan.bundles, plan.dataset])
        from jobs.shards.runner import run_shards

        leaks = None
        if plan.leak_search is not None:
            number = workers if size is None else "auto"
            leaks = search_leaks(plan.leak_search, plan.dataset, plan.manifest, workers=number, address=address)
            if plan.report is not None:
                leaks.save(plan.report)
        job = EvaluateJob(
            bundles=plan.bundles,
            bundle_ids=tuple(record.id for record in plan.records),
            robust_fraction=min(1.0, plan.robustness_pictures / max(plan.manifest.rows, 1)),
            examples=plan.report is not None,
            device=pool.device,
            threads=pool.cpus,
            leaked=None if leaks is None else leaks.keys,
            labels=plan.labels,
            threshold=None if plan.labels is None else plan.threshold,
        )
        results = EvaluateResults(plan)
        todo = results.resume(tasks, job)
        done = {plan.dataset: results.resumed}
        run = run_shards("evaluate", job, todo, pool, results, done=done, used_plugins=plan.used_plugins)
    return content_of(plan, pool, results, run, None if leaks is None else leaks.leaks)


def content_of(
    plan: EvaluatePlan, pool: WorkerPool, results: EvaluateResults, run: ShardRun, leaks: Leaks | None = None
) -> Content:
    """Returns the content of the page.

    Raises:
        StriateError: when no picture could be evaluated, or the dataset was changed during the evaluation.
    """
    totals = results.totals
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Content(
        plan.dataset,
        plan.manifest.digest,
        [_labels_subject(plan, totals.label_scores)]
        if plan.labels is not None
        else [_subject(plan, number, sums, leaks and totals.leaked[number]) for number, sums in enumerate(totals.sums)],
        _throughput(plan, pool, results, run),
        None if totals.pairs is None else compare(totals.pairs),
        f"made {now} by striate {VERSIONS['striate']}",
        leaks,
    )


def _subject(plan: EvaluatePlan, number: int, sums: Sums, leaked: Sums | None) -> Subject:
    record = plan.records[number]
    return Subject(
        name=plan.bundles[number],
        bundle_id=record.id,
        counts=_counts(plan, number, sums),
        evaluation=evaluate(record.classes, sums),
        mistakes=sums.mistakes,
        examples={example.key: example for example in sums.examples},
        record=record.model_dump(mode="json"),
        curves=plan.curves[number],
        robustness=measure(sums.robust, plan.robustness_pictures),
        leak_effect=None if leaked is None else leak_effect(record.classes, sums, leaked),
    )


def _labels_subject(plan: EvaluatePlan, scores: LabelScores) -> Subject:
    (uri,), (record,), (curves,) = plan.bundles, plan.records, plan.curves
    counts = _counts(plan, 0, scores)
    if not any(np.frombuffer(rows.truth, np.uint8).any() for rows in scores.rows):
        raise StriateError(
            f"no picture of {plan.dataset} has a class that {uri} knows in its column '{plan.labels}'; the column has "
            f"{_few(list(scores.unknown)) or 'no names'}, the bundle knows {_few(record.classes)}"
        )
    return Subject(
        name=uri,
        bundle_id=record.id,
        counts=counts,
        evaluation=evaluate_labels(record.classes, scores, plan.threshold),
        mistakes=scores.mistakes,
        examples={example.key: example for example in scores.examples},
        record=record.model_dump(mode="json"),
        curves=curves,
    )


def _counts(plan: EvaluatePlan, number: int, counted: Counted) -> Counts:
    by_reason = (dict(sorted(counter.items())) for counter in (counted.dropped, counted.rejected, counted.unknown))
    counts = Counts(counted.pictures, counted.judged, *by_reason)
    if not counted.judged:
        raise StriateError(
            f"{plan.bundles[number]} could not be evaluated on any picture of {plan.dataset}: {account(counts)}"
        )
    if counts.rows_in != plan.manifest.rows:
        raise StriateError(
            f"{plan.dataset} holds {counts.rows_in:,} pictures, its manifest says {plan.manifest.rows:,}; it was "
            "changed while it was read"
        )
    return counts


def _throughput(plan: EvaluatePlan, pool: WorkerPool, results: EvaluateResults, run: ShardRun) -> Throughput:
    pictures, start_s = run.pictures[plan.dataset], results.start_s or 0.0
    busy_s = run.wall_s - start_s - results.robustness_s / pool.number
    return Throughput(
        pictures_per_s=round(pictures / max(busy_s, 1e-6), 1) if pictures else None,
        wall_s=round(run.wall_s, 3),
        start_s=round(start_s, 3),
        workers=pool.number,
        device=pool.device,
        shards=len(plan.manifest.shards),
        shards_resumed=results.resumed,
        seconds={stage: round(seconds, 3) for stage, seconds in results.totals.seconds.items()},
        ray_data=run.ray_data,
    )
