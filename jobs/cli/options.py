"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from library.errors import UsageError

Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster to run on; RAY_ADDRESS does the same. Default: this machine.", show_default=False),
]
Workers = Annotated[str, typer.Option(help="How many shards are worked on at once: a number, or auto (one a CPU).")]
WorkersUnlessSize = Annotated[
    str | None,
    typer.Option(
        "--workers", help="How many shards are worked on at once: a number, or auto (one a CPU).", show_default="auto"
    ),
]
Size = Annotated[
    str | None,
    typer.Option(help="Workers and what each has, by a name: laptop, cpu-small, gpu-1 or gpu-8.", show_default=False),
]
Measure = Annotated[
    bool,
    typer.Option(
        "--measure",
        help="Decode every picture, and keep histograms of brightness, contrast, sharpness and size, which tell drift "
        "in serving from then on.",
    ),
]
Steps = Annotated[str, typer.Option(help="""The pipeline, e.g. "grayscale | gaussian_blur(sigma=1.5)".""")]


def check_size(size: str | None, others: Mapping[str, Any]) -> None:
    """Refuse options that say what a size says already.

    Raises:
        UsageError: names the first of them.
    """
    given = [name for name, value in others.items() if value is not None]
    if size is not None and given:
        raise UsageError(f"{given[0]} and --size both say what there is to work with; leave one out")
