"""Commands that exchange datasets with other tools, join them, and follow
their pictures: convert, merge, remove, trace."""

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
    if record.boxes_left_out:
        left_out = f"{record.boxes_left_out:,}"
        say(f"boxes without numbers, or without a name while the picture has no label, left out: {left_out}")


Folders = Annotated[
    list[str] | None,
    typer.Option("--in", help="Folder with datasets and bundles to look at, also deep below it. Repeatable."),
]


def remove_command(
    dataset: Annotated[str, typer.Argument(help="Dataset to take pictures out of: a folder or s3://bucket/prefix.")],
    keys: Annotated[
        str, typer.Option(help="File with the keys: a text with one a line, or a CSV or Parquet with a column of them.")
    ],
    destination: Annotated[
        str | None, typer.Argument(help="Dataset to write without them.", show_default="DATASET itself is changed")
    ] = None,
    key_column: Annotated[
        str | None, typer.Option(help="Column of the CSV or Parquet file.", show_default="key")
    ] = None,
    ignore_unknown: Annotated[
        bool, typer.Option("--ignore-unknown", help="Accept keys that the dataset does not hold.")
    ] = False,
    folders: Folders = None,
    workers: Workers = "auto",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    address: Address = None,
    json: Json = False,
) -> None:
    """Remove pictures and rejects from a dataset, and name the bundles and datasets that hold or have learned them.

    Only the shards that hold such keys are written again, and no picture is decoded. The dataset stays whole until the
    new shards are ready; after a kill, the same command completes the removal. Other datasets are named, not changed.

        striate remove out/raw --keys keys.txt --dry-run

        striate remove out/raw --keys withdrawn.csv --key-column picture --in out --in s3://bucket/models
    """
    from jobs.exchange.remove import find_affected, plan_remove, remove_pictures
    from library.exchange.removal import read_keys

    plan = plan_remove(
        dataset,
        read_keys(keys, key_column),
        destination=destination,
        ignore_unknown=ignore_unknown,
        overwrite=overwrite,
    )
    if plan.unknown:
        output.stderr.print(
            f"note: {output.counted(len(plan.unknown), 'key')} not in the dataset: {', '.join(plan.unknown[:5])}",
            markup=False,
            soft_wrap=True,
        )
    affected = find_affected(plan, folders or ())
    if dry_run and json:
        output.emit_json(plan.described() | {"affected": affected.described()})
    elif dry_run:
        output.facts(plan.described(), as_json=False)
    else:
        manifest = remove_pictures(plan, workers=workers, address=address)
        written = {plan.destination or plan.dataset: manifest}
        if json:
            output.emit_json(output.summaries(written) | {"affected": affected.described()})
        else:
            output.finished(written, as_json=False)
    if not json:
        for use in affected.uses:
            say(f"bundle {use.bundle_id[:12]} in {use.bundle} was made with them ({use.role}: {use.dataset})")
        for uri, number in affected.datasets.items():
            say(f"{uri} holds {output.counted(number, 'picture')} of them, or made from them")
        for uri in affected.exports:
            say(f"{uri} was exported from a dataset that holds some of them")
        for problem in affected.problems:
            say(f"note: {problem}")
        say("note: reports, bundles, exports and other datasets were not changed; copies of the pictures stay there")


def trace_command(
    subject: Annotated[
        str,
        typer.Argument(help="A picture's key; or a dataset, such as predictions; or a bundle, its folder or its id."),
    ],
    folders: Folders = None,
    json: Json = False,
) -> None:
    """Follow a picture, a dataset or a bundle back to its sources, and forward to all that was made from it.

    A picture is shown with the SHA-256 of its bytes in each dataset, so it is seen where they change. Digests decide
    what belongs together, not names. Without --in, the folder around a dataset or bundle is looked at, or else the
    current one.

        striate trace cat/1.jpg --in out

        striate trace out/predictions --in out --in s3://bucket/models
    """
    from jobs.exchange.trace import print_trace, trace_subject

    result = trace_subject(subject, folders or ())
    if json:
        output.emit_json(result.described())
    else:
        print_trace(result)
