"""`striate serve` and `striate keys`."""

from __future__ import annotations

from typing import Annotated

import typer


def serve_command(
    bundles: Annotated[list[str], typer.Argument(metavar="[NAME=]BUNDLE...", help="Bundles to serve.")],
) -> None:
    """Answer with finished classifiers over HTTP: a page, an API and its documentation."""
    raise NotImplementedError


def keys_command() -> None:
    """Make an API key."""
    raise NotImplementedError
