"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; the rest goes to stderr.")]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster to run on; RAY_ADDRESS does the same. Default: this machine.", show_default=False),
]
Workers = Annotated[str, typer.Option(help="How many shards are worked on at once: a number, or auto (one a CPU).")]
Measure = Annotated[
    bool,
    typer.Option(
        "--measure",
        help="Decode every picture, and keep histograms of brightness, contrast, sharpness and size, which tell drift "
        "in serving from then on.",
    ),
]
Steps = Annotated[str, typer.Option(help="""The pipeline, e.g. "grayscale | gaussian_blur(sigma=1.5)".""")]
