"""Requests a second that classifiers answer: striate serve beside the limit of the cores, FastAPI, LitServe, BentoML.

A small model, whose answers cost little beside the serving, and a large one, whose computing is all. Then what happens
at 80% of the load that a server bears, and at three times of it. benchmarks/README.md says what each contestant does.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import REPOSITORY
from benchmarks.common.measuring import NotRunError
from benchmarks.common.process_tree import PeakMemory, Started
from benchmarks.common.result_file import code_digest, machine, save
from benchmarks.serve.goals import goals, print_result
from benchmarks.serve.http_load import closed_loop, open_loop
from benchmarks.serve.peers import SERVERS, Server, limit, versions
from benchmarks.serve.served_models import Served, make_served
from cluster.machine import free_ports
from library.errors import StriateError, UsageError

_PEERS_PYTHON = REPOSITORY / "out" / "peers" / "bin" / "python"
_MODELS = ("lenet5", "resnet50")
_LIMITS = {"limit_eager": "eager", "limit": "auto"}
#: Not measured unless asked for: they differ from one that is in what a reader would write, not in the server.
_ASIDE = ("litserve_plain", "bentoml_plain")
_NAMES = [*_LIMITS, *(server.name for server in SERVERS)]
_PEERS = [server.name for server in SERVERS if server.kind != "striate"]
_MIDDLE = 16
_QUIET_LOAD = 0.5

_EXAMPLES = """examples:
  .venv/bin/python benchmarks/serve/serve_throughput.py
  .venv/bin/python benchmarks/serve/serve_throughput.py --seconds 2 --rounds 1 --out /tmp/results
  .venv/bin/python benchmarks/serve/serve_throughput.py --model lenet5 --only limit --only striate --only fastapi
"""


def main() -> int:
    """Exit code 0, 1 for a failure, 2 for misuse; a goal that is missed is no failure."""
    options = _parser().parse_args()
    try:
        _check(options)
        result = _measure(options)
        print_result(result)
        print(f"\n{save(result, options.out)}")
    except StriateError as error:
        print(f"serve_throughput: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement, at least 1 (10)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds over all contestants (2)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64], help="connections (1 16 64)")
    parser.add_argument("--model", action="append", choices=_MODELS, help="lenet5 or resnet50 (both)")
    parser.add_argument("--only", action="append", choices=_NAMES, metavar="NAME", help=f"one of {', '.join(_NAMES)}")
    parser.add_argument("--photos", type=int, default=200, help="different photos that are posted (200)")
    parser.add_argument("--tar", type=Path, help="of photos (../shared/data/photos-500.tar, else synthetic)")
    parser.add_argument(
        "--peers-python", type=Path, help="an interpreter with LitServe and BentoML (out/peers/bin/python)"
    )
    parser.add_argument("--cores", type=int, help="run everything, the load too, on so many cores (all)")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results", help="folder of the result")
    return parser


def _check(options: argparse.Namespace) -> None:
    if sys.platform != "linux":
        raise UsageError("this benchmark reads /proc and ties processes to cores, so it runs on Linux only")
    if options.seconds < 1 or options.rounds < 1 or options.photos < 1 or min(options.concurrency) < 1:
        raise UsageError("--seconds, --rounds, --photos and --concurrency: at least 1")
    usable = sorted(os.sched_getaffinity(0))
    options.cores = options.cores or len(usable)
    if not 1 <= options.cores <= len(usable):
        raise UsageError(f"--cores {options.cores}: this machine lets us use 1 to {len(usable)}")
    # Whatever is started from here on inherits it.
    os.sched_setaffinity(0, usable[: options.cores])
    if options.peers_python is not None and not options.peers_python.is_file():
        raise UsageError(f"--peers-python {options.peers_python}: no such file")
    if options.peers_python is None and _PEERS_PYTHON.is_file():
        options.peers_python = _PEERS_PYTHON


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    chosen = options.only or [name for name in _NAMES if name not in _ASIDE]
    described = machine(options.cores)
    if described["load_1min_before"] > _QUIET_LOAD:
        _say(f"this machine is busy (load {described['load_1min_before']}); the result will say so, and mean little")
    models: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="striate-bench-") as folder:
        for name in options.model or _MODELS:
            served = make_served(name, Path(folder), options.photos, options.tar)
            models[name] = {contestant: [] for contestant in chosen}
            for number in range(options.rounds):
                for contestant in chosen:
                    _round(models[name], contestant, served, options, number)
    return {
        "benchmark": "serve_throughput",
        "machine": described,
        "peers": versions(options.peers_python),
        "code_changed_meanwhile": code_digest() != described["code_digest"],
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
    """One contestant measured once, unless it could not be before."""
    if isinstance(results[contestant], str):
        return
    try:
        if contestant in _LIMITS:
            # Many settings are tried, of which the best counts: a part of the time is enough for each.
            figures = limit(served, _LIMITS[contestant], options.cores, max(1.0, options.seconds / 4))
            line = f"{figures['requests_per_s']:,.1f} pictures/s, batches of {figures['batch_size']}"
        else:
            figures = _served(next(server for server in SERVERS if server.name == contestant), served, options)
            line = ", ".join(f"{c}: {run['requests_per_s']:,.1f}/s" for c, run in figures["closed"].items())
    except NotRunError as reason:
        if contestant not in _PEERS:
            raise StriateError(str(reason)) from reason
        results[contestant] = str(reason)
        _say(f"{served.name}, {contestant}: not run: {reason}")
        return
    results[contestant].append(figures)
    _say(f"round {number + 1}/{options.rounds}, {served.name}, {contestant}: {line}")


def _served(server: Server, served: Served, options: argparse.Namespace) -> dict[str, Any]:
    with server.started(served, free_ports(1)[0], options.cores, options.peers_python) as (started, url):

        def measured(connections: int) -> dict[str, Any]:
            return closed_loop(url, served.bodies, connections, options.seconds, server.form)

        closed_loop(url, served.bodies, _MIDDLE, max(1.0, options.seconds / 4), server.form)  # warm
        figures: dict[str, Any] = {"start_s": started.seconds, "memory_mb": started.memory_mb()}
        figures["closed"] = {str(connections): measured(connections) for connections in options.concurrency}
        figures["memory_after_mb"] = started.memory_mb()
        if server.name == "striate":
            figures["open"] = _open(started, url, served, options.seconds)
    return figures


def _open(started: Started, url: str, served: Served, seconds: float) -> dict[str, Any]:
    """At 80% of what it can bear, at three times that it can, and afterwards."""

    def bears() -> float:
        return closed_loop(url, served.bodies, 2 * _MIDDLE, seconds)["requests_per_s"]

    before = bears()
    # This client takes more of the cores than wrk does, and so leaves the server fewer.
    beside_client = open_loop(url, served.bodies, before, seconds).figures()["good_per_s"]
    normal = open_loop(url, served.bodies, 0.8 * beside_client, seconds).figures()
    with PeakMemory(started) as memory:
        overload = open_loop(url, served.bodies, 3 * before, seconds).figures()
    return {
        "bears_per_s": before,
        "bears_beside_client_per_s": beside_client,
        "at_80_percent": normal,
        "at_300_percent": overload,
        "memory_before_mb": memory.before_mb,
        "memory_peak_mb": memory.peak_mb,
        "afterwards_per_s": bears(),
        "runs": started.runs,
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
