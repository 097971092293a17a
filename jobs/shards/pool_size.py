"""The size of a worker pool: the number of workers, and the CPUs and GPUs of each."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.connection.session import Session
from cluster.resources import need_on_cluster, nodes
from library.errors import UsageError


@dataclass(frozen=True)
class WorkerPool:
    """Equal workers of a shard job.

    Attributes:
        number: of workers.
        cpus: logical CPUs of each.
        gpus: GPUs of each.
        grows: whether Ray adds workers when the cluster grows, and removes idle ones.
    """

    number: int
    cpus: int = 1
    gpus: int = 0
    grows: bool = False

    @property
    def device(self) -> str:
        """The device of a classifier: `cuda` or `cpu`."""
        return "cuda" if self.gpus else "cpu"


def pool_for_shards(session: Session, workers: str, size: str | None) -> WorkerPool:
    """Returns the pool for shards without a classifier.

    Args:
        session: the connection to Ray.
        workers: `--workers`; with `auto` the pool grows with the cluster.
        size: `--size`, which replaces `workers`; None if absent.

    Raises:
        UsageError: for more workers than this machine has CPUs.
    """
    if size is None:
        return WorkerPool(session.workers(workers), grows=session.may_grow and workers == "auto")
    need = need_on_cluster(size, "shards", may_grow=session.may_grow)
    return WorkerPool(need.workers, int(need.cpus), need.gpus)


def pool_for_classifiers(
    session: Session, workers: str, gpu: bool | None, shards: int, size: str | None = None
) -> WorkerPool:
    """Returns the pool for workers that hold a classifier: one per GPU with its share of the CPUs, or else one per CPU.

    Args:
        session: the connection to Ray.
        workers: `--workers`; with `auto` the pool grows with the cluster.
        gpu: whether workers use GPUs; None to use them if there are any.
        shards: number of shards, the most workers that are useful.
        size: `--size`, which replaces `workers` and `gpu`; None if absent.

    Raises:
        UsageError: for more workers than this machine has CPUs or GPUs.
    """
    shards, grows = max(shards, 1), session.may_grow and workers == "auto"
    if size is not None:
        need = need_on_cluster(size, "classify", may_grow=session.may_grow)
        return WorkerPool(min(need.workers, shards), int(need.cpus), need.gpus)
    with_gpu = [node for node in nodes() if node.get("GPU", 0) >= 1 and node.get("CPU", 0) >= 1]
    gpus = sum(int(node["GPU"]) for node in with_gpu)
    if gpu and not gpus and not session.may_grow:
        raise UsageError("--gpu: Ray has no GPU on this machine; leave it out to use the CPUs")
    if gpu is False or not (gpu or gpus):
        return WorkerPool(min(session.workers(workers), shards), grows=grows)
    number = max(1, gpus) if workers == "auto" else session.workers(workers)
    if number > gpus and not session.may_grow:
        raise UsageError(f"--workers {workers}: Ray has {gpus} GPUs; use at most that many workers, or --no-gpu")
    # The CPUs of a GPU's node decode for it; a node that is still starting is unknown.
    cpus = min((int(node["CPU"] // node["GPU"]) for node in with_gpu), default=1)
    return WorkerPool(min(number, shards), max(cpus, 1), 1, grows)
