"""Commands on datasets: ingest, filter, augment, info, show; the demo that runs them all, and the tour."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cluster.console import Json, say
from jobs import output
from jobs.cli.options import (
    Address,
    Boxes,
    Destination,
    DryRun,
    Encode,
    Limit,
    Masks,
    Measure,
    MinBoxShare,
    Overwrite,
    Plugins,
    Size,
    Source,
    Steps,
    Workers,
    WorkersUnlessSize,
    check_size,
)
from library import storage
from library.extras import check_installed

_LINKS = "Lists of links (http:// and https://)"


def ingest_command(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder, tar, tar.gz, zip, WebDataset, MNIST IDX, CIFAR, Parquet, or CSV/JSONL with paths or links."
        ),
    ],
    destination: Destination,
    split: Annotated[
        str,
        typer.Option(
            help="`found` (the splits of the source), `none`, or fractions of each class: train=0.8,val=0.1,test=0.1."
        ),
    ] = "found",
    shard_mb: Annotated[
        float | None, typer.Option(help="Size of a shard in MiB.", show_default="128, or less for a small source")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the shuffling.")] = 0,
    label_column: Annotated[str | None, typer.Option(help="Column or JSON field with the class name.")] = None,
    label_level: Annotated[
        int | None,
        typer.Option(
            help="Folder that names the class: 1 is the first below SOURCE, -1 the innermost, 0 none.",
            show_default="the first level with several folders",
        ),
    ] = None,
    key_column: Annotated[str | None, typer.Option(help="Column with unique keys.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column with the picture, its path or its link.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Decode every picture; otherwise only headers are checked.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Remove stray bytes from JPEGs with intact pixels instead of rejecting them; implies --verify.",
        ),
    ] = False,
    measure: Measure = False,
    max_bad_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Fail if more than this share is rejected; everything is written first.")
    ] = 0.05,
    workers: Workers = "auto",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    address: Address = None,
    json: Json = False,
    links_per_host: Annotated[int, typer.Option(help="Concurrent requests to one host.", rich_help_panel=_LINKS)] = 4,
    link_connections: Annotated[int, typer.Option(help="Concurrent requests in total.", rich_help_panel=_LINKS)] = 32,
    link_retries: Annotated[int, typer.Option(help="Retries after a temporary failure.", rich_help_panel=_LINKS)] = 3,
    link_timeout_s: Annotated[
        float, typer.Option(help="Timeout of one request in seconds.", rich_help_panel=_LINKS)
    ] = 60,
    link_max_mb: Annotated[float, typer.Option(help="Maximum size of a picture in MiB.", rich_help_panel=_LINKS)] = 32,
    allow_address: Annotated[
        list[str] | None,
        typer.Option(
            help="Private network that links may point to, e.g. 10.0.0.0/8. Repeatable.",
            rich_help_panel=_LINKS,
        ),
    ] = None,
) -> None:
    """Turn pictures from any source into a dataset: shuffled Parquet shards and a manifest.

    The class of a picture is its folder at the first level that has several folders, unless the source names classes
    itself. Unusable files go to `_rejects/` with their bytes and a reason.

        striate ingest cats-dogs.tar out/raw --split train=0.8,test=0.2

        striate ingest s3://bucket/list.csv s3://bucket/raw --label-column species --verify

        striate ingest links.csv out/raw --image-column url --links-per-host 2
    """
    from jobs.ingest import check_bad_fraction, ingest, plan_ingest
    from library.dataset.manifest import skipped_text
    from library.sources import LinkLimits, Options

    links = LinkLimits(
        connections=link_connections,
        per_host=links_per_host,
        retries=link_retries,
        timeout_s=link_timeout_s,
        max_bytes=int(link_max_mb * 2**20),
        allowed=tuple(allow_address or ()),
    )
    plan = plan_ingest(
        source,
        destination,
        options=Options(label_column, key_column, image_column, label_level, links),
        shard_mb=shard_mb,
        seed=seed,
        split=split,
        verify=verify,
        repair=repair,
        measure=measure,
        overwrite=overwrite,
    )
    classes = output.classes(plan.listing.classes, plan.listing.index.num_rows)
    output.stderr.print(
        f"{source}: {output.counted(plan.listing.index.num_rows, 'picture')}, {classes}", markup=False, soft_wrap=True
    )
    for note in plan.listing.notes:
        output.stderr.print(f"note: {note}", markup=False, soft_wrap=True)
    if dry_run:
        described = plan.described()
        if not json:
            del described["notes"]  # printed above
            described["skipped"] = skipped_text(plan.listing.skipped).removeprefix("skipped ")
        output.facts(described, as_json=json)
        return
    manifests = ingest(plan, workers=workers, address=address)
    if not json:
        output.finished(manifests, as_json=False, notes=plan.listing.notes)
    check_bad_fraction(manifests, max_bad_fraction)
    if json:
        output.finished(manifests, as_json=True, notes=plan.listing.notes)


def filter_command(
    source: Source,
    destination: Destination,
    steps: Steps = "",
    encode: Encode = "keep",
    workers: WorkersUnlessSize = None,
    size: Size = None,
    limit: Limit = None,
    measure: Measure = False,
    masks: Masks = None,
    boxes: Boxes = None,
    min_box_share: MinBoxShare = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    address: Address = None,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Run a pipeline of filters and selectors over every picture of a dataset.

    Run the same command again to resume a killed job; the output has the same bytes as an uninterrupted run. Columns
    `mask` and `boxes` follow the pictures when a step moves pixels.

        striate filter out/raw out/edges --steps "grayscale | gaussian_blur(sigma=1.5) | edges(direction='vertical')"

        striate filter out/raw s3://bucket/small --steps "min_size(64) | resize(224)" --encode jpeg:90

        striate filter out/raw out/small --steps "resize(224)" --masks segmentation --boxes objects --min-box-share 0.3
    """
    check_size(size, {"--workers": workers})
    from jobs.filter import filter_dataset, plan_filter
    from library.pipeline.annotations import Wanted

    plan = plan_filter(
        source,
        destination,
        steps,
        encode=encode,
        limit=limit,
        measure=measure,
        wanted=Wanted(masks or (), boxes or (), min_box_share),
        overwrite=overwrite,
    )
    if dry_run:
        output.facts(plan.described(), as_json=json)
        return
    manifest = filter_dataset(plan, workers=workers or "auto", size=size, address=address)
    output.finished({plan.destination: manifest}, as_json=json)


def augment_command(
    source: Source,
    destination: Destination,
    steps: Annotated[
        str, typer.Option(help="""Augmentations, and filters between them, e.g. "rotate(15) | flip(p=0.5)".""")
    ],
    copies: Annotated[
        int, typer.Option(help="Number of random copies of each picture; their keys are KEY#1, KEY#2, ...")
    ],
    keep_original: Annotated[
        bool, typer.Option("--keep-original", help="Also write each picture unchanged, under its own key.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random parameters.")] = 0,
    encode: Encode = "keep",
    workers: Workers = "auto",
    limit: Limit = None,
    masks: Masks = None,
    boxes: Boxes = None,
    min_box_share: MinBoxShare = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    address: Address = None,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Write random copies of every picture of a dataset.

    A copy depends only on the seed, the picture's key and the copy's number, so any number of workers writes the
    same bytes. The result counts copies; progress counts the source's pictures. `striate show DATASET --steps ...
    --augment 8` shows the same copies beforehand.

        striate augment out/raw out/more --steps "rotate(15) | flip(p=0.5) | zoom(0.2)" --copies 4

        striate augment out/raw out/more --steps "sometimes(0.3, gaussian_blur(sigma=1)) | hue(0.1)" --copies 2 --seed 7
    """
    from jobs.augment import augment_dataset, plan_augment
    from library.pipeline.annotations import Wanted

    plan = plan_augment(
        source,
        destination,
        steps,
        copies=copies,
        keep_original=keep_original,
        seed=seed,
        encode=encode,
        limit=limit,
        wanted=Wanted(masks or (), boxes or (), min_box_share),
        overwrite=overwrite,
    )
    if dry_run:
        output.facts(plan.described(), as_json=json)
        return
    manifest = augment_dataset(plan, workers=workers, address=address)
    output.finished({plan.destination: manifest}, as_json=json)


def info_command(
    dataset: Annotated[
        str, typer.Argument(help="Dataset, folder with the splits of one, or output folder of a training.")
    ],
    json: Json = False,
) -> None:
    """Show the contents of a dataset: rows, bytes, classes, sizes, formats, history and rejects.

    For a dataset that a job is still writing, also its progress: shards and pictures done, pictures per second, and the
    time of the last shard. For a training: its epochs and latest metrics. Only the folder itself is read, so this works
    from any machine.

        striate info out/raw

        striate info s3://bucket/edges
    """
    from jobs.inspection.info import datasets_below, print_info
    from jobs.train.run_folder import describe_run

    training = describe_run(dataset)
    if training is not None:
        output.facts(training, as_json=json)
        return
    manifests = datasets_below(dataset)
    if json:
        output.emit_json(output.summaries(manifests))
        return
    for uri, manifest in manifests.items():
        print_info(uri, manifest)


def show_command(
    dataset: Annotated[str, typer.Argument(help="Dataset to show pictures of.")],
    out: Annotated[str, typer.Option(help="PNG file to write: a path or s3://.")],
    steps: Steps = "",
    count: Annotated[
        int | None, typer.Option(help="Number of pictures.", show_default="12, or 4 with --augment")
    ] = None,
    tile_px: Annotated[int, typer.Option(help="Side of a tile in pixels.")] = 160,
    key: Annotated[list[str] | None, typer.Option(help="Show the picture with this key. Repeatable.")] = None,
    label: Annotated[str | None, typer.Option(help="Show only pictures of this class.")] = None,
    augment: Annotated[
        int | None,
        typer.Option(help="Number of random variants of each picture, drawn by --steps.", show_default=False),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the variants.", show_default="0")] = None,
    masks: Masks = None,
    boxes: Boxes = None,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Draw a contact sheet of pictures; with --steps, each beside its result or beside random variants.

    Masks and boxes are drawn over the pictures.

    striate show out/raw --out sheet.png --steps "grayscale | canny(low=0.1, high=0.2)"

    striate show out/raw --out sheet.png --steps "rotate(15) | flip" --augment 8
    """
    from jobs.inspection.show import contact_sheet
    from library.pipeline.annotations import Wanted

    sheet = contact_sheet(
        dataset,
        steps,
        count=count,
        tile_px=tile_px,
        keys=key or (),
        label=label,
        augment=augment,
        seed=seed,
        wanted=Wanted(masks or (), boxes or ()),
    )
    storage.write_bytes(storage.normalize(out), sheet.png)
    if json:
        output.emit_json({"sheet": out, "pictures": sheet.pictures})
    else:
        say(f"{out}: {len(sheet.pictures)} pictures")


def demo_command(
    folder: Annotated[
        Path, typer.Argument(help="Folder for the pictures, the datasets, the classifier and the page.")
    ] = Path("out/demo"),
    json: Json = False,
) -> None:
    """Ingest, filter, train, evaluate and serve on real pictures from scikit-learn and matplotlib; writes a page.

    striate demo out/demo
    """
    for package in ("torch", "sklearn", "fastapi"):
        check_installed(package, "striate demo", "train,serve")
    from jobs.demo.demo import run_demo

    result = run_demo(folder)
    if json:
        output.emit_json(asdict(result))
    else:
        say(f"open {result.page} in a browser")


def tour_command(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the pages, and for the pictures and networks on them.")
    ] = Path("out/tour"),
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Make this chapter only; may be given several times.")
    ] = None,
    json: Json = False,
) -> None:
    """Make a book of web pages on pictures, filters and networks; its pictures and measurements are made on the spot.

    It needs no network. A tour that was killed resumes with the first chapter that is not finished. Chapters: pixels,
    dense, cortex, filters, sandbox, layers, digits, augmentation, family, transfer, serving, search.

    striate tour --out out/tour

    striate tour --out out/tour --only sandbox --only digits
    """
    for package in ("torch", "sklearn", "fastapi"):
        check_installed(package, "striate tour", "train,serve")
    from jobs.tour.book import run_tour

    result = run_tour(out, only or ())
    if json:
        output.emit_json(asdict(result))
    else:
        say(f"open {result.page} in a browser")
