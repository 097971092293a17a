"""Renders the page: the template is page.html, and this module prepares its values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from library import storage
from library.evaluation.metrics import ClassScore, ConfusedPair, confused_pairs
from library.evaluation.report.charts import line_chart, reliability_chart
from library.evaluation.report.content import Content, Subject, account, leaks_line, speed
from library.evaluation.report.templates import base64_text, template
from library.evaluation.robustness import CORRUPTIONS, STRENGTHS, Robustness
from library.evaluation.several_labels import LabelScore, LabelsEvaluation
from library.evaluation.sums import TOP_K

#: With more classes the matrix would be too large to read, and the most confused pairs are listed instead.
MOST_IN_MATRIX = 100

_PAIRS, _PAIRS_ALONE = 10, 60
_NONE = "\N{EN DASH}"
_IN_ORDER = 30  # more classes than this are listed from the lowest F1
_METRICS = (("top-1", "top1"), (f"top-{TOP_K}", "top5"), ("loss", "loss"))
_LABEL_METRICS = (
    ("mean average precision", "mean_ap"),
    ("F1, micro", "f1_micro"),
    ("F1, macro", "f1_macro"),
    ("all classes right", "subset_accuracy"),
    ("loss", "loss"),
)


def render(content: Content) -> str:
    """Returns a report as one HTML document."""
    names = " and ".join(storage.name_of(subject.name) for subject in content.subjects)
    return template("library.evaluation.report", "page.html").render(
        title=f"{names} on {storage.name_of(content.dataset)}",
        content=content,
        views=[_view(subject, number) for number, subject in enumerate(content.subjects)],
        metrics=_METRICS,
        label_metrics=_LABEL_METRICS,
        top_k=TOP_K,
        strengths=STRENGTHS,
        most_in_matrix=MOST_IN_MATRIX,
        account=account,
        leaks_line=leaks_line,
        speed=speed,
        number="{:,}".format,
        percent=_percent,
        score=_score,
        interval=_interval,
        base64=base64_text,
    )


@dataclass(frozen=True)
class _Curve:
    """One metric over the epochs: a line of the chart and a column of the rows for each name."""

    title: str
    names: list[str]
    chart: Markup
    rows: list[list[str]]


@dataclass(frozen=True)
class _View:
    """What the page shows of one classifier beside its metrics.

    Attributes:
        labels: whether the classifier gives a picture any number of classes.
        confused: the most confused pairs; none with `labels`.
        scores: scores of the classes, in the order of the list.
        order: that order, in words.
        reliability: the reliability chart; empty with `labels`.
        bins: the numbers of that chart, a row for each bin.
        curves: training curves.
        corrupted: for each kind of corruption one cell per strength: its description, and top-1.
        origin: name, value, and the number of entries if the value is collapsed (else 0).
    """

    subject: Subject
    labels: bool
    confused: Sequence[ConfusedPair]
    scores: Sequence[ClassScore] | Sequence[LabelScore]
    order: str
    reliability: Markup
    bins: list[list[str]]
    curves: list[_Curve]
    corrupted: Mapping[str, list[tuple[str, float | None]]]
    origin: list[tuple[str, str, int]]


def _view(subject: Subject, number: int) -> _View:
    evaluation = subject.evaluation
    curves, origin = _curves(subject.curves, number), _origin(subject)
    if isinstance(evaluation, LabelsEvaluation):
        by_name = {score.name: score for score in evaluation.per_class}
        ranked, order = _listed({name: score.average_precision for name, score in by_name.items()}, "average precision")
        return _View(subject, True, [], [by_name[name] for name in ranked], order, Markup(), [], curves, {}, origin)
    alone = len(evaluation.classes) > MOST_IN_MATRIX
    of_class = {score.name: score for score in evaluation.per_class}
    ranked, order = _listed({name: score.f1 for name, score in of_class.items()}, "F1")
    return _View(
        subject=subject,
        labels=False,
        confused=confused_pairs(evaluation.confusion, evaluation.classes, _PAIRS_ALONE if alone else _PAIRS),
        scores=[of_class[name] for name in ranked],
        order=order,
        reliability=reliability_chart(evaluation.calibration, salt=str(number)),
        bins=[
            [f"{one.low:.0%} to {one.high:.0%}", f"{one.count:,}", _percent(one.confidence), _percent(one.accuracy)]
            for one in evaluation.calibration.bins
            if one.count
        ],
        curves=curves,
        corrupted=_corrupted(subject.robustness) if subject.robustness else {},
        origin=origin,
    )


def _listed(values: Mapping[str, float | None], what: str) -> tuple[Sequence[str], str]:
    """Returns the order in which classes are listed, and that order in words; `values` decide it if there are many."""
    if len(values) <= _IN_ORDER:
        return list(values), "in the order of the classifier's outputs"
    return sorted(values, key=lambda name: (values[name] is None, values[name], name)), f"from the lowest {what}"


_CURVES: tuple[tuple[str, dict[str, str], Callable[[float], str]], ...] = (
    ("Loss", {"train_loss": "training", "val_loss": "validation"}, "{:.3g}".format),
    ("Top-1", {"train_top1": "training", "val_top1": "validation"}, lambda share: f"{share * 100:.4g}%"),
    ("F1, micro", {"train_f1": "training", "val_f1": "validation"}, lambda share: f"{share * 100:.4g}%"),
    ("Learning rate", {"lr": "learning rate"}, "{:.3g}".format),
)


def _curves(lines: Sequence[Mapping[str, Any]], number: int) -> list[_Curve]:
    curves: list[_Curve] = []
    for title, names, show in _CURVES:
        series = {
            words: {float(line["epoch"]): float(line[name]) for line in lines if _has(line, name)}
            for name, words in names.items()
        }
        series = {name: points for name, points in series.items() if points}
        lists = {name: list(points.items()) for name, points in series.items()}
        chart = line_chart(lists, x_title="epoch", y_title=title, show=show, salt=str(number))
        if chart:
            epochs = sorted({epoch for points in series.values() for epoch in points})
            rows = [
                [f"{epoch:g}", *(show(points[epoch]) if epoch in points else _NONE for points in series.values())]
                for epoch in epochs
            ]
            curves.append(_Curve(title, list(series), chart, rows))
    return curves


def _has(line: Mapping[str, Any], name: str) -> bool:
    return line.get("epoch") is not None and line.get(name) is not None


def _corrupted(measured: Robustness) -> dict[str, list[tuple[str, float | None]]]:
    units = {"blur": "sigma {:g} px at 224 px", "noise": "deviation {:.0%} of white", "jpeg": "quality {:g}"}
    rows: dict[str, list[tuple[str, float | None]]] = {}
    for corruption, top1, judged in zip(CORRUPTIONS, measured.top1, measured.judged, strict=True):
        amount = units.get(corruption.name, "{:.0%} of the contrast left").format(corruption.amount)
        rows.setdefault(corruption.name, []).append((f"{amount}; {judged:,} pictures", top1))
    return rows


def _origin(subject: Subject) -> list[tuple[str, str, int]]:
    record = {name: value for name, value in subject.record.items() if name not in ("provenance", "classes")}
    values = {"bundle": subject.name, "id": subject.bundle_id, **record, **subject.record.get("provenance", {})}
    return [
        (name.replace("_", " "), *_text(value)) for name, value in values.items() if value not in (None, "", [], {})
    ]


def _text(value: Any) -> tuple[str, int]:
    """Returns a value as text, and its number of entries where it is long enough to be collapsed, else 0."""
    if not isinstance(value, Mapping | list | tuple):
        return str(value), 0
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
    return (text, len(value)) if len(text) >= 100 else (json.dumps(value, ensure_ascii=False, default=str), 0)


def _percent(value: float | None, digits: int = 1) -> str:
    """Returns e.g. `98.8%`; a dash where there is no value."""
    return _NONE if value is None else f"{value * 100:.{digits}f}%"


def _score(value: float, metric: str) -> str:
    return f"{value:.4f}" if metric == "loss" else _percent(value, 2)


def _interval(interval: tuple[float, float], metric: str) -> str:
    scale, digits = (1, 4) if metric == "loss" else (100, 2)
    return " to ".join(f"{end * scale:.{digits}f}" for end in interval)
