"""How many workers there are, and what each of them has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.connection.session import Session
from cluster.resources import nodes, placed
from library.errors import UsageError

if TYPE_CHECKING:  # it takes a second, and planning does not need it
    from ray.data import ActorPoolStrategy

# Tasks a worker.
_FEW_TASKS = 4


@dataclass(frozen=True)
class WorkerPool:
    """Workers of one kind.

    Attributes:
        number: how many.
        cpus: logical CPUs of each.
        gpus: GPUs of each.
        grows: whether there are more of them when the cluster grows, and fewer when they have no work.
    """

    number: int
    cpus: int = 1
    gpus: int = 0
    grows: bool = False

    @property
    def device(self) -> str:
        """Where a classifier runs: `cuda` or `cpu`."""
        return "cuda" if self.gpus else "cpu"

    def strategy(self, tasks: int) -> ActorPoolStrategy:
        """The pool of actors for so many tasks."""
        from ray.data import ActorPoolStrategy

        number = min(self.number, tasks)
        # One task in work and one that waits at each worker, so that no worker waits for the driver. Where tasks
        # are few none waits: it could be in work at another worker. The one that waits has a thread of its own and
        # begins before the result of the other is stored; a pool that grows must not have one for each, since Ray Data
        # adds workers where there are more tasks than threads.
        few = tasks < _FEW_TASKS * number
        return ActorPoolStrategy(
            min_size=1 if self.grows else number,
            max_size=tasks if self.grows else number,
            initial_size=number,
            max_tasks_in_flight_per_actor=1 if few and not self.grows else 2,
            max_concurrent_calls_per_actor=1 if few or self.grows else 2,
        )

    def waiting(self) -> str:
        """What is said while no worker is up."""
        import ray

        free, total = ray.available_resources(), ray.cluster_resources()
        gpus = f" and {self.gpus} GPU" if self.gpus else ""
        some = [f"{free.get('CPU', 0):g} of {total.get('CPU', 0):g} CPUs"]
        if self.gpus:
            some.append(f"{free.get('GPU', 0):g} of {total.get('GPU', 0):g} GPUs")
        return (
            f"waiting for resources: each worker needs {self.cpus} CPU{gpus}, and {' and '.join(some)} are free. Other "
            "jobs may be using them, or nodes are still starting (`ray status`)"
        )


def pool_for_shards(session: Session, wanted: str, size: str | None) -> WorkerPool:
    """Workers that each work on one shard at a time.

    Args:
        session: the connection to Ray.
        wanted: `--workers`; with `auto` there are more when a cluster grows.
        size: `--size`, which counts instead where it is given.

    Raises:
        UsageError: for more than this machine has room for.
    """
    if size is None:
        return WorkerPool(session.workers(wanted), grows=session.may_grow and wanted == "auto")
    need = placed(size, "shards", may_grow=session.may_grow)
    return WorkerPool(need.workers, int(need.cpus), need.gpus)


def pool_for_classifiers(
    session: Session, wanted: str, gpu: bool | None, shards: int, size: str | None = None
) -> WorkerPool:
    """Workers that each hold a classifier: one a GPU with the CPUs beside it, or else one a CPU; no more than shards.

    Args:
        session: the connection to Ray.
        wanted: `--workers`; with `auto` there are more when a cluster grows.
        gpu: whether they use GPUs; None where there are any.
        shards: to be worked on.
        size: `--size`, which counts instead of `wanted` and `gpu` where it is given.

    Raises:
        UsageError: for more workers than this machine has room for, or GPUs where it has none.
    """
    shards, grows = max(shards, 1), session.may_grow and wanted == "auto"
    if size is not None:
        need = placed(size, "classify", may_grow=session.may_grow)
        return WorkerPool(min(need.workers, shards), int(need.cpus), need.gpus)
    with_gpu = [node for node in nodes() if node.get("GPU", 0) >= 1 and node.get("CPU", 0) >= 1]
    gpus = sum(int(node["GPU"]) for node in with_gpu)
    if gpu and not gpus and not session.may_grow:
        raise UsageError("--gpu: Ray has no GPU here; leave it out to use the CPUs")
    if gpu is False or not (gpu or gpus):
        return WorkerPool(min(session.workers(wanted), shards), grows=grows)
    number = max(1, gpus) if wanted == "auto" else session.workers(wanted)
    if number > gpus and not session.may_grow:
        raise UsageError(f"--workers {wanted}: Ray has {gpus} GPUs; ask for at most as many, or for --no-gpu")
    # The CPUs beside each GPU decode for it; of a node that is still to come nothing is known.
    cpus = min((int(node["CPU"] // node["GPU"]) for node in with_gpu), default=1)
    return WorkerPool(min(number, shards), max(cpus, 1), 1, grows)
