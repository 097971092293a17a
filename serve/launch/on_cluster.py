"""Serving on an existing Ray cluster: checks before models are deployed there, and the rollback where one fails."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from cluster import ray_internals
from cluster.connection.session import Session
from cluster.console import say
from cluster.shared_paths import check_shared
from library.errors import UsageError
from serve.endpoint import is_loopback, is_wildcard, serve_address
from serve.launch.arguments import ServePlan

#: Decimal places to which Ray counts CPUs and GPUs.
_DIGITS = 4


def running_address(plan: ServePlan) -> tuple[str, int] | None:
    """Returns host and port of the Serve that runs on the cluster already; None where none does.

    Raises:
        UsageError: when it listens at another host or port than the command line or the config file names.
    """
    address = serve_address()
    if address is None:
        return None
    host, port = address
    planned = {"host": plan.host, "port": plan.port}
    actual = {"host": host, "port": port}
    for name in sorted(plan.explicit):
        if planned[name] != actual[name]:
            raise UsageError(
                f"--{name} {planned[name]}: Serve already runs on this cluster and listens on {host}:{port}; leave "
                f"--{name} out, or stop that Serve and all its models with `serve shutdown`"
            )
    return address


def check_cluster(plan: ServePlan, session: Session, host: str) -> None:
    """Refuses a plan that the cluster could not run, that clients could not reach, or that anyone could use.

    Missing CPUs and GPUs are only printed, as the autoscaler may add them.

    Args:
        plan: the server to start.
        session: a connection to the cluster.
        host: the address where Serve listens, or will listen, on each machine.

    Raises:
        UsageError: for an address that other machines reach without keys, or that not every machine has; for bundles
            and key files that some machine cannot read.
    """
    if not plan.needs_key and not is_loopback(host):
        raise UsageError(
            f"Serve listens on {host} on this cluster and needs API keys: make one with `striate keys NAME --file "
            "keys.txt` and serve with --api-keys keys.txt"
        )
    if "port" in plan.explicit and plan.port == 0:
        raise UsageError("--port 0 is not supported on a cluster: name a port, or leave it out for 8000")
    for sentence in shortages(plan, session):
        say(f"waiting for resources: {sentence}", file=sys.stderr, flush=True)
    if _has_several_machines() and not is_wildcard(host):
        raise UsageError(
            f"--host {host}: this cluster has several machines that must reach each other's replicas: serve with "
            "--host 0.0.0.0 and --api-keys FILE (`striate keys` makes one; `serve shutdown` first where Serve "
            "already runs)"
        )
    check_shared(reads=plan.bundles.values())
    try:
        # The gateway needs no CPU, so it may run on any node.
        check_shared(reads=plan.key_files, on_nodes_without_cpus=True)
    except UsageError as error:
        raise UsageError(f"{error}. STRIATE_API_KEYS can hold the lines of a key file instead") from None


def shortages(plan: ServePlan, session: Session) -> list[str]:
    """Returns a sentence for each resource that the replicas need and the cluster does not have now."""
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


def head_host(host: str, address: str) -> str:
    """Returns the host at which clients reach a cluster's Serve: the head node where it listens on every machine.

    Args:
        host: the address that Serve listens on.
        address: address of the cluster, as `cluster.connection.session.connect` takes it.
    """
    import ray

    if not is_wildcard(host):
        return host
    if address == "auto":
        address = ray.get_runtime_context().gcs_address
    return address.removeprefix("ray://").rpartition(":")[0].strip("[]")


@contextmanager
def rolled_back(names: Sequence[str]) -> Generator[None]:
    """Removes the new applications among `names` when the block fails; Serve would retry them without end.

    Shuts Serve down where the block started it and it runs no other application. A failure to remove them is printed
    to stderr.
    """
    from ray import serve

    ran = ray_internals.serve_address() is not None
    before = set(serve.status().applications) if ran else set[str]()
    try:
        yield
    except BaseException:
        try:
            _remove([name for name in names if name not in before], ran=ran)
        except Exception as error:  # whatever Ray raises after it has ended; the first error is the one to report
            say(f"the applications cannot be removed: {type(error).__name__} {error}", file=sys.stderr)
        raise


def _remove(names: Sequence[str], *, ran: bool) -> None:
    from ray import serve

    if ray_internals.serve_address() is None:
        return
    running = set(serve.status().applications)
    if not ran and running <= set(names):
        serve.shutdown()
        return
    for name in running.intersection(names):
        serve.delete(name, _blocking=False)


def _has_several_machines() -> bool:
    """Whether the cluster has several machines; nodes on one machine (`striate cluster up`) share an address."""
    import ray

    return len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}) > 1
