"""Commands that exchange datasets with other tools, join them, and follow their pictures: convert, merge."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from cluster.console import Json, say
from jobs import output
from jobs.cli.options import Address, DryRun, Limit, Overwrite, Source, Workers
from library.errors import UsageError


def merge_command(
    datasets: Annotated[
        list[str],
        typer.Argument(metavar="DATASET... DESTINATION", help="Two or more datasets, and the dataset to write."),
    ],
    on_clash: Annotated[
        Literal["error", "keep-first", "prefix"],
        typer.Option(
            help="A key that several datasets have: `error` names it, `keep-first` keeps the picture of the first "
            "dataset that has it, `prefix` puts its dataset's name before every key."
        ),
    ] = "error",
    workers: Workers = "auto",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    address: Address = None,
    json: Json = False,
) -> None:
    """Join datasets into one. Pictures are copied as they are; nothing is decoded.

    A column that a dataset lacks is null for its pictures; columns whose types do not fit together are an error that
    names them. The manifest keeps the history of every dataset. The `_rejects/` of the datasets stay where they are.

    To append pictures to a dataset, ingest them and merge both. To undo `striate dedup`, merge its result with its
    source. Run the same command again to resume a killed job.

        striate merge out/day1 out/day2 s3://bucket/all

        striate merge out/day1 out/day2 out/all --on-clash prefix --dry-run

        striate merge out/unique out/raw out/again --on-clash keep-first
    """
    from jobs.exchange.merge import merge_datasets, plan_merge

    if len(datasets) < 3:
        raise UsageError(
            "`striate merge` needs two or more datasets and then the destination, as in `striate merge A B DESTINATION`"
        )
    plan = plan_merge(datasets[:-1], datasets[-1], on_clash=on_clash, overwrite=overwrite)
    if dry_run:
        described = plan.described()
        del described["source"]  # `sources` names them all
        output.facts(described, as_json=json)
        return
    manifest = merge_datasets(plan, workers=workers, address=address)
    output.finished({plan.destination: manifest}, as_json=json)


def convert_command(
    source: Source,
    destination: Annotated[str, typer.Argument(help="Folder to write: a path or s3://bucket/prefix.")],
    to: Annotated[
        Literal["webdataset", "folders", "huggingface", "coco"],
        typer.Option(
            help="`webdataset` (a .tar a shard), `folders` (a folder a class and metadata.jsonl), `huggingface` "
            "(Parquet with an Image and a ClassLabel) or `coco` (images/ and annotations.json)."
        ),
    ],
    workers: Workers = "auto",
    limit: Limit = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    address: Address = None,
    json: Json = False,
) -> None:
    """Write a dataset in the format of another tool; `striate ingest` reads each of them back.

    Pictures keep their exact bytes and their order; keys, labels and further columns come along. Any number of workers
    writes the same bytes. Run the same command again to resume a killed job.

        striate convert out/raw out/wds --to webdataset

        striate convert out/raw s3://bucket/hub --to huggingface
    """
    from jobs.exchange.convert import convert_dataset, plan_convert

    plan = plan_convert(source, destination, to, limit=limit, overwrite=overwrite)
    for note in plan.notes:
        output.stderr.print(f"note: {note}", markup=False, soft_wrap=True)
    if dry_run:
        output.facts(plan.described(), as_json=json)
        return
    record = convert_dataset(plan, workers=workers, address=address)
    if json:
        output.emit_json({"destination": plan.destination, "to": to, **record.model_dump(mode="json")})
        return
    say(
        f"{plan.destination}: {output.counted(record.rows, 'picture')} as {to} in "
        f"{output.counted(record.files, 'file')}, {output.size(record.bytes)}"
    )
