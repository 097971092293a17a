"""`striate cluster up`: runs a Ray cluster of several nodes on this machine until Ctrl-C, to try things out.

The nodes are started by `ray.cluster_utils`, on loopback only. `ray start` cannot do that: it refuses a second node on
loopback, and otherwise opens its ports on the network.
"""

from __future__ import annotations

import atexit
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
from typing import Annotated, Any, NoReturn

import typer

from cluster.connection.session import node_environment, undisturbed
from cluster.connection.token import make_token
from cluster.console import Json, say
from cluster.machine import free_ports
from cluster.ray_internals import HeldNode, check, sigterm_handler_kept
from library.errors import StriateError, UsageError

# It holds decoded training pictures, never shards. Memory is taken only as it is used.
_OBJECT_STORE_BYTES = 2**30
_LOOK_EVERY_S = 0.5
# A lost node is noticed after a second or two; Ray's defaults, which suit a network, take half a minute.
_ENVIRONMENT = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}

# By name: Windows, where this module is imported too, has no SIGHUP.
_ENDED_BY = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP (a closed terminal)"}

app = typer.Typer(no_args_is_help=True)


class _Stopped(StriateError):
    """Ends the command at a signal before all nodes have started."""

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number  # as a shell reports it
        by = _ENDED_BY[signal.Signals(number).name]
        super().__init__(f"stopped by {by} before all nodes had started; those that had started are stopped too")


# Without a callback, Typer drops the name of a group's only command.
@app.callback()
def _group() -> None:
    """Start a Ray cluster of several nodes on this machine, to try things out."""


@app.command("up")
def up_command(
    nodes: Annotated[int, typer.Option(min=1, max=16, help="Number of nodes, including the head.")] = 2,
    cpus_per_node: Annotated[
        int, typer.Option(min=1, help="Logical CPUs of each node; their sum may exceed the machine's.")
    ] = 1,
    dashboard: Annotated[
        bool,
        typer.Option("--dashboard", help="Also start Ray's dashboard (about 0.9 GB); `striate submit` needs it."),
    ] = False,
    json: Json = False,
) -> None:
    """Start a Ray cluster on this machine, on loopback only, until Ctrl-C. Workers get this shell's AWS variables.

    striate cluster up --nodes 2 --cpus-per-node 1
    """
    if not sys.platform.startswith("linux"):
        raise UsageError("striate cluster up needs Linux; elsewhere, run commands without --address")
    ended_by = end_on_signals()
    with contextlib.ExitStack() as stack:
        try:
            cluster, held = stack.enter_context(_started(nodes, cpus_per_node, dashboard))
        except KeyboardInterrupt:
            # Ray may have raised a KeyboardInterrupt of its own.
            raise _Stopped(ended_by[0] if ended_by else signal.SIGINT) from None
        try:
            head = held[1]
            url = f"http://{head.dashboard}" if dashboard else None
            described = [
                {"number": number, "node_id": node.node_id, "pid": node.pid, "cpus": cpus_per_node}
                for number, node in held.items()
            ]
            if json:
                folder = os.environ["RAY_TMPDIR"]
                document = {"address": head.gcs_address, "dashboard": url, "folder": folder, "nodes": described}
                say(json_lines.dumps(document), flush=True)
            else:
                _show(head.gcs_address, url, described)
            _hold(cluster, held)
        except KeyboardInterrupt:
            say("stopping all nodes", file=sys.stderr, flush=True)


def end_on_signals() -> list[int]:
    """Makes Ctrl-C, SIGTERM and SIGHUP (a closed terminal) raise KeyboardInterrupt until this process ends.

    Signals that the process was started to ignore stay ignored, such as SIGHUP under `nohup`.

    Returns:
        The list of received signals, which grows as they arrive.
    """
    received: list[int] = []

    def end(number: int, _frame: object) -> NoReturn:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # for a closed terminal, the shell and the kernel send one each
        received.append(number)
        raise KeyboardInterrupt

    for number in (signal.Signals[name] for name in _ENDED_BY):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
    return received


@contextlib.contextmanager
def _started(count: int, cpus: int, dashboard: bool) -> Generator[tuple[Any, dict[int, HeldNode]]]:
    """Runs nodes until the block ends; yields `ray.cluster_utils.Cluster` and the nodes by number, the head first."""
    # A short path: Ray puts sockets below it, and the path of a socket has at most 107 characters.
    folder = tempfile.mkdtemp(prefix="striate-cluster-", dir="/tmp")
    # If a node's start is interrupted, Ray ends the node when this process exits. This function is registered before
    # Ray's and therefore runs after it.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update({**_ENVIRONMENT, **node_environment(), "RAY_TMPDIR": folder})
    # A submitted job finds `striate` even if this environment is not activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # As for a local Ray: a token is required unless the user has set another mode.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    make_token()
    check("cluster")  # imports Ray, which reads its environment then
    from ray.cluster_utils import Cluster

    cluster, held = Cluster(), dict[int, HeldNode]()
    try:
        for number in range(1, count + 1):
            say(f"starting node {number} of {count}", file=sys.stderr, flush=True)
            node: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": _OBJECT_STORE_BYTES}
            node["dashboard_agent_listen_port"] = 0  # the default port serves only one node
            if number == 1:
                node |= {"include_dashboard": dashboard, "dashboard_port": free_ports(1)[0] if dashboard else None}
            else:
                # The head's folder is RAY_TMPDIR, where a submitted job looks for its Ray. Each other node has a folder
                # of its own: nodes that shared one would delete each other's copies of uploaded files.
                node["temp_dir"] = f"{folder}/{number}"
            try:
                with sigterm_handler_kept():
                    held[number] = HeldNode.of(cluster.add_node(**node))
            except Exception as error:  # Ray raises no specific exception here
                raise StriateError(f"node {number} did not start: {str(error).strip()}") from error
        yield cluster, held
    finally:
        with undisturbed():
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # all nodes are being ended anyway
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def _hold(cluster: Any, held: dict[int, HeldNode]) -> None:
    """Reports nodes that end, until the head ends. A node has ended when any of its processes has."""
    while True:
        for number in [number for number, node in held.items() if not node.is_whole()]:
            cluster.remove_node(held.pop(number).node, allow_graceful=False)
            say(f"node {number} has ended", file=sys.stderr, flush=True)
        if 1 not in held:
            raise StriateError("the head has ended, and the cluster with it; `striate cluster up` starts another")
        time.sleep(_LOOK_EVERY_S)  # Ray has no call that waits for the end of a node


def _show(address: str, dashboard: str | None, nodes: list[dict[str, Any]]) -> None:
    for node in nodes:
        kind = " (head)" if node["number"] == 1 else ""
        say(f"  node {node['number']}{kind}: CPUs {node['cpus']}, id {node['node_id'][:8]}, process {node['pid']}")
    say(f"\n  export RAY_ADDRESS={address}     # or --address {address} with a command")
    if dashboard is not None:
        say(f"  export RAY_API_SERVER_ADDRESS={dashboard}     # for striate submit, jobs, logs and stop")
        say("  striate submit -- info s3://BUCKET/raw")
    say("\nCtrl-C stops it", flush=True)
