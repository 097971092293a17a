"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from library.errors import UsageError

_NEAR_BITS = 4

Source = Annotated[str, typer.Argument(help="Dataset to read: a folder or s3://bucket/prefix.")]
Destination = Annotated[str, typer.Argument(help="Dataset to write: a folder or s3://bucket/prefix.")]
Bundle = Annotated[str, typer.Argument(help="Bundle: a folder or s3://bucket/prefix.")]

Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster to run on; RAY_ADDRESS does the same. Default: this machine.", show_default=False),
]
Workers = Annotated[str, typer.Option(help="Number of shards processed at the same time, or auto (one per CPU).")]
WorkersUnlessSize = Annotated[
    str | None,
    typer.Option(
        "--workers", help="Number of shards processed at the same time, or auto (one per CPU).", show_default="auto"
    ),
]
LabelsColumn = Annotated[
    str | None,
    typer.Option(
        help="For a classifier of several labels: the column with the names of each picture's classes.",
        show_default="the column that it learned from",
    ),
]
Gpu = Annotated[
    bool | None,
    typer.Option("--gpu/--no-gpu", help="Whether each worker uses a GPU.", show_default="if there is a GPU"),
]
Size = Annotated[
    str | None,
    typer.Option(
        help="Named number and size of workers: laptop, cpu-small, gpu-1 or gpu-8. Replaces --workers.",
        show_default=False,
    ),
]
Measure = Annotated[
    bool,
    typer.Option(
        "--measure",
        help="Decode every picture and store histograms of brightness, contrast, sharpness and size; serving compares "
        "requests with them to detect drift.",
    ),
]
Steps = Annotated[str, typer.Option(help="""Pipeline, e.g. "grayscale | gaussian_blur(sigma=1.5)".""")]
Masks = Annotated[
    list[str] | None,
    typer.Option(
        help="Column of masks that move with the pictures, or none. Repeatable.", show_default="mask, if there is one"
    ),
]
Boxes = Annotated[
    list[str] | None,
    typer.Option(
        help="Column of boxes (x, y, w, h in pixels) that move with the pictures, or none. Repeatable.",
        show_default="boxes, if there is one",
    ),
]
MinBoxShare = Annotated[
    float | None,
    typer.Option(help="Drop a box of which less than this share of its area is left.", show_default="0.1"),
]
Encode = Annotated[
    str, typer.Option(help="Format of changed pictures: keep (as before), jpeg:95, png, webp:90, tiff, npy.")
]
Limit = Annotated[int | None, typer.Option(help="Read only the first N pictures, to try something out.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what another job wrote to the destination.", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan without doing anything.", show_default=False)]


def _load_plugins(names: list[str] | None) -> list[str] | None:
    from library.steps import plugins  # imports OpenCV, which `striate --help` does not need

    plugins.load(names or ())
    return names


Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        callback=_load_plugins,
        help="A Python file with steps of your own, or a module's name. Repeatable.",
        show_default=False,
    ),
]


def check_size(size: str | None, others: Mapping[str, object]) -> None:
    """Refuses options that `--size` already decides.

    Args:
        size: value of `--size`.
        others: values of the options it replaces, by name; None where an option is absent.

    Raises:
        UsageError: names the first such option.
    """
    present = [name for name, value in others.items() if value is not None]
    if size is not None and present:
        raise UsageError(f"{present[0]} and --size both describe the workers; use only one of them")


def near_bits(near: int | None, *, no_near: bool) -> int | None:
    """Returns the most bits in which near duplicates differ, 4 by default; None with `--no-near`.

    Raises:
        UsageError: both options are given.
    """
    if no_near and near is not None:
        raise UsageError("--near and --no-near contradict each other; use one of them")
    return None if no_near else _NEAR_BITS if near is None else near
