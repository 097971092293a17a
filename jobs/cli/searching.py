"""The command that finds out which filter helps: search."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.console import Json, say
from jobs import output
from jobs.cli.options import Address, DryRun, Gpu, Plugins
from library import storage
from library.extras import check_installed


def search_command(
    train: Annotated[str, typer.Argument(help="Dataset to learn from: a folder or s3://bucket/prefix.")],
    val: Annotated[
        str, typer.Option(help="Dataset to compare on: one half chooses finalists, the other half confirms them.")
    ],
    test: Annotated[
        str | None,
        typer.Option(help="Dataset that is looked at once, at the end.", show_default=False),
    ] = None,
    budget: Annotated[
        str, typer.Option(help="Time for everything, e.g. 90s, 30m or 1h30m. What it leaves out is listed.")
    ] = "30m",
    space: Annotated[
        str | None,
        typer.Option(
            help="YAML file with the filters, places and lengths to search.", show_default="every filter, up to pairs"
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recipe that finalists are trained by; its datasets are replaced by these.",
            show_default="LeNet-5 up to 40 px, else a narrow ResNet-9 at 64 px",
        ),
    ] = None,
    cost_weight: Annotated[
        float,
        typer.Option(
            "--cost-weight",
            help="Percentage points of accuracy that a millisecond a picture is worth: a filter that gains less than "
            "its time costs does not win.",
        ),
    ] = 0.0,
    seeds: Annotated[int, typer.Option(help="Paired trainings of each finalist, at least 8.")] = 10,
    margin: Annotated[float, typer.Option(help="Differences up to so many percentage points do not matter.")] = 0.3,
    out: Annotated[
        str, typer.Option(help="Folder or s3:// of the page, the answer and the recipe; a killed search resumes there.")
    ] = "out/search",
    workers: Annotated[str, typer.Option(help="Trainings at the same time, or auto (one per CPU or GPU).")] = "auto",
    gpu: Gpu = None,
    dry_run: DryRun = False,
    address: Address = None,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Find out which filter helps a classifier, or that none does.

    Many filters are compared with none by cheap trainings with the same seeds, and dropped once they are clearly not
    the best; survivors are combined. Finalists are trained by the recipe with fresh seeds and judged on pictures that
    have chosen nothing, with intervals, p-values for all of them together, and placebos. OUT/index.html shows the
    answer, OUT/recipe.yaml trains it.

        striate search out/train --val out/val --test out/test --budget 30m --out out/search

        striate search out/train --val out/val --space space.yaml --recipe recipe.yaml --cost-weight 0.1
    """
    check_installed("torch", "striate search")
    from jobs.search.search_plan import ANSWER, RECIPE, plan_search

    plan = plan_search(
        train,
        val,
        out=out,
        test=test,
        budget=budget,
        space=space,
        recipe=recipe,
        cost_weight=cost_weight,
        seeds=seeds,
        margin_points=margin,
    )
    if dry_run:
        output.facts(plan.described(), as_json=json)
        return
    from jobs.search.running import run_search
    from library.evaluation.report.templates import PAGE

    result = run_search(plan, workers=workers, gpu=gpu, address=address)
    report, answer, page, winner = result.report, *(storage.join(result.out, name) for name in (ANSWER, PAGE, RECIPE))
    if json:
        run = {"computed": result.computed, "run_seconds": round(result.seconds, 1)}
        run |= {"trainings_by_node": dict(result.by_node)}
        output.emit_json(report.to_json() | run | {"report": page, "answer": answer, "recipe": winner})
        return
    say(report.answer.sentence)
    for gain in report.answer.gains:
        say(f"  {gain.candidate.label:40} {gain.text}, {gain.filter_ms:.3g} ms a picture: {gain.verdict}")
    if report.test is not None:
        low, high = (100 * value for value in report.test.interval)
        say(
            f"on the test pictures: {report.test.candidate.label} {report.test.accuracy:.2%}, no filter "
            f"{report.test.identity:.2%}: {100 * report.test.mean:+.1f} points ({low:+.1f} to {high:+.1f})"
        )
    if report.unfinished is not None:
        resume = "The same command resumes, with its budget again" if report.resumes else ""
        say(f"unfinished: {report.unfinished}. {resume}".rstrip(". "))
    if report.looked is not None:
        say(f"note: {report.looked}")
    if report.answer.winner is None:
        say(f"{winner} is the recipe as it was")
    say(f"{report.trainings:,} trainings; open {page} in a browser")
    say(result.train_command)
