"""One classifier or two over a dataset, on Ray: `striate evaluate`."""

from __future__ import annotations

import contextlib
import datetime
import json
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.session import connect
from cluster.shared_paths import check_shared
from jobs.places import Places, places_of_classifiers
from library import storage
from library.bundle_record import BundleRecord, load_record
from library.comparison import compare
from library.errors import StriateError, UsageError
from library.evaluation import Outcomes, evaluate, mistakes
from library.inputs import InputPipeline
from library.manifest import Manifest, load_manifest
from library.report import Content, Counts, Subject, account, render, summary
from library.robustness import measure
from library.scoring import ShardScores
from library.training.logs import read_metrics
from library.versions import VERSIONS

PAGE, SUMMARY = "index.html", "summary.json"
ROBUSTNESS_PICTURES = 1000

_MISTAKES = 24


@dataclass(frozen=True)
class EvaluatePlan:
    """What is going to be judged by what; made by `plan_evaluate`.

    Attributes:
        bundles: URIs of one classifier or two.
        records: what they say of themselves.
        curves: lines of their runs' metrics.jsonl.
        dataset: URI.
        report: folder or s3:// of the page; None for no page.
        robustness_pictures: on how many robustness is measured; 0 for not at all.
    """

    bundles: tuple[str, ...]
    records: tuple[BundleRecord, ...]
    curves: tuple[Sequence[Mapping[str, Any]], ...]
    dataset: str
    manifest: Manifest
    report: str | None
    robustness_pictures: int


def plan_evaluate(
    bundles: Sequence[str], dataset: str, *, report: str | None = None, robustness_pictures: int = 0
) -> EvaluatePlan:
    """Check everything that can be checked before Ray is started.

    Raises:
        UsageError: whatever is wrong with the request; no class of the dataset is one that a bundle knows.
    """
    if not 1 <= len(bundles) <= 2:
        raise UsageError(f"{len(bundles)} bundles are given; evaluate one, or two side by side")
    if robustness_pictures < 0:
        raise UsageError(f"--robustness-pictures {robustness_pictures}: at least 1 picture")
    uris, dataset = tuple(storage.normalize(uri) for uri in bundles), storage.normalize(dataset)
    if len(set(uris)) < len(uris):
        raise UsageError(f"{bundles[0]} is given twice; name two bundles to compare them")
    records = tuple(load_record(uri) for uri in uris)
    manifest = load_manifest(dataset)
    for uri, record in zip(uris, records, strict=True):
        if not set(record.classes) & set(manifest.tally.classes):
            raise UsageError(
                f"no picture of {dataset} has a class that {uri} knows; the dataset has "
                f"{_few(list(manifest.tally.classes)) or 'no labels'}, the bundle knows {_few(record.classes)}"
            )
        if not record.members:
            inputs = InputPipeline.parse(record.steps, record.fit, record.input_size, record.channels)
            inputs.check_channels(dataset, manifest.tally.channels)
    if report is not None:
        report = storage.normalize(report)
        _check_report(report, dataset)
    curves = tuple(read_metrics(storage.join(uri, "logs")) for uri in uris)
    return EvaluatePlan(uris, records, curves, dataset, manifest, report, robustness_pictures)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12:,} more" if len(names) > 12 else "")


def _check_report(report: str, dataset: str) -> None:
    if storage.contains(dataset, report):
        raise UsageError(f"--report {report} lies in the dataset; name a folder elsewhere")
    if storage.exists(storage.join(report, PAGE)) and not storage.exists(storage.join(report, SUMMARY)):
        raise UsageError(f"--report {report} holds a page that is not ours; name another folder")
    storage.check_writable(report)


@dataclass
class _Judged:
    """What came back from the workers: scores by shard, for each bundle."""

    scores: dict[str, list[ShardScores]] = field(default_factory=dict[str, list[ShardScores]])
    seconds: Counter[str] = field(default_factory=Counter[str])
    first_s: float = 0.0
    wall_s: float = 0.0


def run_evaluate(
    plan: EvaluatePlan,
    *,
    workers: str = "auto",
    gpu: bool | None = None,
    size: str | None = None,
    address: str | None = None,
) -> Content:
    """Judge every picture, and write the page where the plan has one.

    Args:
        plan: from `plan_evaluate`.
        workers: how many; `auto` is one a GPU, or else one a CPU.
        gpu: whether they use GPUs; None where there are any.
        size: a named size instead of both.
        address: of the Ray cluster.

    Raises:
        StriateError: when a shard fails, or no picture at all can be evaluated.
    """
    with connect(address) as session:
        made = places_of_classifiers(session, workers, gpu, len(plan.manifest.shards), size)
        check_shared(reads=[*plan.bundles, plan.dataset])
        judged = _judge(plan, made)
    content = _content(plan, made, judged)
    if plan.report is not None:
        numbers = json.dumps(summary(content), ensure_ascii=False, allow_nan=False)
        storage.write_bytes(storage.join(plan.report, SUMMARY), (numbers + "\n").encode())
        storage.write_bytes(storage.join(plan.report, PAGE), render(content).encode("utf-8", "replace"))
    return content


def _judge(plan: EvaluatePlan, made: Places) -> _Judged:
    from ray.exceptions import RayError

    from jobs import board
    from jobs.board import Count
    from jobs.evaluate_worker import JudgeJob, JudgeWorker, count_of
    from jobs.metrics import PlanMetrics
    from jobs.progress import Progress
    from jobs.worker_pool import WorkerPool

    rows = plan.manifest.rows
    job = JudgeJob(
        bundles=plan.bundles,
        run=uuid.uuid4().hex,
        device=made.device,
        threads=made.cpus,
        robust_fraction=min(1.0, plan.robustness_pictures / max(rows, 1)),
        examples=_MISTAKES if plan.report is not None else 0,
        dataset=plan.dataset,
    )
    shards = [storage.join(plan.dataset, shard.name) for shard in plan.manifest.shards]
    judged, finished = _Judged(), Count()
    metrics = PlanMetrics("evaluate", {plan.dataset: len(shards)}, {})

    def snapshot() -> Count:
        return Count.total([*board.in_work(job.run), finished])

    start = time.monotonic()
    with Progress("evaluate", len(shards), rows, snapshot):
        pool: WorkerPool[str] = WorkerPool(JudgeWorker, (job,), made.number, num_cpus=made.cpus, num_gpus=made.gpus)
        try:
            for row in pool.run(shards):
                if row["error"]:
                    raise StriateError(row["error"])
                judged.scores[row["shard"]] = row["scores"]
                judged.seconds.update(row["seconds"])
                finished = Count.total([finished, count_of(row["scores"], shards=1)])
                metrics.one_more(plan.dataset)
                began = time.monotonic() - start - row["busy_s"]
                judged.first_s = min(judged.first_s or began, began)
        except RayError as error:
            cause = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
            raise StriateError(
                f"Ray could not run the job: {cause}; is striate installed on every node, in one version?"
            ) from error
        finally:
            with contextlib.suppress(RayError, RuntimeError):  # the head may be gone
                pool.stop()
                board.clear(job.run)
    judged.wall_s = time.monotonic() - start
    return judged


def _content(plan: EvaluatePlan, made: Places, judged: _Judged) -> Content:
    in_order = [judged.scores[storage.join(plan.dataset, shard.name)] for shard in plan.manifest.shards]
    parts = [[scores[number] for scores in in_order] for number in range(len(plan.bundles))]
    outcomes = [_outcomes(record, mine) for record, mine in zip(plan.records, parts, strict=True)]
    subjects = [_subject(plan, number, mine, outcomes[number]) for number, mine in enumerate(parts)]
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Content(
        plan.dataset,
        plan.manifest.digest,
        subjects,
        _throughput(plan, made, judged),
        compare(*outcomes) if len(outcomes) == 2 else None,
        f"made {now} by striate {VERSIONS['striate']}",
    )


def _outcomes(record: BundleRecord, scores: Sequence[ShardScores]) -> Outcomes:
    empty = np.zeros((0, len(record.classes)), np.float32)
    return Outcomes(
        record.classes,
        tuple(key for score in scores for key in score.keys),
        np.asarray([label for score in scores for label in score.truth], np.int64),
        np.concatenate([empty, *(part for score in scores for part in score.probabilities)]),
    )


def _subject(plan: EvaluatePlan, number: int, scores: Sequence[ShardScores], outcomes: Outcomes) -> Subject:
    uri, record = plan.bundles[number], plan.records[number]
    counts = Counts(
        sum(score.rows for score in scores),
        len(outcomes),
        _total(score.dropped for score in scores),
        _total(score.rejected for score in scores),
        _total(score.unknown for score in scores),
    )
    if not len(outcomes):
        raise StriateError(f"{uri} could judge no picture of {plan.dataset}: {account(counts)}")
    if counts.rows_in != plan.manifest.rows:
        raise StriateError(
            f"{plan.dataset} holds {counts.rows_in:,} pictures, its manifest says {plan.manifest.rows:,}; it was "
            "changed while it was read"
        )
    robust = {key: right for score in scores for key, right in score.robust.items()}
    clean = dict(zip(outcomes.keys, outcomes.correct.tolist(), strict=True))
    return Subject(
        name=uri,
        bundle_id=record.id,
        counts=counts,
        evaluation=evaluate(outcomes),
        mistakes=mistakes(outcomes, _MISTAKES),
        examples={example.key: example for score in scores for example in score.examples},
        record=record.model_dump(mode="json"),
        curves=plan.curves[number],
        robustness=measure(robust, clean, plan.robustness_pictures),
    )


def _total(counts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def _throughput(plan: EvaluatePlan, made: Places, judged: _Judged) -> dict[str, Any]:
    """Pictures a second once the first worker is ready, less what robustness takes."""
    busy = judged.wall_s - judged.first_s - judged.seconds.get("robustness", 0.0) / made.number
    return {
        "pictures_per_s": round(plan.manifest.rows / max(busy, 1e-6), 1),
        "wall_s": round(judged.wall_s, 3),
        "start_s": round(judged.first_s, 3),
        "workers": made.number,
        "device": made.device,
        "seconds": {stage: round(seconds, 3) for stage, seconds in judged.seconds.items()},
    }
