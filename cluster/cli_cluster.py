"""`striate cluster up`: a Ray of several nodes on this machine, to try things, until Ctrl-C.

The nodes are held by `ray.cluster_utils`, on loopback only. `ray start` cannot do that: it refuses a second node where
Ray's address is loopback, and otherwise its ports are at this machine's address in the network.
"""

from __future__ import annotations

import contextlib
import json as json_lines
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.console import say
from cluster.machine import free_ports
from cluster.options import Json
from cluster.ray_internals import sigterm_handler_kept
from cluster.ray_token import make_token
from cluster.session import node_environment
from library.errors import StriateError, UsageError

# Decoded training pictures are in it, shards are not. Memory is taken only as it is used.
_OBJECT_STORE_BYTES = 2**30
_LOOK_EVERY_S = 0.5
# A node that is lost is noticed after a second or two; over a network Ray rightly waits half a minute.
_ENVIRONMENT = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """A Ray of several nodes on this machine, to try things."""  # and so `up` keeps its name, alone as it is


@app.command("up")
def up_command(
    nodes: Annotated[int, typer.Option(min=1, max=16, help="How many nodes, the head among them.")] = 2,
    cpus_per_node: Annotated[
        int, typer.Option(min=1, help="Logical CPUs of each node; in all they may be more than the machine has.")
    ] = 1,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Ray's dashboard too (about 0.9 GB); `striate submit` needs it.")
    ] = False,
    json: Json = False,
) -> None:
    """Start it, on loopback only, and hold it until Ctrl-C. Its workers get the AWS variables of this shell.

    striate cluster up --nodes 2 --cpus-per-node 1
    """
    if not sys.platform.startswith("linux"):
        raise UsageError("a Ray of several nodes on one machine needs Linux; on others, leave --address out")
    # Short: Ray puts sockets below it, and a socket's path has room for 107 letters.
    folder = tempfile.mkdtemp(prefix="striate-cluster-", dir="/tmp")
    signal.signal(signal.SIGHUP, signal.default_int_handler)  # a terminal that is closed ends it as Ctrl-C does
    try:
        with _started(folder, nodes, cpus_per_node, dashboard) as (cluster, held):
            head = held[1]
            url = f"http://{head.webui_url}" if dashboard else None
            described = [
                {"number": number, "node_id": node.node_id, "pid": _pid(node), "cpus": cpus_per_node}
                for number, node in held.items()
            ]
            if json:
                document = {"address": head.gcs_address, "dashboard": url, "folder": folder, "nodes": described}
                say(json_lines.dumps(document), flush=True)
            else:
                _show(head.gcs_address, url, described)
            with contextlib.suppress(KeyboardInterrupt):  # SIGTERM too
                _hold(cluster, held)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _started(folder: str, count: int, cpus: int, dashboard: bool) -> Generator[tuple[Any, dict[int, Any]]]:
    """`ray.cluster_utils.Cluster` and its nodes by number, the head first, until the block ends."""
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update({**_ENVIRONMENT, **node_environment(), "RAY_TMPDIR": folder})
    # A submitted job finds `striate` also where this environment is not activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # As `ray.init` does for a Ray that it starts: a token unless the user has said otherwise.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    make_token()
    # Ray reads its environment when it is imported.
    from ray.cluster_utils import Cluster

    cluster, held = Cluster(), dict[int, Any]()
    try:
        for number in range(1, count + 1):
            say(f"starting node {number} of {count}", file=sys.stderr, flush=True)
            node: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": _OBJECT_STORE_BYTES}
            node["dashboard_agent_listen_port"] = 0  # the default port is for one node a machine
            if number == 1:
                node |= {"include_dashboard": dashboard, "dashboard_port": free_ports(1)[0] if dashboard else None}
            else:
                # The head's is below RAY_TMPDIR, where a submitted job looks up which Ray is its own. Nodes that
                # unpacked what a job sends into one folder would pull it away from each other.
                node["temp_dir"] = f"{folder}/{number}"
            try:
                with sigterm_handler_kept():
                    held[number] = cluster.add_node(**node)
            except Exception as error:  # of whatever kind: Ray has none for it
                raise StriateError(f"node {number} does not start: {str(error).strip()}") from error
        yield cluster, held
    finally:
        cluster.shutdown()


def _hold(cluster: Any, held: dict[int, Any]) -> None:
    """Report nodes that end, until the head does; a node ends as soon as any process of it does."""
    while True:
        for number in [number for number, node in held.items() if not node.remaining_processes_alive()]:
            cluster.remove_node(held.pop(number), allow_graceful=False)
            say(f"node {number} has ended", file=sys.stderr, flush=True)
        if 1 not in held:
            raise StriateError("the head has ended, and the cluster with it; `striate cluster up` starts another")
        time.sleep(_LOOK_EVERY_S)  # Ray has no call that waits for it


def _pid(node: Any) -> int:
    """The process that a node is lost with."""
    processes: dict[str, Any] = dict(node.live_processes())
    return processes.get("gcs_server", processes["raylet"]).pid


def _show(address: str, dashboard: str | None, nodes: list[dict[str, Any]]) -> None:
    for node in nodes:
        kind = " (head)" if node["number"] == 1 else ""
        say(f"  node {node['number']}{kind}: CPUs {node['cpus']}, id {node['node_id'][:8]}, process {node['pid']}")
    say(f"\n  export RAY_ADDRESS={address}     # or --address {address} with a command")
    if dashboard is not None:
        say(f"  export RAY_API_SERVER_ADDRESS={dashboard}     # for striate submit, jobs, logs and stop")
        say("  striate submit -- info s3://BUCKET/raw")
    say("\nCtrl-C ends it", flush=True)
