"""`striate serve` and `striate keys`."""

from __future__ import annotations

import json as json_lines
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.console import say
from serve.launch.make_key import keys_command

if TYPE_CHECKING:
    from serve.launch.request import ServePlan
    from serve.launch.running import Server

__all__ = ["keys_command", "serve_command"]

#: Go with --config; everything else is in the file.
_BESIDE_CONFIG = {"config", "host", "port", "address", "json"}


def serve_command(
    context: typer.Context,
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
    runtime: Annotated[
        str, typer.Option(help="auto (the fastest that gives the same answers), eager, compile or onnx.")
    ] = "auto",
    tune: Annotated[
        bool, typer.Option("--tune", help="Take 20 s at start to find the best batch size and wait.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pictures in a batch, at most.", show_default="found by a short probe")
    ] = None,
    batch_wait_ms: Annotated[
        float | None,
        typer.Option(min=0, help="How long an idle model waits for more pictures.", show_default="0; found by --tune"),
    ] = None,
    max_queued: Annotated[
        int, typer.Option(min=1, help="Pictures under way at once in a replica; more are refused with 503.")
    ] = 128,
    top_k: Annotated[int | None, typer.Option(min=1, help="Classes in an answer.", show_default="5")] = None,
    drift: Annotated[
        bool, typer.Option("--drift", help="Compare what is asked with what was trained on: GET /models/NAME/drift.")
    ] = False,
    api_keys: Annotated[str | None, typer.Option(help="File of keys (`striate keys`); or STRIATE_API_KEYS.")] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Origin whose web pages may ask; may be given several times.")
    ] = None,
    max_body_mb: Annotated[float | None, typer.Option(help="Largest request.", show_default="32")] = None,
    timeout_s: Annotated[
        float | None, typer.Option(help="Longest time for an answer; 504 after it.", show_default="30")
    ] = None,
    access_log: Annotated[
        str | None,
        typer.Option(help="File that gets a JSON line for each request; - writes it to Ray's own log files."),
    ] = None,
    config: Annotated[str | None, typer.Option(help="Serve what this config file of Serve says.")] = None,
    write_config: Annotated[
        str | None, typer.Option(help="Write that file instead of serving; for `serve deploy` and KubeRay.")
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
    from library.errors import UsageError
    from library.extras import check_installed

    check_installed("fastapi", "striate serve")
    from serve.http.logs import log_path
    from serve.launch import config_file
    from serve.launch.deploy import Scale, applications
    from serve.launch.exposure import check_reach
    from serve.launch.request import (
        environment_keys,
        make_settings,
        named_bundles,
        plan_serve,
        read_replicas,
        share_of_cpus,
        with_keys,
    )
    from serve.launch.running import running, wait_for_signal

    asked = {"host", "port"}.intersection(_given(context))
    if config is not None:
        beside = [name for name in _given(context) if name not in _BESIDE_CONFIG]
        if beside:
            raise UsageError(f"--config says what is served: leave out {', '.join(beside)}, or edit {config}")
        read = config_file.read_config(config)
        made = with_keys(read["applications"], environment_keys())
        listens = config_file.HttpOptions.model_validate(read.get("http_options", {}))
        host = host if "host" in asked else listens.host
        port = port if "port" in asked else listens.port
        asked |= listens.model_fields_set
    else:
        if tune and batch_size is not None:
            raise UsageError("--tune finds the batch size: leave --batch-size out")
        settings = make_settings(
            {
                "runtime": runtime,
                "tune": tune,
                "batch_size": batch_size,
                "batch_wait_ms": batch_wait_ms,
                "top_k": top_k,
                "drift": drift,
                "cors_origins": cors_origin or None,
                "max_body_mb": max_body_mb,
                "timeout_s": timeout_s,
                "access_log": log_path(access_log),
                "device": "cuda" if gpu else None,
            },
            api_keys,
        )
        models, fewest_most = named_bundles(bundles or ()), read_replicas(replicas)
        cpus = share_of_cpus(cpus_per_replica, fewest_most[1] * len(models))
        made = applications(models, settings, Scale(fewest_most, cpus, 1.0 if gpu else 0.0, max_queued))
        if write_config is not None:
            # Where it will run is not here: bundles, key file and port are checked there.
            check_reach(host, settings, here=False)
            config_file.write_config(write_config, config_file.config_of(made, host, port))
            how = f"striate serve --config {write_config}, or serve deploy {write_config}"
            say(json_lines.dumps({"config": write_config}) if json else f"{write_config} is written; next: {how}")
            return
    plan = plan_serve(made, host=host, port=port, asked=asked)
    out = sys.stdout
    if sys.stderr.isatty():  # it takes half a minute, in which the port refuses
        say("starting; the next line comes when every model answers", file=sys.stderr, flush=True)
    try:
        with running(plan, address) as server:
            say(_told(plan, server, json), file=out, flush=True)
            if not server.stays:
                wait_for_signal()
                if sys.stderr.isatty():  # for who looks on: it takes some seconds
                    say("ending; requests that have begun are answered", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        pass


def _given(context: typer.Context) -> list[str]:
    """Options that the command line has."""
    return [name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"]  # pyright: ignore


def _told(plan: ServePlan, server: Server, as_json: bool) -> str:
    if as_json:
        models: list[dict[str, Any]] = [
            {"name": name, "bundle": plan.bundles[name], "bundle_id": record.id, "classes": len(record.classes)}
            for name, record in plan.records.items()
        ]
        return json_lines.dumps({"address": server.address, "models": models})
    lines = [
        f"  {name}: {len(record.classes)} classes, bundle {record.id[:12]}, POST /models/{name}/predict"
        for name, record in plan.records.items()
    ]
    end = "it stays there; `serve shutdown` ends it" if server.stays else "Ctrl-C ends it"
    return "\n".join([f"{server.address}  the page; {server.address}/docs the API; {end}", *lines])
