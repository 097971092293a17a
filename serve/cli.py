"""`striate serve` and `striate keys`."""

from __future__ import annotations

import json as json_lines
import signal
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve.cli_keys import keys_command

if TYPE_CHECKING:
    from serve.plan import ServePlan

__all__ = ["keys_command", "serve_command"]


def serve_command(
    bundles: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=]BUNDLE...", help="Bundles to serve, each under its folder's name or as NAME."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; one that others reach needs keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    replicas: Annotated[str, typer.Option(help="Of each model: a number, or a range such as 1-4.")] = "1",
    cpus_per_replica: Annotated[
        float | None, typer.Option(min=0.01, help="Threads of a replica.", show_default="this machine's, shared")
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU for each replica.")] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures in a batch, at most.")] = None,
    batch_wait_ms: Annotated[
        float | None, typer.Option(min=0, help="How long an idle model waits for a batch to fill.")
    ] = None,
    max_queued: Annotated[
        int, typer.Option(min=1, help="Pictures under way at once in a replica; more are refused with 503.")
    ] = 128,
    top_k: Annotated[int | None, typer.Option(min=1, help="Classes in an answer.", show_default="5")] = None,
    api_keys: Annotated[str | None, typer.Option(help="File of keys, made by `striate keys`.")] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Origin whose web pages may ask; may be given several times.")
    ] = None,
    max_body_mb: Annotated[float | None, typer.Option(help="Largest request.", show_default="32")] = None,
    timeout_s: Annotated[
        float | None, typer.Option(help="Longest time for an answer; 504 after it.", show_default="30")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to serve from; the models stay there. Default: this machine."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document when everything answers.")] = False,
) -> None:
    """Answer with finished classifiers over HTTP: a page, an API and its documentation.

        striate serve out/lenet out/catsdogs

        striate serve pets=s3://models/catsdogs --host 0.0.0.0 --api-keys keys.txt --replicas 1-4
    """
    from serve.plan import Scale, make_settings, plan_serve, read_replicas, share_of_cpus
    from serve.running import running, wait_for_signal

    settings = make_settings(
        {
            "batch_size": batch_size,
            "batch_wait_ms": batch_wait_ms,
            "top_k": top_k,
            "cors_origins": cors_origin or None,
            "max_body_mb": max_body_mb,
            "timeout_s": timeout_s,
            "device": "cuda" if gpu else None,
        },
        api_keys,
    )
    fewest_most = read_replicas(replicas)
    cpus = share_of_cpus(cpus_per_replica, fewest_most[0] * max(1, len(bundles or ())))
    scale = Scale(fewest_most, cpus, 1.0 if gpu else 0.0, max_queued)
    plan = plan_serve(bundles or (), settings, scale, host=host, port=port)
    # As Ctrl-C, also while the models load.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with running(plan, address):
            _tell(plan, json)
            wait_for_signal()
    except KeyboardInterrupt:
        pass


def _tell(plan: ServePlan, as_json: bool) -> None:
    if as_json:
        models: list[dict[str, Any]] = [
            {"name": name, "bundle": plan.models[name], "bundle_id": record.id, "classes": len(record.classes)}
            for name, record in plan.records.items()
        ]
        print(json_lines.dumps({"address": plan.address, "models": models}), flush=True)
        return
    print(f"{plan.address}  the page; {plan.address}/docs the API; Ctrl-C ends it")
    for name, record in plan.records.items():
        print(f"  {name}: {len(record.classes)} classes, bundle {record.id[:12]}, POST /models/{name}/predict")
    sys.stdout.flush()
