"""Whether this machine, a cluster and a bucket are fit for work: a list of checks, each with what to do."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.connection.session import Session, connect, named_cluster
from cluster.doctor.facts import clock, node_facts, storage_clock
from library import storage
from library.errors import StriateError, UsageError

_NODE_TIMEOUT_S = 60
_CLOCK_TRIES = 3
#: S3 refuses what is signed by a clock 15 minutes off; logs of nodes cannot be put in order long before.
_S3_CLOCK_S, _CLOCK_WARN_S, _S3_CLOCK_WARN_S = 900, 2, 60
_SHM_BYTES = 2 * 2**30
_MEMORY_BYTES = 4 * 10**9

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it is, what was found, and what to do about it."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


def examine(address: str | None = None, place: str | None = None) -> Iterator[Check]:
    """Check this machine, then Ray and each of its nodes, then the bucket or folder `place` from all of them.

    Args:
        address: of a cluster, as for a job; without one (and without RAY_ADDRESS) a Ray is started here for a moment.
        place: dataset, bundle or just a prefix below which a small object may be written.

    Raises:
        UsageError: for an address or a place that can be none.
    """
    if address is not None and address.startswith(("http://", "https://")):
        raise UsageError(
            f"--address {address}: that is the dashboard's; a cluster is examined from inside it: "
            f"striate submit --address {address} -- doctor"
        )
    place = None if place is None else storage.normalize(place)
    here = node_facts(place)
    yield from of_machine(here)
    yield from _of_ray(address, here, place)
    if place is not None:
        yield from of_storage_from_here(here, place)


def of_machine(facts: Mapping[str, Any]) -> Iterator[Check]:
    """Of the machine this runs on."""
    versions: Mapping[str, str | None] = facts["versions"]
    told = ", ".join(f"{name} {versions[name] or 'absent'}" for name in ("python", "striate", "ray", "torch"))
    absent = [name for name, version in versions.items() if version is None]
    if absent:
        yield Check("versions", "fail", told, f"install what is absent ({', '.join(absent)}): make setup")
    else:
        yield Check("versions", "ok", told)
    memory = facts["memory_bytes"]
    told = f"{facts['cpus']} CPUs, {memory / 1e9:.1f} GB"
    if memory < _MEMORY_BYTES:
        yield Check("machine", "warn", told, "Ray, and a worker a CPU, want 4 GB: give --workers 1, or more memory")
    else:
        yield Check("machine", "ok", told)
    yield _of_gpus(facts["gpus"])
    yield _of_shm("shared memory", facts["shm_bytes"])
    if facts["open_token_files"]:
        paths = " ".join(facts["open_token_files"])
        yield Check("token file", "warn", f"{paths}: other users of this machine can read it", f"chmod 600 {paths}")


def _of_gpus(gpus: Mapping[str, Any]) -> Check:
    if not gpus["devices"]:
        return Check("GPUs", "ok", "none")
    told = ", ".join(f"{count}x {name}" for name, count in Counter(gpus["names"]).items()) or "none usable"
    if gpus["usable"] < gpus["devices"]:
        return Check(
            "GPUs",
            "warn",
            f"{told} of {gpus['devices']}",
            "torch cannot use them all: compare `nvidia-smi` with python -c 'import torch; print(torch.version.cuda)', "
            "and look at CUDA_VISIBLE_DEVICES",
        )
    return Check("GPUs", "ok", told)


def _of_shm(name: str, size: int | None) -> Check:
    if size is None:
        return Check(name, "ok", "no /dev/shm; Ray uses files")
    told = f"/dev/shm {size / 2**30:.1f} GiB"
    if size < _SHM_BYTES:
        return Check(
            name, "warn", told, "Ray's objects then lie on disk: docker run --shm-size=2g, or an emptyDir in memory"
        )
    return Check(name, "ok", told)


def _of_ray(address: str | None, here: Mapping[str, Any], place: str | None) -> Iterator[Check]:
    cluster = named_cluster(address)
    try:
        with connect(address) as session:
            yield _of_session(cluster, session)
            yield from _of_nodes(here, place, is_cluster=cluster is not None)
    except StriateError as error:
        if isinstance(error, UsageError):
            raise
        advice = "see /tmp/ray/session_latest/logs" if cluster is None else "see `ray status` there; mind the firewall"
        yield Check("Ray", "fail", str(error), advice)


def _of_session(cluster: str | None, session: Session) -> Check:
    told = f"{'starts here' if cluster is None else 'answers'}: {session}"
    if session.cpus == 0:
        return Check("Ray", "warn", told, "no node has a CPU for work: start workers, or wait for the autoscaler")
    return Check("Ray", "ok", told)


def _of_nodes(here: Mapping[str, Any], place: str | None, *, is_cluster: bool) -> Iterator[Check]:
    """A small task is run on each node; what the nodes say is compared with what is true here."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    pins = {id_: NodeAffinitySchedulingStrategy(id_, soft=False) for id_ in nodes}
    tasks: Any = ray.remote(num_cpus=0)  # its types are wrong
    ask, time_there = tasks(node_facts), tasks(clock)
    asked = {id_: ask.options(scheduling_strategy=pin).remote(place) for id_, pin in pins.items()}
    end = time.monotonic() + _NODE_TIMEOUT_S
    told: dict[str, dict[str, Any]] = {}
    for id_, node in nodes.items():
        name = f"node {node['NodeManagerAddress']} ({id_[:8]})"
        found = _heard(name, asked[id_], time_there.options(scheduling_strategy=pins[id_]), end)
        if isinstance(found, Check):
            yield found
            continue
        told[name], (ahead_s, exactly_s) = found
        yield _of_node(name, told[name], node["Resources"])
        if is_cluster:
            yield of_clock(f"clock of {node['NodeManagerAddress']}", ahead_s, exactly_s)
            yield _of_shm(f"shared memory of {node['NodeManagerAddress']}", told[name]["shm_bytes"])
            if place is not None:
                yield of_storage(f"storage from {node['NodeManagerAddress']}", place, told[name]["storage"])
    yield of_versions(here["versions"], {name: facts["versions"] for name, facts in told.items()})
    if is_cluster and told:
        yield _of_token(all(facts["token"] for facts in told.values()))
    if place is not None and not storage.is_remote(place) and len({facts["host"] for facts in told.values()}) > 1:
        yield Check("storage", "warn", f"{place} is a folder, and there are several machines", _shared(place))


def _heard(name: str, asked: Any, time_there: Any, end: float) -> tuple[dict[str, Any], tuple[float, float]] | Check:
    """A node's facts, and how far its clock is ahead; what is wrong where it does not answer."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        facts: Any = ray.get(asked, timeout=max(0.1, end - time.monotonic()))
        return facts, ahead(lambda: ray.get(time_there.remote(), timeout=_NODE_TIMEOUT_S))
    except GetTimeoutError:
        return Check(name, "fail", f"runs no task within {_NODE_TIMEOUT_S} s", "see its raylet.out; restart the node")
    except RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        how = "install the same striate there, or examine it from inside: striate submit -- doctor"
        return Check(name, "fail", f"cannot run a task: {lines[-1]}", how)


def _of_node(name: str, facts: Mapping[str, Any], resources: Mapping[str, float]) -> Check:
    sizes = {key: resources.get(key, 0) / 1e9 for key in ("memory", "object_store_memory")}
    return Check(
        name,
        "ok",
        f"{facts['host']}: {resources.get('CPU', 0):.0f} CPUs, {resources.get('GPU', 0):.0f} GPUs, "
        f"{sizes['memory']:.1f} GB for workers, {sizes['object_store_memory']:.1f} GB for objects",
    )


def _of_token(everywhere: bool) -> Check:
    if everywhere:
        return Check("token", "ok", "Ray lets in only who has its token")
    how = "who reaches its ports runs code: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN on all nodes"
    return Check("token", "warn", "this Ray lets in everybody", how)


def _shared(place: str) -> str:
    return f"use s3://BUCKET/..., unless {place} is one and the same file system on all of them"


def ahead(ask: Callable[[], float]) -> tuple[float, float]:
    """How many seconds a node's clock is ahead of ours, and how exactly that is known: of several tries the quickest,
    as the answer was made at some time between question and answer."""
    best = (0.0, float("inf"))
    for _ in range(_CLOCK_TRIES):
        before = time.time()
        there = ask()
        after = time.time()
        best = min(best, (there - (before + after) / 2, (after - before) / 2), key=lambda found: found[1])
    return best


def of_storage_from_here(here: Mapping[str, Any], place: str) -> Iterator[Check]:
    """Of this machine's way to `place`, and of the clock of S3, which also refuses whose clock is off."""
    yield of_storage(f"storage from {here['host']}", place, here["storage"])
    if place.startswith("s3://"):
        found = storage_clock(place)
        # Where nobody is reached nobody tells the time either, and that is not what is wrong.
        if found is not None or here["storage"]["error"] is None:
            yield of_storage_clock(found)


def of_clock(name: str, ahead_s: float, exactly_s: float) -> Check:
    """Of a node against this machine."""
    told = f"{ahead_s:+.3f} s, known to {exactly_s:.3f} s"
    if abs(ahead_s) - exactly_s > _CLOCK_WARN_S:
        return Check(name, "warn", told, "logs and progress cannot be put in order: run chrony or ntpd on the nodes")
    return Check(name, "ok", told)


def of_storage_clock(found: tuple[float, float] | None) -> Check:
    """Of this machine against S3."""
    if found is None:
        return Check("clock of S3", "warn", "it does not tell its time", "compare `date -u` with it by other means")
    ahead_s, exactly_s = found
    told = f"this clock is {ahead_s:+.1f} s ahead, known to {exactly_s:.1f} s"
    off = abs(ahead_s) - exactly_s
    if off > _S3_CLOCK_WARN_S:
        verdict: Verdict = "fail" if off > _S3_CLOCK_S else "warn"
        return Check("clock of S3", verdict, told, "S3 refuses requests 15 minutes off: run chrony or ntpd here")
    return Check("clock of S3", "ok", told)


def of_storage(name: str, place: str, found: Mapping[str, Any]) -> Check:
    """Of a bucket or folder, from one machine."""
    if found["error"] is None:
        return Check(name, "ok", f"{place}: an object was written, read and removed in {found['ms']} ms")
    advice = {
        "written": "give the right to write there (s3:PutObject); nodes need the credentials too (a role, or striate "
        "submit --env 'AWS_*')",
        "read": "give the right to read there (s3:GetObject)",
        "removed": "give the right to delete there (s3:DeleteObject), and remove the object that is left there",
        "listed": "give the right to list the bucket (s3:ListBucket)",
    }[str(found["step"])]
    return Check(
        name, "fail", str(found["error"]), advice if storage.is_remote(place) else "choose a folder of your own"
    )


def of_versions(here: Mapping[str, str | None], nodes: Mapping[str, Mapping[str, str | None]]) -> Check:
    """What differs between the nodes and this machine."""
    found: list[str] = []
    for package, version in here.items():
        others = [f"{told[package] or 'absent'} on {name}" for name, told in nodes.items() if told[package] != version]
        if others:
            found.append(f"{package} {version or 'absent'} here, {', '.join(others)}")
    if found:
        return Check(
            "versions of nodes", "fail", "; ".join(found), "install the same requirements.lock on all, or use one image"
        )
    return Check("versions of nodes", "ok", f"the same on {len(nodes)} node{'' if len(nodes) == 1 else 's'}")


def worst(checks: Sequence[Check]) -> Verdict:
    """The worst verdict of all."""
    order: list[Verdict] = ["ok", "warn", "fail"]
    return order[max((order.index(check.verdict) for check in checks), default=0)]
