"""`striate cluster`: a Ray of several nodes on this machine."""

from __future__ import annotations

import json as json_lines
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from cluster.console import say
from cluster.local_cluster import LocalCluster
from cluster.options import Json
from library.errors import StriateError

app = typer.Typer(help="A Ray of several nodes on this machine, to try things: up, status, down.", no_args_is_help=True)


@app.command("up")
def up_command(
    nodes: Annotated[int, typer.Option(help="How many nodes, the head among them.")] = 2,
    cpus_per_node: Annotated[int, typer.Option(help="Logical CPUs of each node.")] = 1,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Ray's dashboard too (about 0.9 GB); `striate submit` needs it.")
    ] = False,
    json: Json = False,
) -> None:
    """Start it, on loopback only; it stays until `down`. Its workers get the AWS variables of this shell.

    striate cluster up --nodes 2 --cpus-per-node 1
    """
    from cluster.local_cluster import up

    say(f"starting {nodes} node{'' if nodes == 1 else 's'}", file=sys.stderr)
    made = up(nodes, cpus_per_node, dashboard=dashboard)
    if json:
        say(json_lines.dumps(asdict(made)))
        return
    _show(made)
    say(f"\n  export RAY_ADDRESS={made.address}     # or --address {made.address} with a command")
    if made.dashboard is not None:
        say(f"  export RAY_API_SERVER_ADDRESS={made.dashboard}     # for striate submit, jobs, logs and stop")
        say("  striate submit -- info s3://BUCKET/raw")
    say("  striate cluster down")


@app.command("status")
def status_command(json: Json = False) -> None:
    """Show its address, and which of its nodes run; the exit code is 1 where one of them has ended, or none is there.

    striate cluster status
    """
    from cluster.local_cluster import find

    found = find()
    if found is None:
        raise StriateError("no cluster is up on this machine; `striate cluster up` starts one")
    if json:
        say(json_lines.dumps(asdict(found)))
    else:
        _show(found)
    if not all(node.running for node in found.nodes):
        raise typer.Exit(1)


@app.command("down")
def down_command(json: Json = False) -> None:
    """End all of its processes, and no other Ray's; remove its files.

    striate cluster down
    """
    from cluster.local_cluster import down

    ended = down()
    say(json_lines.dumps({"nodes_ended": ended}) if json else f"{ended} node{'' if ended == 1 else 's'} ended")


def _show(cluster: LocalCluster) -> None:
    say(f"Ray at {cluster.address}, files in {cluster.folder}, dashboard {cluster.dashboard or 'off'}")
    for node in cluster.nodes:
        state = "runs" if node.running else "has ended"
        cpus = f"{node.cpus} CPU{'' if node.cpus == 1 else 's'}"
        say(f"  node {node.number}{' (head)' if node.number == 1 else ''}: {cpus}, {node.node_id[:8]}, {state}")
