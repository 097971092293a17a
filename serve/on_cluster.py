"""Serve on a cluster that others have started: what must hold there before models are put on it, and what a model that
does not come up leaves behind."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from cluster.session import Session
from cluster.shared_paths import check_shared
from library.errors import UsageError
from serve.plan import ServePlan
from serve.reach import is_loopback, is_wildcard


def listens_at(plan: ServePlan) -> tuple[str, int] | None:
    """Host and port of a Serve that runs there already; None where none does.

    Raises:
        UsageError: when it listens somewhere else than was asked for.
    """
    from ray.serve.context import _get_global_client  # pyright: ignore[reportPrivateUsage]

    client: Any = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    host, port = client.http_config.host, client.http_config.port
    if plan.host != host and not is_loopback(plan.host):
        raise UsageError(
            f"--host {plan.host}: Serve runs on this cluster already and listens on {host}:{port}; leave --host out, "
            "or end it, with all that it serves, by `serve shutdown`"
        )
    return host, port


def check_cluster(plan: ServePlan, session: Session, host: str) -> None:
    """Refuse what could not come up there, or not be reached.

    Args:
        plan: what to serve.
        session: a connection to the cluster.
        host: where Serve listens on each machine.

    Raises:
        UsageError: for replicas larger than any machine or all of them, an address that not every machine has, and
            bundles or key files that some machine does not see.
    """
    _check_room(plan, session)
    machines = _machines()
    if len(machines) > 1 and not is_wildcard(host):
        raise UsageError(
            f"--host {host}: this cluster has {len(machines)} machines, which ask each other's replicas, and each has "
            "an address of its own: serve with --host 0.0.0.0 and --api-keys FILE (`striate keys` makes one)"
        )
    check_shared(reads=plan.bundles.values())
    try:
        check_shared(reads=plan.key_files)
    except UsageError as error:
        raise UsageError(f"{error}. The lines of a key file may also stand in STRIATE_API_KEYS") from None


def _check_room(plan: ServePlan, session: Session) -> None:
    largest = max(session.node_cpus, default=0)
    for each in plan.replicas:
        if each.cpus > largest:
            raise UsageError(
                f"a replica of '{each.application}' asks for {each.cpus:g} CPUs, and the largest machine of the "
                f"cluster has {largest:g}: ask for fewer with --cpus-per-replica"
            )
    for what, wanted, there in (
        ("CPUs", sum(each.fewest * each.cpus for each in plan.replicas), session.cpus),
        ("GPUs", sum(each.fewest * each.gpus for each in plan.replicas), session.gpus),
    ):
        if wanted > there:
            raise UsageError(f"the replicas of all models ask for {wanted:g} {what}, and the cluster has {there}")


def _machines() -> set[str]:
    """Addresses of the nodes; nodes of one machine, as of `striate cluster up`, share one."""
    import ray

    return {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


@contextmanager
def taken_back(names: Sequence[str], *, started: bool) -> Generator[None]:
    """Where the block fails, end the applications of these names that were not there before it, which Serve would try
    again for ever.

    Args:
        names: of applications.
        started: whether Serve itself was started for them; it ends too, then.
    """
    from ray import serve

    before = set() if started else set(serve.status().applications)
    try:
        yield
    except BaseException:
        if started:
            serve.shutdown()
        else:
            for name in [name for name in names if name not in before]:
                serve.delete(name)
        raise


def at_head(host: str, address: str) -> str:
    """Where a cluster's Serve is asked that listens at `host`: at its head, where that is on every machine.

    Args:
        host: where it listens.
        address: of the cluster, as `cluster.session.connect` takes it.
    """
    import ray

    if not is_wildcard(host):
        return host
    if address == "auto":
        address = ray.get_runtime_context().gcs_address
    return address.removeprefix("ray://").rpartition(":")[0].strip("[]")
