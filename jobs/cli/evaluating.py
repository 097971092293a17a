"""`striate evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from cluster.console import Json, Terminal, say, visible
from jobs import output
from jobs.cli.options import Address, Size, WorkersUnlessSize, check_size
from library import storage
from library.errors import UsageError

if TYPE_CHECKING:  # they are heavy, and only this command waits for them
    from library.evaluation.comparison import Comparison
    from library.evaluation.metrics import Evaluation
    from library.evaluation.report import Content
    from library.evaluation.robustness import Robustness

_MOST_CLASSES = 20


def evaluate_command(
    bundles_and_data: Annotated[
        list[str], typer.Argument(metavar="BUNDLE [BUNDLE] DATASET", help="One bundle, or two to compare; a dataset.")
    ],
    report: Annotated[
        str | None,
        typer.Option(
            help="Folder or s3:// for a page with all numbers and pictures. What each shard gives is kept below it, "
            "and a killed run resumes from there; without --report nothing is kept."
        ),
    ] = None,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Measure accuracy under blur, noise, JPEG and low contrast too.")
    ] = False,
    robustness_pictures: Annotated[
        int | None, typer.Option(min=1, help="On at most so many pictures.", show_default="1000")
    ] = None,
    workers: WorkersUnlessSize = None,
    gpu: Annotated[
        bool | None, typer.Option("--gpu/--no-gpu", help="A GPU a worker.", show_default="where there are any")
    ] = None,
    size: Size = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Measure a classifier on a dataset: accuracy, loss, every class, calibration, with 95% intervals.

    Two bundles before the dataset are judged on the same pictures and compared by McNemar's test.

        striate evaluate out/lenet out/mnist/test --report out/report

        striate evaluate out/lenet out/mlp out/mnist/test --robustness
    """
    if len(bundles_and_data) not in (2, 3):
        raise UsageError(f"{len(bundles_and_data)} arguments are given; write BUNDLE DATASET, or BUNDLE BUNDLE DATASET")
    if robustness_pictures is not None and not robustness:
        raise UsageError("--robustness-pictures has no effect without --robustness")
    check_size(size, {"--workers": workers, "--gpu/--no-gpu": gpu})
    from jobs.evaluate import PAGE, ROBUSTNESS_PICTURES, plan_evaluate, run_evaluate
    from library.evaluation.report import summary

    pictures = (robustness_pictures or ROBUSTNESS_PICTURES) if robustness else 0
    *bundles, dataset = bundles_and_data
    plan = plan_evaluate(bundles, dataset, report=report, robustness_pictures=pictures)
    content = run_evaluate(plan, workers=workers or "auto", gpu=gpu, size=size, address=address)
    page = storage.join(plan.report, PAGE) if plan.report is not None else None
    if json:
        output.emit_json(summary(content) | ({"report": page} if page else {}))
        return
    _print(content)
    if page is not None:
        say(f"open {page} in a browser")


def _print(content: Content) -> None:
    from library.evaluation.report import account, speed

    console = Terminal()
    say(f"{content.dataset}: {speed(content.throughput)}")
    for subject in content.subjects:
        console.print(f"\n[bold]{escape(subject.name)}[/]  bundle {subject.bundle_id[:12]}", soft_wrap=True)
        console.print(account(subject.counts), markup=False, soft_wrap=True)
        console.print(_headline(subject.evaluation))
        console.print(_classes(subject.evaluation))
        if subject.robustness is not None:
            clean = subject.robustness.clean
            say(f"top-1 of {subject.robustness.pictures:,} pictures made worse; as they are {clean:.1%}")
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


def _classes(evaluation: Evaluation) -> Table:
    scores, title = list(evaluation.per_class), "classes"
    if len(scores) > _MOST_CLASSES:
        scores.sort(key=lambda score: (score.f1 is None, score.f1, score.name))
        scores, title = scores[:_MOST_CLASSES], f"the {_MOST_CLASSES} classes of lowest F1"
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
    from library.evaluation.robustness import CORRUPTIONS, STRENGTHS

    table = Table(box=None, pad_edge=False)
    table.add_column("made worse")
    for strength in STRENGTHS:
        table.add_column(f"strength {strength}", justify="right")
    cells = dict(zip(((one.name, one.strength) for one in CORRUPTIONS), measured.top1, strict=True))
    for name in dict.fromkeys(one.name for one in CORRUPTIONS):
        table.add_row(name, *(_share(cells[name, strength]) for strength in STRENGTHS))
    return table


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _compared(comparison: Comparison) -> str:
    low, high = comparison.interval
    test = "exact binomial" if comparison.method == "exact" else "chi-square"
    return (
        f"only the first is right on {comparison.only_first:,} pictures, only the second on "
        f"{comparison.only_second:,}; the second's top-1 is {comparison.difference * 100:+.2f} points "
        f"({low * 100:+.2f} to {high * 100:+.2f})\nMcNemar's test ({test}): p = {comparison.p_value:.3g}"
    )
