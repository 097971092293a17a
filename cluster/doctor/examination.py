"""`striate doctor`: whether a machine, a cluster and a bucket are fit for work."""

from __future__ import annotations

import json as json_lines
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from cluster.console import Json, say


def doctor_command(
    place: Annotated[
        str | None,
        typer.Argument(metavar="[s3://BUCKET/PREFIX]", help="Read and written from every node: one small object."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster to examine; RAY_ADDRESS does the same. Default: this machine.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check versions, CPUs, GPUs, memory, Ray, its nodes, clocks and a bucket: a line each, with what to do.

    The exit code is 1 when something fails. A cluster that is reached by its dashboard only is examined from inside:
    `striate submit -- doctor`.

        striate doctor

        striate doctor --address head:6379 s3://bucket/prefix
    """
    from cluster.doctor.checks import Check, examine, worst

    out = sys.stdout  # others' prints go to stderr while Ray is connected
    checks: list[Check] = []
    for check in examine(address, place):
        checks.append(check)
        if not json:
            advice = f"\n      {check.advice}" if check.advice else ""
            say(f"{check.verdict:5} {check.name}: {check.found}{advice}", file=out, flush=True)
    failed = worst(checks) == "fail"
    if json:
        say(json_lines.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=1))
    if failed:
        raise typer.Exit(1)
