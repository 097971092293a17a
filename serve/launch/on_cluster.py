"""Serve on a cluster that others have started: what must hold there before models are put on it, and what a model that
does not come up leaves behind."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from cluster import ray_internals
from cluster.connection.session import Session
from cluster.console import say
from cluster.shared_paths import check_shared
from library.errors import UsageError
from serve.launch.exposure import is_loopback, is_wildcard
from serve.launch.request import ServePlan

_NAMESPACE, _LISTENS = "striate", "serve:listens"
#: Ray counts CPUs and GPUs to so many digits.
_DIGITS = 4


def publish(host: str, port: int) -> None:
    """Tell commands that come to this Ray later where Serve is asked; it itself knows only what lies behind HAProxy."""
    ray_internals.kv_put(_LISTENS, f"{host} {port}".encode(), namespace=_NAMESPACE)


def listens_at(plan: ServePlan) -> tuple[str, int] | None:
    """Host and port of a Serve that runs there already; None where none does.

    Raises:
        UsageError: when it listens somewhere else than was asked for.
    """
    listens = _listens()
    if listens is None:
        return None
    host, port = listens
    wanted = {"host": plan.host, "port": plan.port}
    found = {"host": host, "port": port}
    for name in sorted(plan.asked):
        if wanted[name] != found[name]:
            raise UsageError(
                f"--{name} {wanted[name]}: Serve runs on this cluster already and listens on {host}:{port}; leave "
                f"--{name} out, or end it, with all that it serves, by `serve shutdown`"
            )
    return listens


def proxy_here() -> tuple[str, int]:
    """Where the Serve that runs listens on this machine, for a process of this machine."""
    listens = _listens()
    assert listens is not None, "asked inside of Serve only"
    host, port = listens
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port


def _listens() -> tuple[str, int] | None:
    address = ray_internals.serve_address()
    published = ray_internals.kv_get(_LISTENS, namespace=_NAMESPACE) if address else None
    if not published:
        return address
    host, _, port = published.decode().partition(" ")
    return host, int(port)


def check_cluster(plan: ServePlan, session: Session, host: str) -> None:
    """Refuse what could not come up there, or not be reached, or be reached by anyone.

    Args:
        plan: what to serve.
        session: a connection to the cluster.
        host: where Serve listens on each machine, or will.

    Raises:
        UsageError: for an address that others reach where no keys are asked for, or that not every machine has; for
            replicas with more CPUs than any machine, or more than the cluster has together; and for bundles and key
            files that some machine does not see.
    """
    if not plan.needs_key and not is_loopback(host):
        raise UsageError(f"Serve listens on {host} there, and there are no API keys: make one with `striate keys`")
    if "port" in plan.asked and plan.port == 0:
        raise UsageError("--port 0: on a cluster no free port is looked for; name one, or leave it out for 8000")
    for sentence in shortages(plan, session):
        say(f"waiting for resources: {sentence}", file=sys.stderr, flush=True)
    if _are_several() and not is_wildcard(host):
        raise UsageError(
            f"--host {host}: this cluster has several machines, which ask each other's replicas, and each has an "
            "address of its own: serve with --host 0.0.0.0 and --api-keys FILE (`striate keys` makes one; "
            "`serve shutdown` first where Serve runs already)"
        )
    check_shared(reads=plan.bundles.values())
    try:
        # The gateway asks for no CPU.
        check_shared(reads=plan.key_files, on_nodes_without_cpus=True)
    except UsageError as error:
        raise UsageError(f"{error}. The lines of a key file may also stand in STRIATE_API_KEYS") from None


def shortages(plan: ServePlan, session: Session) -> list[str]:
    """What the replicas need and the cluster does not have now: a sentence each. Its autoscaler may bring it."""
    largest = max(session.node_cpus, default=0)
    sentences = [
        f"a replica of '{each.application}' needs {each.cpus:g} CPUs, and the largest machine of the cluster has "
        f"{largest:g} (--cpus-per-replica)"
        for each in plan.replicas
        if each.cpus > largest
    ]
    for what, needed, present in (
        ("CPUs", sum(each.fewest * each.cpus for each in plan.replicas), session.cpus),
        ("GPUs", sum(each.fewest * each.gpus for each in plan.replicas), session.gpus),
    ):
        if round(needed, _DIGITS) > present:
            sentences.append(f"the replicas of all models need {needed:g} {what}, and the cluster has {present}")
    return sentences


def at_head(host: str, address: str) -> str:
    """Where a cluster's Serve is asked that listens at `host`: at its head, where that is on every machine.

    Args:
        host: where it listens.
        address: of the cluster, as `cluster.connection.session.connect` takes it.
    """
    import ray

    if not is_wildcard(host):
        return host
    if address == "auto":
        address = ray.get_runtime_context().gcs_address
    return address.removeprefix("ray://").rpartition(":")[0].strip("[]")


@contextmanager
def taken_back(names: Sequence[str]) -> Generator[None]:
    """Where the block fails, end the applications of these names that were not there before it, which Serve would try
    again for ever; and Serve itself, where it was started in the block and serves nobody else.

    What cannot be ended is told on stderr.
    """
    from ray import serve

    ran = ray_internals.serve_address() is not None
    before = set(serve.status().applications) if ran else set[str]()
    try:
        yield
    except BaseException:
        try:
            _take_back([name for name in names if name not in before], ran=ran)
        except Exception as error:  # whatever Ray raises when it is gone; the first error is the one to tell
            say(f"what was begun could not be taken back: {type(error).__name__} {error}", file=sys.stderr)
        raise


def _take_back(names: Sequence[str], *, ran: bool) -> None:
    from ray import serve

    if ray_internals.serve_address() is None:
        return
    there = set(serve.status().applications)
    if not ran and there <= set(names):
        serve.shutdown()
        return
    for name in there.intersection(names):
        serve.delete(name, _blocking=False)


def _are_several() -> bool:
    """Machines; nodes of one machine, as of `striate cluster up`, share an address."""
    import ray

    return len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}) > 1
