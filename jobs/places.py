"""How many workers there are, and what each of them has."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.nodes import reachable
from cluster.resources import placed
from cluster.session import Session
from library.errors import UsageError


@dataclass(frozen=True)
class Places:
    """Workers of one kind.

    Attributes:
        number: how many.
        cpus: logical CPUs of each.
        gpus: GPUs of each.
    """

    number: int
    cpus: int = 1
    gpus: int = 0

    @property
    def device(self) -> str:
        """Where a classifier runs: `cuda` or `cpu`."""
        return "cuda" if self.gpus else "cpu"


def places_of_shards(session: Session, wanted: str, size: str | None) -> Places:
    """Workers that each make one shard at a time.

    Args:
        session: the connection to Ray.
        wanted: `--workers`.
        size: `--size`, which counts instead where it is given.

    Raises:
        UsageError: more than there is room for.
    """
    if size is None:
        return Places(session.workers(wanted))
    need = placed(size, "shards")
    return Places(need.workers, int(need.cpus), need.gpus)


def places_of_classifiers(
    session: Session, wanted: str, gpu: bool | None, shards: int, size: str | None = None
) -> Places:
    """Workers that each hold a classifier: one a GPU with the CPUs beside it, or else one a CPU; no more than shards.

    Args:
        session: the connection to Ray.
        wanted: `--workers`.
        gpu: whether they use GPUs; None where there are any.
        shards: to be worked on.
        size: `--size`, which counts instead of `wanted` and `gpu` where it is given.

    Raises:
        UsageError: more workers than there is room for, or GPUs where there are none.
    """
    if size is not None:
        need = placed(size, "classify")
        return Places(min(need.workers, max(shards, 1)), int(need.cpus), need.gpus)
    with_gpu = [node for node in reachable() if node.get("GPU", 0) >= 1 and node.get("CPU", 0) >= 1]
    gpus = sum(int(node["GPU"]) for node in with_gpu)
    if gpu and not gpus:
        raise UsageError("--gpu: Ray has no GPU here; leave it out to use the CPUs")
    if gpu is False or not gpus:
        return Places(min(session.workers(wanted), max(shards, 1)))
    number = max(1, session.present_gpus) if wanted == "auto" else session.workers(wanted)
    if number > gpus:
        raise UsageError(f"--workers {wanted}: Ray has {gpus} GPUs; ask for at most so many, or for --no-gpu")
    # The CPUs beside each GPU decode for it.
    cpus = min(int(node["CPU"] // node["GPU"]) for node in with_gpu)
    return Places(min(number, max(shards, 1)), max(cpus, 1), 1)
