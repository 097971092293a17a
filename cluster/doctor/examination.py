"""Runs the checks of `striate doctor` on this machine, on every node of a cluster, and against a bucket."""

from __future__ import annotations

import json as json_lines
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from cluster.connection.session import Session, connect, named_cluster
from cluster.console import Json, say
from cluster.doctor.checks import (
    Check,
    of_clock,
    of_machine,
    of_shm,
    of_storage,
    of_storage_clock,
    of_versions,
    worst,
)
from cluster.doctor.facts import NodeFacts, StorageFacts, clock, node_facts, storage_clock, storage_facts
from library import storage
from library.errors import StriateError, UsageError

_NODE_TIMEOUT_S = 60
_CLOCK_TRIES = 3


def doctor_command(
    place: Annotated[
        str | None,
        typer.Argument(
            metavar="[s3://BUCKET/PREFIX]", help="Bucket or folder that every node tests with a small object."
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster to examine; RAY_ADDRESS does the same. Default: this machine.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check versions, CPUs, GPUs, memory, Ray, its nodes, clocks and a bucket, and print advice for each problem.

    The exit code is 1 if a check fails. A cluster that is reachable only by its dashboard is checked from inside:
    `striate submit -- doctor`.

        striate doctor

        striate doctor --address head:6379 s3://bucket/prefix
    """
    out = sys.stdout  # while Ray is connected, sys.stdout is redirected to stderr
    checks: list[Check] = []
    for check in examine(address, place):
        checks.append(check)
        if not json:
            advice = f"\n      {check.advice}" if check.advice else ""
            say(f"{check.verdict:5} {check.name}: {check.facts}{advice}", file=out, flush=True)
    failed = worst(checks) == "fail"
    if json:
        say(json_lines.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=1))
    if failed:
        raise typer.Exit(1)


def examine(address: str | None = None, place: str | None = None) -> Iterator[Check]:
    """Checks this machine, then Ray and each of its nodes, then the bucket or folder `place` from all of them.

    Args:
        address: address of a cluster, as for a job; None for RAY_ADDRESS, or else for a Ray that is started here
            during the checks.
        place: prefix below which a small object may be written, e.g. a dataset.

    Raises:
        UsageError: for an invalid address or place.
    """
    if address is not None and address.startswith(("http://", "https://")):
        raise UsageError(
            f"--address {address} is a dashboard; check its cluster from inside: "
            f"striate submit --address {address} -- doctor"
        )
    place = None if place is None else storage.normalize(place)
    here = node_facts()
    yield from of_machine(here)
    yield from _of_ray(address, here, place)
    if place is not None:
        ahead_of_s3 = storage_clock(place) if place.startswith("s3://") else None
        yield from of_storage_from_here(here["host"], place, storage_facts(place), ahead_of_s3)


def _of_ray(address: str | None, here: NodeFacts, place: str | None) -> Iterator[Check]:
    cluster = named_cluster(address)
    try:
        with connect(address) as session:
            yield _of_session(cluster, session)
            yield from _of_nodes(here, place, is_cluster=cluster is not None)
    except StriateError as error:
        if isinstance(error, UsageError):
            raise
        advice = "see /tmp/ray/session_latest/logs" if cluster is None else "run `ray status` there; check the firewall"
        yield Check("Ray", "fail", str(error), advice)


def _of_session(cluster: str | None, session: Session) -> Check:
    summary = f"{'starts here' if cluster is None else 'answers'}: {session}"
    if session.cpus == 0:
        return Check("Ray", "warn", summary, "no node has a CPU: start workers, or wait for the autoscaler")
    return Check("Ray", "ok", summary)


def _of_nodes(here: NodeFacts, place: str | None, *, is_cluster: bool) -> Iterator[Check]:
    """Runs a small task on each node and compares its facts with those of this machine."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    pins = {id_: NodeAffinitySchedulingStrategy(id_, soft=False) for id_ in nodes}
    tasks: Any = ray.remote(num_cpus=0)  # Ray's type hints are wrong here
    ask, time_there = tasks(node_facts), tasks(clock)
    answers = {id_: ask.options(scheduling_strategy=pin).remote(place) for id_, pin in pins.items()}
    end = time.monotonic() + _NODE_TIMEOUT_S
    facts_by_node: dict[str, NodeFacts] = {}
    for id_, node in nodes.items():
        name = f"node {node['NodeManagerAddress']} ({id_[:8]})"
        answer = _answer(name, answers[id_], time_there.options(scheduling_strategy=pins[id_]), end)
        if isinstance(answer, Check):
            yield answer
            continue
        facts, (ahead_s, uncertainty_s) = answer
        facts_by_node[name] = facts
        yield _of_node(name, facts, node["Resources"])
        if is_cluster:
            yield of_clock(f"clock of {node['NodeManagerAddress']}", ahead_s, uncertainty_s)
            yield of_shm(f"shared memory of {node['NodeManagerAddress']}", facts["shm_bytes"])
            if place is not None and facts["storage"] is not None:
                yield of_storage(f"storage from {node['NodeManagerAddress']}", place, facts["storage"])
    yield of_versions(here["versions"], {name: facts["versions"] for name, facts in facts_by_node.items()})
    if is_cluster and facts_by_node:
        yield _of_token(all(facts["token"] for facts in facts_by_node.values()))
    if (
        place is not None
        and not storage.is_remote(place)
        and len({each["host"] for each in facts_by_node.values()}) > 1
    ):
        yield Check("storage", "warn", f"{place} is a folder, and there are several machines", _shared(place))


def _answer(name: str, answer: Any, time_there: Any, end: float) -> tuple[NodeFacts, tuple[float, float]] | Check:
    """Returns a node's facts and how far its clock is ahead, or a failed check if it does not answer."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        facts: Any = ray.get(answer, timeout=max(0.1, end - time.monotonic()))
        return facts, ahead(lambda: ray.get(time_there.remote(), timeout=_NODE_TIMEOUT_S))
    except GetTimeoutError:
        how = "see raylet.out on the node, and restart the node"
        return Check(name, "fail", f"did not run a task within {_NODE_TIMEOUT_S} s", how)
    except RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        how = "install the same striate there, or check it from inside: striate submit -- doctor"
        return Check(name, "fail", f"cannot run a task: {lines[-1]}", how)


def _of_node(name: str, facts: NodeFacts, resources: Mapping[str, float]) -> Check:
    sizes = {key: resources.get(key, 0) / 1e9 for key in ("memory", "object_store_memory")}
    return Check(
        name,
        "ok",
        f"{facts['host']}: {resources.get('CPU', 0):.0f} CPUs, {resources.get('GPU', 0):.0f} GPUs, "
        f"{sizes['memory']:.1f} GB for workers, {sizes['object_store_memory']:.1f} GB for objects",
    )


def _of_token(everywhere: bool) -> Check:
    if everywhere:
        return Check("token", "ok", "Ray accepts only connections with its token")
    how = "anyone who reaches its ports can run code: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN on all nodes"
    return Check("token", "warn", "this Ray accepts any connection", how)


def _shared(place: str) -> str:
    return f"use s3://BUCKET/..., unless {place} is the same file system on all nodes"


def ahead(ask: Callable[[], float]) -> tuple[float, float]:
    """Returns how many seconds a node's clock is ahead of ours, and the uncertainty: half of the fastest round trip.

    Args:
        ask: returns the node's time in seconds since 1970.
    """
    best = (0.0, float("inf"))
    for _ in range(_CLOCK_TRIES):
        before = time.time()
        node_time = ask()
        after = time.time()
        best = min(best, (node_time - (before + after) / 2, (after - before) / 2), key=lambda measured: measured[1])
    return best


def of_storage_from_here(
    host: str, place: str, result: StorageFacts, ahead_of_s3: tuple[float, float] | None
) -> Iterator[Check]:
    """Checks storage from this machine, and its clock against S3's, which refuses requests from wrong clocks.

    Args:
        host: name of this machine.
        place: URI of a folder.
        result: of `storage_facts`.
        ahead_of_s3: of `storage_clock`; not used for another kind of storage.
    """
    yield of_storage(f"storage from {host}", place, result)
    # If S3 cannot be reached, its missing time is not the problem to report.
    if place.startswith("s3://") and (ahead_of_s3 is not None or result["error"] is None):
        yield of_storage_clock(ahead_of_s3)
