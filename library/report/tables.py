"""The tables of the page: confusion matrix, classes, robustness, two classifiers side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from library.comparison import Comparison
from library.evaluation import ConfusedPair, Evaluation, confused_pairs
from library.report.content import Subject
from library.robustness import CORRUPTIONS, STRENGTHS, Robustness

#: With more classes the matrix would be too large to read: the most confused pairs are listed instead.
MOST_IN_MATRIX = 100

_PAIRS = 10
_PAIRS_ALONE = 60
_DEEP = 60  # percent of colour from which the text takes the colour of the paper
_IN_ORDER = 30  # more classes than this are listed from the worst


def percent(value: float | None, digits: int = 1) -> str:
    """`98.8%`; a dash where there is no value."""
    return "&ndash;" if value is None else f"{value * 100:.{digits}f}%"


def confusion(evaluation: Evaluation) -> str:
    """The matrix, and the pairs that are confused most."""
    pairs = confused_pairs(
        evaluation.confusion,
        evaluation.classes,
        _PAIRS if len(evaluation.classes) <= MOST_IN_MATRIX else _PAIRS_ALONE,
    )
    if len(evaluation.classes) > MOST_IN_MATRIX:
        words = f"The {len(evaluation.classes):,} classes are too many for a matrix; these pairs are confused most."
        return f"<p class='quiet'>{words}</p>{_pairs(pairs)}"
    return f"<div class='beside'>{_matrix(evaluation)}<div class='rest'>{_pairs(pairs)}</div></div>"


def _matrix(evaluation: Evaluation) -> str:
    names = [escape(name) for name in evaluation.classes]
    support = np.maximum(evaluation.confusion.sum(1), 1)
    upright = "upright" if len(names) > 10 or max(map(len, evaluation.classes)) > 5 else ""
    cell, size = ("2.6rem", ".85rem") if len(names) <= 20 else ("1.55rem", ".68rem")
    head = "".join(f"<th scope='col'><span title='{name}'>{name}</span></th>" for name in names)
    rows: list[str] = []
    for number, name in enumerate(names):
        cells = "".join(
            _cell(number, column, int(count), float(count / support[number]), evaluation.classes)
            for column, count in enumerate(evaluation.confusion[number])
        )
        rows.append(f"<tr><th scope='row'><span title='{name}'>{name}</span></th>{cells}</tr>")
    table = (
        f"<table class='heat {upright}' style='--cell:{cell};--size:{size}'>"
        "<caption>Pictures by true class (rows) and predicted class (columns)</caption>"
        f"<thead><tr><th>true \\ predicted</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
    words = "Colour is the share of the true class; that of mistakes is drawn stronger, as its square root."
    return f"<div>{_scrolling('confusion matrix', table)}<p class='quiet'>{words}</p></div>"


def _scrolling(name: str, table: str) -> str:
    """A table that is scrolled where it is too large; by keyboard too."""
    return f"<div class='scroll' tabindex='0' role='region' aria-label='{name}'>{table}</div>"


def _cell(row: int, column: int, count: int, share: float, classes: Sequence[str]) -> str:
    if not count:
        return "<td></td>"
    if row == column:
        kind, colour = "hit", 100 * share
        words = f"{classes[row]}: {count:,} right ({share:.1%})"
    else:
        kind, colour = "miss", max(6.0, 100 * math.sqrt(share))
        words = f"{classes[row]} taken for {classes[column]}: {count:,} ({share:.1%})"
    deep = " deep" if colour >= _DEEP else ""
    return f"<td class='{kind}{deep}' style='--v:{colour:.0f}' title='{escape(words)}'>{count}</td>"


def _pairs(pairs: Sequence[ConfusedPair]) -> str:
    if not pairs:
        return "<p>No picture was taken for another class.</p>"
    rows = "".join(
        f"<tr><th scope='row'>{escape(pair.label)}</th><td>{escape(pair.predicted)}</td>"
        f"<td class='n'>{pair.count:,}</td><td>{bar(pair.share)}</td></tr>"
        for pair in pairs
    )
    return (
        "<table class='list'><caption>Most confused pairs</caption><thead><tr>"
        "<th scope='col'>true class</th><th scope='col'>taken for</th><th scope='col' class='n'>pictures</th>"
        f"<th scope='col'>share of the true class</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def classes(evaluation: Evaluation) -> str:
    """Precision, recall and F1 of each class as bars; many classes from the worst F1 on."""
    scores = list(evaluation.per_class)
    order = "in the order of the classifier's outputs"
    if len(scores) > _IN_ORDER:
        order = "from the lowest F1 on"
        scores.sort(key=lambda score: (score.f1 is None, score.f1, score.name))
    rows = "".join(
        f"<tr><th scope='row'>{escape(score.name)}</th><td class='n'>{score.support:,}</td>"
        f"<td>{bar(score.precision)}</td><td>{bar(score.recall)}</td><td>{bar(score.f1)}</td></tr>"
        for score in scores
    )
    table = (
        f"<table class='list'><caption>The classes, {order}</caption><thead><tr><th scope='col'>class</th>"
        "<th scope='col' class='n'>pictures</th><th scope='col'>precision</th><th scope='col'>recall</th>"
        f"<th scope='col'>F1</th></tr></thead><tbody>{rows}</tbody></table>"
    )
    words = (
        "Precision: how many of those taken for the class belong to it; recall: how many of the class were found; "
        "F1: their harmonic mean."
    )
    return f"{_scrolling('classes', table)}<p class='quiet'>{words}</p>"


def bar(value: float | None) -> str:
    """A share as a number and a bar."""
    if value is None:
        return "<span class='bar'><b>&ndash;</b></span>"
    return f"<span class='bar' style='--v:{100 * value:.1f}'><b>{percent(value)}</b><i></i></span>"


def calibration(evaluation: Evaluation) -> str:
    """The numbers under the reliability chart."""
    rows = "".join(
        f"<tr><th scope='row'>{one.low:.0%} to {one.high:.0%}</th><td class='n'>{one.count:,}</td>"
        f"<td class='n'>{percent(one.confidence)}</td><td class='n'>{percent(one.accuracy)}</td></tr>"
        for one in evaluation.calibration.bins
        if one.count
    )
    return (
        "<details><summary>The numbers</summary><table class='list'><thead><tr><th scope='col'>confidence</th>"
        "<th scope='col' class='n'>pictures</th><th scope='col' class='n'>mean confidence</th>"
        f"<th scope='col' class='n'>accuracy</th></tr></thead><tbody>{rows}</tbody></table></details>"
    )


def robustness(measured: Robustness) -> str:
    """Accuracy under each corruption, as a heat map."""
    units = {"blur": "sigma {:g} px at 224 px", "noise": "deviation {:.0%} of white", "jpeg": "quality {:g}"}
    head = "".join(f"<th scope='col'>strength {strength}</th>" for strength in STRENGTHS)
    cells = list(zip(CORRUPTIONS, measured.top1, measured.judged, strict=True))
    rows: list[str] = []
    for first in range(0, len(cells), len(STRENGTHS)):
        group = cells[first : first + len(STRENGTHS)]
        drawn = ""
        for corruption, top1, judged in group:
            amount = units.get(corruption.name, "{:.0%} of the contrast left").format(corruption.amount)
            words, colour = f"{amount}; {judged:,} pictures", 100 * (top1 or 0)
            deep = " deep" if colour >= _DEEP else ""
            drawn += f"<td class='hit{deep}' style='--v:{colour:.0f}' title='{words}'>{percent(top1)}</td>"
        rows.append(f"<tr><th scope='row'>{group[0][0].name}</th>{drawn}</tr>")
    return (
        f"<p>Top-1 of {measured.pictures:,} pictures made worse before the classifier's own pipeline; as they are: "
        f"<b>{percent(measured.clean)}</b>. Amounts are those of ImageNet-C (severities 1, 3 and 5).</p>"
        "<table class='heat' style='--cell:3.2rem;--size:.9rem'><caption>Top-1 under corruption</caption>"
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def side_by_side(subjects: Sequence[Subject], comparison: Comparison | None) -> str:
    """Two classifiers' numbers beside each other, and McNemar's test in words."""
    columns = "".join(f"<th scope='col'>{escape(subject.name)}</th>" for subject in subjects)
    rows = "".join(
        f"<tr><th scope='row'>{name}</th>"
        + "".join(f"<td>{interval_of(subject.evaluation, metric)}</td>" for subject in subjects)
        + "</tr>"
        for name, metric in (("top-1", "top1"), ("top-5", "top5"), ("loss", "loss"))
    )
    errors = "".join(f"<td>{subject.evaluation.calibration.ece:.4f}</td>" for subject in subjects)
    table = (
        "<table class='list'><caption>With 95% bootstrap intervals</caption>"
        f"<thead><tr><th></th>{columns}</tr></thead><tbody>{rows}"
        f"<tr><th scope='row'>calibration error</th>{errors}</tr></tbody></table>"
    )
    return _scrolling("two classifiers", table) + (
        _mcnemar(comparison) if comparison else "<p>They have judged no picture in common.</p>"
    )


def _mcnemar(comparison: Comparison) -> str:
    low, high = (f"{value * 100:+.2f}" for value in comparison.interval)
    test = "exact binomial" if comparison.method == "exact" else "chi-square with continuity correction"
    verdict = "is unlikely to be chance" if comparison.p_value < 0.05 else "may well be chance"
    return (
        "<table class='list narrow'><caption>The same pictures</caption><thead><tr><th></th>"
        "<th scope='col' class='n'>second right</th><th scope='col' class='n'>second wrong</th></tr></thead><tbody>"
        f"<tr><th scope='row'>first right</th><td class='n'>{comparison.both:,}</td>"
        f"<td class='n'>{comparison.only_first:,}</td></tr><tr><th scope='row'>first wrong</th>"
        f"<td class='n'>{comparison.only_second:,}</td><td class='n'>{comparison.neither:,}</td></tr></tbody></table>"
        f"<p>Only the first is right on {comparison.only_first:,} pictures, only the second on "
        f"{comparison.only_second:,}: the second's top-1 is {comparison.difference * 100:+.2f} points "
        f"(95% interval {low} to {high}). McNemar's test ({test}): p = {comparison.p_value:.3g}; so uneven a split "
        f"{verdict}.</p>"
    )


def interval_of(evaluation: Evaluation, metric: str) -> str:
    """A number with its interval: `99.05% (98.86 to 99.24)`."""
    value, (low, high) = getattr(evaluation, metric), evaluation.intervals[metric]
    if metric == "loss":
        return f"{value:.4f} ({low:.4f} to {high:.4f})"
    return f"{percent(value, 2)} ({low * 100:.2f} to {high * 100:.2f})"
