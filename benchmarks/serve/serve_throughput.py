"""Measures requests per second of `striate serve` beside the limit of the cores, FastAPI, LitServe and BentoML.

Serves a small model, whose answers cost little beside the serving, and a large one, whose computation takes most of the
time. Then sends 80% and three times of the highest load to striate. benchmarks/README.md defines the figures.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from benchmarks import REPOSITORY
from benchmarks.common.command_line import (
    add_cores,
    add_photos,
    at_least,
    existing_file,
    make_parser,
    run_benchmark,
    say,
    work_folder,
)
from benchmarks.common.measuring import NotRunError
from benchmarks.common.process_tree import PeakMemory, Started
from benchmarks.serve.goals import goals, print_result
from benchmarks.serve.http_load import closed_loop, open_loop
from benchmarks.serve.peers import SERVERS, Server, limit, versions
from benchmarks.serve.served_models import Served, make_served
from cluster.machine import free_ports
from library.errors import StriateError

_PEERS_PYTHON = REPOSITORY / "out" / "peers" / "bin" / "python"
_MODELS = ("lenet5", "resnet50")
_LIMITS = {"limit_eager": "eager", "limit": "auto"}
#: Measured only with `--only`: they differ from litserve and bentoml in the code for the model, not in the server.
_ON_REQUEST = ("litserve_plain", "bentoml_plain")
_NAMES = [*_LIMITS, *(server.name for server in SERVERS)]
_PEERS = [server.name for server in SERVERS if server.kind != "striate"]
#: Connections of the warm-up; twice as many find the highest load.
_CONNECTIONS = 16


def main() -> int:
    """Returns the exit code."""
    return run_benchmark(__file__, _parser(), _measure, print_result)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        __file__,
        __doc__,
        "",
        "--seconds 2 --rounds 1 --out /tmp/results",
        "--model lenet5 --only limit --only striate --only fastapi",
    )
    add_photos(parser, disk_gb=0.5)
    add_cores(parser)
    parser.add_argument("--photos", type=at_least(1), default=200, help="number of different photos (200)")
    parser.add_argument("--seconds", type=at_least(1), default=10, help="duration of each measurement (10)")
    parser.add_argument("--rounds", type=at_least(1), default=2, help="rounds over all contestants (2)")
    parser.add_argument(
        "--concurrency", type=at_least(1), nargs="+", default=[1, 16, 64], help="numbers of connections (1 16 64)"
    )
    parser.add_argument("--model", action="append", choices=_MODELS, help="lenet5 or resnet50 (both)")
    parser.add_argument("--only", action="append", choices=_NAMES, metavar="NAME", help=f"one of {', '.join(_NAMES)}")
    parser.add_argument(
        "--peers-python",
        type=existing_file,
        help="an interpreter with LitServe and BentoML (out/peers/bin/python)",
    )
    return parser


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    chosen = options.only or [name for name in _NAMES if name not in _ON_REQUEST]
    if options.peers_python is None and _PEERS_PYTHON.is_file():
        options.peers_python = _PEERS_PYTHON
    models: dict[str, Any] = {}
    with work_folder(options.work) as folder:
        for name in options.model or _MODELS:
            served = make_served(name, folder, options.photos, options.tar)
            models[name] = {contestant: [] for contestant in chosen}
            for number in range(options.rounds):
                for contestant in chosen:
                    _round(models[name], contestant, served, options, number)
    return {
        "peers": versions(options.peers_python),
        "parameters": {
            "seconds": options.seconds,
            "rounds": options.rounds,
            "concurrency": options.concurrency,
            "photos": options.photos,
            "only": options.only,
        },
        "contestants": {server.name: server.what for server in SERVERS if server.name in chosen},
        "models": models,
        "goals": goals(models),
    }


def _round(results: dict[str, Any], contestant: str, served: Served, options: argparse.Namespace, number: int) -> None:
    """Measures one contestant once, unless it could not run in an earlier round."""
    if isinstance(results[contestant], str):
        return
    try:
        if contestant in _LIMITS:
            # The best of many settings counts, so each is measured for a shorter time.
            figures = limit(served, _LIMITS[contestant], options.cores, max(1.0, options.seconds / 4))
            line = f"{figures['requests_per_s']:,.1f} pictures/s, batches of {figures['batch_size']}"
        else:
            figures = _measure_server(next(server for server in SERVERS if server.name == contestant), served, options)
            line = ", ".join(f"{c}: {run['requests_per_s']:,.1f}/s" for c, run in figures["closed"].items())
    except NotRunError as reason:
        if contestant not in _PEERS:
            raise StriateError(str(reason)) from reason
        results[contestant] = str(reason)
        say(f"{served.name}, {contestant}: not run: {reason}")
        return
    results[contestant].append(figures)
    say(f"round {number + 1}/{options.rounds}, {served.name}, {contestant}: {line}")


def _measure_server(server: Server, served: Served, options: argparse.Namespace) -> dict[str, Any]:
    with server.started(served, free_ports(1)[0], options.cores, options.peers_python) as (started, url):

        def measure(connections: int) -> dict[str, Any]:
            return closed_loop(url, served.bodies, connections, options.seconds, server.form)

        closed_loop(url, served.bodies, _CONNECTIONS, max(1.0, options.seconds / 4), server.form)  # warm-up
        figures: dict[str, Any] = {"start_s": started.seconds, "memory_mb": started.memory_mb()}
        figures["closed"] = {str(connections): measure(connections) for connections in options.concurrency}
        figures["memory_after_mb"] = started.memory_mb()
        if server.name == "striate":
            figures["open"] = _measure_open_loop(started, url, served, options.seconds)
    return figures


def _measure_open_loop(started: Started, url: str, served: Served, seconds: float) -> dict[str, Any]:
    """Measures 80% of the highest load that the server answers, three times that load, and the rate afterwards."""

    def highest_rate() -> float:
        return closed_loop(url, served.bodies, 2 * _CONNECTIONS, seconds)["requests_per_s"]

    before = highest_rate()
    # This client needs more processor time than wrk, which leaves less for the server.
    beside_client = open_loop(url, served.bodies, before, seconds).figures()["good_per_s"]
    normal = open_loop(url, served.bodies, 0.8 * beside_client, seconds).figures()
    with PeakMemory(started) as memory:
        overload = open_loop(url, served.bodies, 3 * before, seconds).figures()
    return {
        "highest_per_s": before,
        "highest_beside_client_per_s": beside_client,
        "at_80_percent": normal,
        "at_300_percent": overload,
        "memory_before_mb": memory.before_mb,
        "memory_peak_mb": memory.peak_mb,
        "afterwards_per_s": highest_rate(),
        "runs": started.runs,
    }


if __name__ == "__main__":
    sys.exit(main())
