"""The content of a report: numbers and pictures of one classifier, or of two side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from library.evaluation.comparison import Comparison
from library.evaluation.leakage import LeakEffect, Leaks
from library.evaluation.metrics import Evaluation
from library.evaluation.robustness import CORRUPTIONS, Robustness
from library.evaluation.several_labels import LabelsEvaluation
from library.evaluation.sums import Example, Mistake


@dataclass(frozen=True)
class Counts:
    """Counts of the pictures: `rows_in = evaluated + dropped + rejected`.

    Attributes:
        dropped: by reason: the classifier's own selectors, `no_label`, `unknown_label`.
        rejected: by reason.
        unknown_labels: pictures by label that the classifier does not know.
    """

    rows_in: int
    evaluated: int
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])
    rejected: Mapping[str, int] = field(default_factory=dict[str, int])
    unknown_labels: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Subject:
    """One classifier and its results.

    Attributes:
        name: the bundle's URI, as a title.
        bundle_id: content digest, in hex.
        counts: of pictures.
        evaluation: all metrics, of a classifier that gives a picture one class, or any number of them.
        mistakes: the most confident ones, most confident first.
        examples: small pictures of them, by key.
        record: the bundle's record: model, pipeline, provenance.
        curves: lines of the run's metrics.jsonl, one per epoch; empty where there is no such file.
        robustness: None where it was not measured.
        leak_effect: None where leaks were not looked for.
    """

    name: str
    bundle_id: str
    counts: Counts
    evaluation: Evaluation | LabelsEvaluation
    mistakes: Sequence[Mistake] = ()
    examples: Mapping[str, Example] = field(default_factory=dict[str, Example])
    record: Mapping[str, Any] = field(default_factory=dict[str, Any])
    curves: Sequence[Mapping[str, Any]] = ()
    robustness: Robustness | None = None
    leak_effect: LeakEffect | None = None


@dataclass(frozen=True)
class Throughput:
    """The speed of an evaluation.

    Attributes:
        pictures_per_s: in this run, from the first worker's start, without robustness; None where an earlier run judged
            every shard.
        wall_s: seconds of this run.
        start_s: seconds until the first worker began with a shard.
        workers: number of workers.
        device: cpu or cuda.
        shards: all shards of the dataset.
        shards_resumed: shards that an earlier run judged.
        seconds: sum over all shards of the seconds spent in each stage.
        ray_data: statistics of Ray Data, as it prints them.
    """

    pictures_per_s: float | None
    wall_s: float
    start_s: float
    workers: int
    device: str
    shards: int
    shards_resumed: int
    seconds: Mapping[str, float]
    ray_data: Sequence[str]


@dataclass(frozen=True)
class Content:
    """A whole report.

    Attributes:
        dataset: URI.
        dataset_digest: digest of its manifest.
        subjects: one classifier, or two.
        comparison: of two classifiers that have judged pictures in common.
        throughput: speed of the run.
        footer: a line with date and version.
        leaks: pictures of the dataset that a training set holds, too; None where they were not looked for.
    """

    dataset: str
    dataset_digest: str
    subjects: Sequence[Subject]
    throughput: Throughput
    comparison: Comparison | None = None
    footer: str = ""
    leaks: Leaks | None = None


def summary(content: Content) -> dict[str, Any]:
    """Returns all numbers as plain data for JSON: of one classifier at the top level, of two under `bundles`."""
    numbers = [_numbers(subject) for subject in content.subjects]
    head = {"dataset": content.dataset, "dataset_digest": content.dataset_digest}
    tail: dict[str, Any] = {"throughput": dataclasses.asdict(content.throughput)}
    if content.leaks is not None:
        tail = {"leaks": dataclasses.asdict(content.leaks), **tail}
    if len(numbers) == 1:
        return {
            "bundle": numbers[0].pop("bundle"),
            "bundle_id": numbers[0].pop("bundle_id"),
            **head,
            **numbers[0],
            **tail,
        }
    compared = content.comparison and dataclasses.asdict(content.comparison)
    return {**head, "bundles": numbers, "comparison": compared, **tail}


def account(counts: Counts) -> str:
    """Returns a line such as `100 in = 97 evaluated + 2 (blank 2) dropped + 1 (truncated 1) rejected`."""
    dropped, rejected = (_reasons(reasons) for reasons in (counts.dropped, counts.rejected))
    text = f"{counts.rows_in:,} in = {counts.evaluated:,} evaluated + {dropped} dropped + {rejected} rejected"
    if counts.unknown_labels:
        text += f"; labels unknown to the classifier: {_ranked(counts.unknown_labels)}"
    return text


def leaks_line(leaks: Leaks) -> str:
    """Returns a line such as `310 of 10,000 pictures leaked from out/train: near_duplicate 300, exact_duplicate 10`."""
    kinds = f": {_ranked(leaks.kinds)}" if leaks.leaked else ""
    differ = f"; {leaks.labels_differ:,} of them have another label there" if leaks.labels_differ else ""
    return (
        f"{leaks.leaked:,} of {leaks.pictures:,} pictures leaked from {' and '.join(leaks.trained_on)}{kinds}{differ}"
    )


def speed(throughput: Throughput) -> str:
    """Returns a line such as `1,234 pictures a second on 2 workers (cpu)`, with the shards of an earlier run."""
    resumed = f"{throughput.shards_resumed:,} of {throughput.shards:,} shards were judged by an earlier run"
    if throughput.pictures_per_s is None:
        return resumed
    return (
        f"{throughput.pictures_per_s:,.0f} pictures a second on {throughput.workers} "
        f"{'worker' if throughput.workers == 1 else 'workers'} ({throughput.device})"
        + (f"; {resumed}" if throughput.shards_resumed else "")
    )


def _numbers(subject: Subject) -> dict[str, Any]:
    evaluation = subject.evaluation
    head: dict[str, Any] = {
        "bundle": subject.name,
        "bundle_id": subject.bundle_id,
        "counts": dataclasses.asdict(subject.counts),
    }
    if isinstance(evaluation, LabelsEvaluation):
        mistakes = [dataclasses.asdict(mistake) for mistake in subject.mistakes]
        return {**head, "multilabel": True, **dataclasses.asdict(evaluation), "mistakes": mistakes}
    numbers = {
        **head,
        "top1": evaluation.top1,
        "top5": evaluation.top5,
        "loss": evaluation.loss,
        "intervals": {name: list(interval) for name, interval in evaluation.intervals.items()},
        "calibration": dataclasses.asdict(evaluation.calibration),
        "classes": list(evaluation.classes),
        "per_class": [dataclasses.asdict(score) for score in evaluation.per_class],
        "confusion": evaluation.confusion.tolist(),
        "mistakes": [dataclasses.asdict(mistake) for mistake in subject.mistakes],
    }
    if subject.robustness is not None:
        numbers["robustness"] = _robustness(subject.robustness)
    if subject.leak_effect is not None:
        numbers["leak_effect"] = dataclasses.asdict(subject.leak_effect)
    return numbers


def _robustness(measured: Robustness) -> dict[str, Any]:
    corrupted = [
        {**dataclasses.asdict(corruption), "top1": top1, "judged": judged}
        for corruption, top1, judged in zip(CORRUPTIONS, measured.top1, measured.judged, strict=True)
    ]
    return {"pictures": measured.pictures, "clean": measured.clean, "corrupted": corrupted}


def _reasons(reasons: Mapping[str, int]) -> str:
    total = sum(reasons.values())
    return f"{total:,} ({_ranked(reasons)})" if total else "0"


def _ranked(counts: Mapping[str, int]) -> str:
    return ", ".join(
        f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
