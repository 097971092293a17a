"""Commands that find out which pictures should stay: measure."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.console import Json, say
from jobs import output
from jobs.cli.options import Address, DryRun, Size, WorkersUnlessSize, check_size


def measure_command(
    dataset: Annotated[str, typer.Argument(help="Dataset to measure: a folder or s3://bucket/prefix.")],
    out: Annotated[
        str | None,
        typer.Option(
            help="Folder of the side table, for a dataset that cannot be written to.",
            show_default="DATASET/_measures",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Measures to compute, separated by commas, e.g. brightness,phash; `all` for every one.",
            show_default="all but those of mirrored pictures",
        ),
    ] = None,
    workers: WorkersUnlessSize = None,
    size: Size = None,
    dry_run: DryRun = False,
    address: Address = None,
    json: Json = False,
) -> None:
    """Measure every picture of a dataset: size, brightness, contrast, entropy, sharpness, colourfulness and hashes.

    The measures are columns of a side table, `DATASET/_measures/part-*.parquet`, that DuckDB and others can read.
    Columns that are there and up to date are not computed again. A damaged picture has a reason instead of scores.

        striate measure out/raw

        striate measure s3://bucket/raw --columns phash,dhash,phash_flipped,dhash_flipped
    """
    check_size(size, {"--workers": workers})
    from jobs.choosing.measure import measure_dataset, plan_measure
    from library.choosing.measures.measuring import MEASURES

    names = list(MEASURES) if columns == "all" else [name.strip() for name in (columns or "").split(",") if name]
    plan = plan_measure(dataset, names, folder=out)
    if dry_run:
        output.facts(plan.described(), as_json=json)
        return
    result = measure_dataset(plan, workers=workers or "auto", size=size, address=address)
    if json:
        output.emit_json({**plan.described(), "rows": result.rows, "rejected": result.rejected, "run": result.run})
        return
    what = output.counted(len(plan.work.columns), "measure")
    say(f"{plan.folder}: {what} of {output.counted(result.rows, 'picture')}")
    if result.rejected:
        say(f"  {output.reasons('not measured', result.rejected)}")
    done = len(plan.tasks) - len(plan.todo)
    if done:
        say(f"{done:,} of {output.counted(len(plan.tasks), 'shard')} were measured before")
    output.print_time([result.run])
