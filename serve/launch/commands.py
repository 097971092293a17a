"""`striate serve` and `striate keys`."""

from __future__ import annotations

import json as json_lines
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster.console import Json, say
from library.runtimes import NAMES_TEXT

#: Options that are allowed with --config; everything else is in the file.
_WITH_CONFIG = {"config", "host", "port", "address", "plugin", "json"}


def serve_command(
    context: typer.Context,
    bundles: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=]BUNDLE...", help="Bundles to serve, each under its folder's name or as NAME."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; keys are needed where other machines can reach it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    replicas: Annotated[str, typer.Option(help="Replicas of each model: a number, or a range such as 1-4.")] = "1",
    cpus_per_replica: Annotated[
        float | None,
        typer.Option(min=0.01, help="CPU threads of a replica.", show_default="an equal share of this machine's"),
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU for each replica.")] = False,
    gpus_per_replica: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1,
            help="Fraction of a GPU for each replica, such as 0.25: replicas of small models share one.",
            show_default="1 with --gpu",
        ),
    ] = None,
    runtime: Annotated[
        str, typer.Option(help=f"auto (the fastest that gives the same answers), {NAMES_TEXT}.")
    ] = "auto",
    tune: Annotated[
        bool, typer.Option("--tune", help="Measure for 20 s at start to choose batch size and wait.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Most pictures in a batch.", show_default="chosen by a short measurement")
    ] = None,
    batch_wait_ms: Annotated[
        float | None,
        typer.Option(
            min=0, help="How long an idle model waits for more pictures.", show_default="0, or chosen by --tune"
        ),
    ] = None,
    max_queued: Annotated[
        int, typer.Option(min=1, help="Most pictures in progress in a replica; more are refused with 503.")
    ] = 128,
    top_k: Annotated[int | None, typer.Option(min=1, help="Number of classes in an answer.", show_default="5")] = None,
    drift: Annotated[
        bool, typer.Option("--drift", help="Compare requests with the training data: GET /models/NAME/drift.")
    ] = False,
    api_keys: Annotated[
        str | None, typer.Option(help="File of API keys (`striate keys`); or set STRIATE_API_KEYS.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Origin whose web pages may call the API. Repeatable.")
    ] = None,
    max_body_mb: Annotated[float | None, typer.Option(help="Largest request body, in MiB.", show_default="32")] = None,
    timeout_s: Annotated[
        float | None, typer.Option(help="Longest time for an answer, in seconds; then 504.", show_default="30")
    ] = None,
    access_log: Annotated[
        str | None,
        typer.Option(help="File for a JSON line per request; - writes to Ray's own log files."),
    ] = None,
    config: Annotated[str | None, typer.Option(help="Serve the applications in this Serve config file.")] = None,
    write_config: Annotated[
        str | None, typer.Option(help="Write a Serve config file instead of serving; for `serve deploy` and KubeRay.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to serve from; the models keep running there. Default: this machine."),
    ] = None,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin", help="A Python file with steps of your own, or a module's name. Repeatable.", show_default=False
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document when all models answer.")] = False,
) -> None:
    """Serve classifiers over HTTP: a web page, an API and its documentation.

    striate serve out/lenet out/catsdogs

    striate serve pets=s3://models/catsdogs --host 0.0.0.0 --api-keys keys.txt --replicas 1-4
    """
    from library.bundle.description import decoder_notes
    from library.errors import UsageError
    from library.extras import check_installed

    check_installed("fastapi", "striate serve")
    from library.steps import plugins
    from serve.http.logs import log_path
    from serve.launch import config_file
    from serve.launch.arguments import (
        check_exposure,
        cpus_of_replica,
        environment_keys,
        make_settings,
        parse_bundles,
        parse_replicas,
        plan_serve,
        with_keys,
    )
    from serve.launch.deploy import Scale, applications
    from serve.launch.server import ready_message, running, wait_for_signal

    plugins.load(plugin or ())
    options = _command_line_options(context)
    explicit = {"host", "port"}.intersection(options)
    if config is not None:
        excess = [
            "BUNDLE" if name == "bundles" else "--" + name.replace("_", "-")
            for name in options
            if name not in _WITH_CONFIG
        ]
        if excess:
            raise UsageError(f"--config already says what to serve: leave out {', '.join(excess)}, or edit {config}")
        read = config_file.read_config(config)
        served = with_keys(read.applications, environment_keys())
        host = host if "host" in explicit else read.http.host
        port = port if "port" in explicit else read.http.port
        explicit |= read.http.model_fields_set
    else:
        gpus = gpus_per_replica or (1.0 if gpu else 0.0)
        if tune and batch_size is not None:
            raise UsageError("--tune chooses the batch size: leave --batch-size out")
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
                "device": "cuda" if gpus else None,
            },
            api_keys,
        )
        models, fewest_most = parse_bundles(bundles or ()), parse_replicas(replicas)
        cpus = cpus_of_replica(cpus_per_replica, fewest_most[1] * len(models))
        served = applications(models, settings, Scale(fewest_most, cpus, gpus, max_queued))
        if write_config is not None:
            if plugin:
                raise UsageError(
                    "a config file holds no plugins: install the package that defines the steps as an entry point "
                    f"{plugins.ENTRY_POINTS} in the cluster's image, and leave --plugin out"
                )
            # It will run on another machine: bundles, key file and port are checked there.
            check_exposure(host, settings, here=False)
            config_file.write_config(write_config, config_file.config_of(served, host, port))
            how = f"striate serve --config {write_config}, or serve deploy {write_config}"
            say(json_lines.dumps({"config": write_config}) if json else f"{write_config} is written; next: {how}")
            return
    plan = plan_serve(served, host=host, port=port, explicit=explicit)
    for name, record in plan.records.items():
        for note in decoder_notes(plan.bundles[name], record):
            say(note, file=sys.stderr, flush=True)
    out = sys.stdout
    if sys.stderr.isatty():  # the start takes half a minute, in which the port refuses connections
        say("starting; this takes about half a minute", file=sys.stderr, flush=True)
    try:
        with running(plan, address) as server:
            say(ready_message(plan, server, as_json=json), file=out, flush=True)
            if not server.stays:
                wait_for_signal()
                if sys.stderr.isatty():  # stopping takes some seconds
                    say("stopping; requests in progress are still answered", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        pass


def keys_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who or what the key is for; appears in the access log.")],
    file: Annotated[
        Path, typer.Option("--file", metavar="FILE", help="Key file to add it to; created if it does not exist.")
    ],
    json: Json = False,
) -> None:
    """Make an API key: print it once, and add its SHA-256 to a key file.

    Pass the file to `striate serve --api-keys FILE`. To revoke a key, delete its line; running servers notice.
    """
    from library.errors import UsageError
    from serve.http.keys import new_key, read_keys

    key, line = new_key(name)
    known = read_keys(file) if file.exists() else {}
    if name in known:
        raise UsageError(f"{file} already has a key named '{name}': choose another name, or delete its line first")
    ends_with_newline = not file.exists() or file.read_bytes()[-1:] in (b"", b"\n")
    try:
        # Readable by its owner only, although the hashes do not reveal the keys.
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", encoding="utf-8") as out:
            out.write(("" if ends_with_newline else "\n") + line + "\n")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from None
    say(json_lines.dumps({"name": name, "key": key, "file": str(file)}) if json else key)
    say(
        f"added to {file}; the key is shown only this once; send it as: Authorization: Bearer KEY",
        file=sys.stderr,
    )


def _command_line_options(context: typer.Context) -> list[str]:
    """Returns the names of the options on the command line."""
    return [name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"]  # pyright: ignore
