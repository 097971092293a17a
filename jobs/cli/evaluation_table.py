"""Prints an evaluation on the terminal. Imported by `striate evaluate` only: its modules take seconds to import."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from cluster.console import Terminal, say, visible
from library.evaluation.comparison import Comparison
from library.evaluation.leakage import LeakEffect
from library.evaluation.metrics import Evaluation
from library.evaluation.report.content import Content, account, leaks_line, speed
from library.evaluation.robustness import CORRUPTIONS, STRENGTHS, Robustness
from library.evaluation.several_labels import LabelsEvaluation

_MOST_CLASSES = 20


def print_evaluation(content: Content) -> None:
    """Prints the metrics of each classifier, and their comparison if there are two."""
    console = Terminal()
    say(f"{content.dataset}: {speed(content.throughput)}")
    if content.leaks is not None:
        console.print(leaks_line(content.leaks), markup=False, soft_wrap=True)
    for subject in content.subjects:
        console.print(f"\n[bold]{escape(subject.name)}[/]  bundle {subject.bundle_id[:12]}", soft_wrap=True)
        console.print(account(subject.counts), markup=False, soft_wrap=True)
        if isinstance(subject.evaluation, LabelsEvaluation):
            console.print(_label_headline(subject.evaluation))
            console.print(_label_classes(subject.evaluation))
            continue
        console.print(_headline(subject.evaluation))
        if subject.leak_effect is not None:
            console.print(_leak_effect(subject.leak_effect))
        console.print(_classes(subject.evaluation))
        if subject.robustness is not None:
            clean = subject.robustness.clean
            say(f"top-1 of {subject.robustness.pictures:,} corrupted pictures; {clean:.1%} without corruption")
            console.print(_robustness(subject.robustness))
    if content.comparison is not None:
        say(f"\n{_compared(content.comparison)}")


def _headline(evaluation: Evaluation) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, metric in (("top-1", "top1"), ("top-5", "top5"), ("loss", "loss")):
        value, (low, high) = getattr(evaluation, metric), evaluation.intervals[metric]
        form = "{:.4f}" if metric == "loss" else "{:.2%}"
        table.add_row(name, form.format(value), f"95% interval {form.format(low)} to {form.format(high)}")
    table.add_row("calibration error", f"{evaluation.calibration.ece:.4f}", "")
    return table


def _label_headline(evaluation: LabelsEvaluation) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, metric in (
        ("mean average precision", "mean_ap"),
        (f"F1 at {evaluation.threshold:g}, micro", "f1_micro"),
        (f"F1 at {evaluation.threshold:g}, macro", "f1_macro"),
        ("all classes right", "subset_accuracy"),
        ("loss", "loss"),
    ):
        value, (low, high) = getattr(evaluation, metric), evaluation.intervals[metric]
        form = "{:.4f}" if metric == "loss" else "{:.2%}"
        table.add_row(name, form.format(value), f"95% interval {form.format(low)} to {form.format(high)}")
    return table


def _label_classes(evaluation: LabelsEvaluation) -> Table:
    scores, title = list(evaluation.per_class), "classes"
    if len(scores) > _MOST_CLASSES:
        scores.sort(key=lambda score: (score.average_precision is None, score.average_precision, score.name))
        scores, title = scores[:_MOST_CLASSES], f"the {_MOST_CLASSES} classes with the lowest average precision"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("class")
    for name in ("pictures", "AP", "precision", "recall", "F1"):
        table.add_column(name, justify="right")
    for score in scores:
        shares = (score.average_precision, score.precision, score.recall, score.f1)
        table.add_row(escape(visible(score.name)), f"{score.support:,}", *map(_share, shares))
    return table


def _leak_effect(effect: LeakEffect) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, part in (("top-1 without leaks", effect.without), ("top-1 of leaks", effect.leaked)):
        if part is not None:
            low, high = part.intervals["top1"]
            interval = f"95% interval {low:.2%} to {high:.2%}"
            table.add_row(name, f"{part.top1:.2%}", f"{interval}, of {part.pictures:,}")
    if effect.difference is not None and effect.interval is not None:
        low, high = (f"{100 * end:+.2f}" for end in effect.interval)
        table.add_row("effect of leaks", f"{100 * effect.difference:+.2f} points", f"95% interval {low} to {high}")
    return table


def _classes(evaluation: Evaluation) -> Table:
    scores, title = list(evaluation.per_class), "classes"
    if len(scores) > _MOST_CLASSES:
        scores.sort(key=lambda score: (score.f1 is None, score.f1, score.name))
        scores, title = scores[:_MOST_CLASSES], f"the {_MOST_CLASSES} classes with the lowest F1"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("class")
    for name in ("pictures", "precision", "recall", "F1"):
        table.add_column(name, justify="right")
    for score in scores:
        table.add_row(
            escape(visible(score.name)), f"{score.support:,}", *map(_share, (score.precision, score.recall, score.f1))
        )
    return table


def _robustness(measured: Robustness) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("corruption")
    for strength in STRENGTHS:
        table.add_column(f"strength {strength}", justify="right")
    cells = dict(
        zip(((corruption.name, corruption.strength) for corruption in CORRUPTIONS), measured.top1, strict=True)
    )
    for name in dict.fromkeys(corruption.name for corruption in CORRUPTIONS):
        table.add_row(name, *(_share(cells[name, strength]) for strength in STRENGTHS))
    return table


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _compared(comparison: Comparison) -> str:
    low, high = comparison.interval
    test = "exact binomial" if comparison.method == "exact" else "chi-square"
    return (
        f"only the first is correct on {comparison.only_first:,} pictures, only the second on "
        f"{comparison.only_second:,}; the second's top-1 is {comparison.difference * 100:+.2f} points "
        f"({low * 100:+.2f} to {high * 100:+.2f})\nMcNemar's test ({test}): p = {comparison.p_value:.3g}"
    )
