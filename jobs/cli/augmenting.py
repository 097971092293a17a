"""The command `striate augment`."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.console import Json
from jobs import output
from jobs.cli.options import Address, Workers


def augment_command(
    source: Annotated[str, typer.Argument(help="Dataset to read: a folder or s3://bucket/prefix.")],
    destination: Annotated[str, typer.Argument(help="Dataset to make.")],
    steps: Annotated[
        str, typer.Option(help="""Augmentations, e.g. "rotate(15) | flip(p=0.5)"; filters may be among them.""")
    ],
    copies: Annotated[int, typer.Option(help="Random copies of each picture, under the keys KEY#1, KEY#2, ...")],
    keep_original: Annotated[
        bool, typer.Option("--keep-original", help="Write each picture, unchanged, under its own key too.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of all randomness.")] = 0,
    encode: Annotated[
        str, typer.Option(help="How changed pictures are stored: keep, jpeg:95, png, webp:90, tiff, npy.")
    ] = "keep",
    workers: Workers = "auto",
    limit: Annotated[int | None, typer.Option(help="Only the first so many pictures, to try a pipeline out.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what another job left there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    address: Address = None,
    json: Json = False,
) -> None:
    """Write random copies of every picture of a dataset.

    A copy is drawn by the seed, its number and the key of the picture, and by nothing else: any number of workers
    leaves the same bytes. Counts are in copies: of each picture as many are in, and each is out or rejected.
    `striate show DATASET --steps ... --augment 8` draws the same copies, to look at them first.

        striate augment out/raw out/more --steps "rotate(15) | flip(p=0.5) | zoom(0.2)" --copies 4

        striate augment out/raw out/more --steps "sometimes(0.3, gaussian_blur(sigma=1)) | hue(0.1)" --copies 2 --seed 7
    """
    from jobs.augment import augment_dataset, plan_augment

    plan = plan_augment(
        source,
        destination,
        steps,
        copies=copies,
        keep_original=keep_original,
        seed=seed,
        encode=encode,
        limit=limit,
        overwrite=overwrite,
    )
    if dry_run:
        output.facts(plan.described(), as_json=json)
        return
    manifest = augment_dataset(plan, workers=workers, address=address)
    output.finished({plan.destination: manifest}, as_json=json)
