"""What a report says: numbers and pictures of one classifier, or of two side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from library.evaluation.comparison import Comparison
from library.evaluation.metrics import Evaluation
from library.evaluation.robustness import CORRUPTIONS, Robustness
from library.evaluation.sums import Example, Mistake


@dataclass(frozen=True)
class Counts:
    """What became of the pictures: `rows_in = evaluated + dropped + rejected`.

    Attributes:
        dropped: by reason: the classifier's own selectors, `no_label`, `unknown_label`.
        rejected: by reason.
        unknown_labels: the labels that the classifier does not know, with their pictures.
    """

    rows_in: int
    evaluated: int
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])
    rejected: Mapping[str, int] = field(default_factory=dict[str, int])
    unknown_labels: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Subject:
    """One classifier and how good it is.

    Attributes:
        name: the bundle's URI, as a title.
        bundle_id: content digest, in hex.
        counts: of pictures.
        evaluation: every number.
        mistakes: the most confident ones, most confident first.
        examples: small pictures of them, by key.
        record: what the bundle says of itself: model, pipeline, provenance.
        curves: one mapping an epoch, of a run's metrics.jsonl; none where there is no such file.
        robustness: where it was measured.
    """

    name: str
    bundle_id: str
    counts: Counts
    evaluation: Evaluation
    mistakes: Sequence[Mistake] = ()
    examples: Mapping[str, Example] = field(default_factory=dict[str, Example])
    record: Mapping[str, Any] = field(default_factory=dict[str, Any])
    curves: Sequence[Mapping[str, Any]] = ()
    robustness: Robustness | None = None


@dataclass(frozen=True)
class Content:
    """A whole report.

    Attributes:
        dataset: URI.
        dataset_digest: of its manifest.
        subjects: one classifier, or two.
        comparison: of two that have judged pictures in common.
        throughput: how fast it went, and on what.
        made: when, and with which version; a line for people.
    """

    dataset: str
    dataset_digest: str
    subjects: Sequence[Subject]
    throughput: Mapping[str, Any]
    comparison: Comparison | None = None
    made: str = ""


def summary(content: Content) -> dict[str, Any]:
    """All numbers as plain data for JSON: of one classifier at the top, of two under `bundles`."""
    numbers = [_numbers(subject) for subject in content.subjects]
    head = {"dataset": content.dataset, "dataset_digest": content.dataset_digest}
    tail = {"throughput": dict(content.throughput)}
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
    """`100 in = 97 evaluated + 2 dropped (blank 2) + 1 rejected (truncated 1)`."""
    dropped, rejected = (_reasons(reasons) for reasons in (counts.dropped, counts.rejected))
    text = f"{counts.rows_in:,} in = {counts.evaluated:,} evaluated + {dropped} dropped + {rejected} rejected"
    if counts.unknown_labels:
        text += f"; labels that it does not know: {_ranked(counts.unknown_labels)}"
    return text


def speed(throughput: Mapping[str, Any]) -> str:
    """`1,234 pictures a second on 2 workers (cpu)`; says so where an earlier run has done all or a part."""
    before = f"{throughput['shards_resumed']:,} of {throughput['shards']:,} shards were judged by an earlier run"
    if throughput["pictures_per_s"] is None:
        return before
    return (
        f"{throughput['pictures_per_s']:,.0f} pictures a second on {throughput['workers']} "
        f"{'worker' if throughput['workers'] == 1 else 'workers'} ({throughput['device']})"
        + (f"; {before}" if throughput["shards_resumed"] else "")
    )


def _numbers(subject: Subject) -> dict[str, Any]:
    evaluation = subject.evaluation
    numbers: dict[str, Any] = {
        "bundle": subject.name,
        "bundle_id": subject.bundle_id,
        "counts": dataclasses.asdict(subject.counts),
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
