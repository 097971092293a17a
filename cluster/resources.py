"""Named sizes: the number of workers of a job and the resources of each, checked against the nodes that are up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from library.errors import UsageError
from library.grammar import nearest

#: Kinds of jobs: over shards without a classifier, training, and over shards with a classifier.
Kind = Literal["shards", "train", "classify"]


@dataclass(frozen=True)
class Need:
    """Workers of one kind.

    Attributes:
        workers: how many.
        cpus: logical CPUs of each.
        gpus: GPUs of each.
        memory_gb: memory of each in 10**9 bytes, including its pictures and model.
    """

    workers: int
    cpus: float = 1
    gpus: int = 0
    memory_gb: float = 1

    def __str__(self) -> str:
        gpus = f", {self.gpus} GPU" if self.gpus else ""
        each = f"{self.cpus:g} CPU{gpus} and {self.memory_gb:g} GB"
        return f"1 worker with {each}" if self.workers == 1 else f"{self.workers} workers with {each} each"


#: A training worker takes half of its CPUs and the other half decodes, as with `--workers`.
SIZES: Mapping[str, Mapping[Kind, Need]] = {
    # Two cores and 8 GB, shared with an editor and a browser.
    "laptop": {"shards": Need(2), "train": Need(1, 1, 0, 2), "classify": Need(1, 1, 0, 2)},
    # Sixteen cores without a GPU.
    "cpu-small": {"shards": Need(16), "train": Need(4, 2, 0, 4), "classify": Need(16, 1, 0, 2)},
    # One GPU and at least eight CPUs.
    "gpu-1": {"shards": Need(8), "train": Need(1, 1, 1, 8), "classify": Need(1, 8, 1, 8)},
    # Eight of these, in one machine or in several.
    "gpu-8": {"shards": Need(64), "train": Need(8, 1, 1, 8), "classify": Need(8, 8, 1, 8)},
}


def nodes() -> list[Mapping[str, float]]:
    """Resources (CPU, GPU, memory in bytes, ...) of each node that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def need_on_cluster(size: str, kind: Kind, *, may_grow: bool) -> Need:
    """Returns the workers of a size for a kind of job on the connected Ray.

    Args:
        size: its name.
        kind: of the job.
        may_grow: whether nodes may be added; if not, the workers must fit on the nodes that are up.

    Raises:
        UsageError: for an unknown size, or one that does not fit.
    """
    return need_of(size, kind) if may_grow else need_on_nodes(size, kind, nodes())


def need_on_nodes(size: str, kind: Kind, nodes: Sequence[Mapping[str, Any]]) -> Need:
    """Returns the workers of a size, which must fit on nodes with these resources (CPU, GPU, and memory in bytes).

    Raises:
        UsageError: for an unknown size, or one that does not fit.
    """
    need = need_of(size, kind)
    room = _room(need, nodes)
    if room >= need.workers:
        return need
    others = [name for name in SIZES if _room(SIZES[name][kind], nodes) >= SIZES[name][kind].workers]
    instead = f"sizes that fit: {', '.join(others)}" if others else "no size fits"
    raise UsageError(
        f"--size {size} needs {need}, but only {room} fit: Ray has {_resources_text(nodes)}; {instead}, or use "
        "--workers instead"
    )


def need_of(size: str, kind: Kind) -> Need:
    """Returns the workers of a size for a kind of job, whether they fit or not.

    Raises:
        UsageError: for an unknown size.
    """
    if size not in SIZES:
        raise UsageError(f"--size '{size}': there is no such size{nearest(size, SIZES)}")
    return SIZES[size][kind]


def _room(need: Need, nodes: Sequence[Mapping[str, Any]]) -> int:
    """Returns how many such workers fit, each on one node."""
    amounts = {"CPU": need.cpus, "GPU": need.gpus, "memory": need.memory_gb * 1e9}
    return sum(int(min(node.get(name, 0) / amount for name, amount in amounts.items() if amount)) for node in nodes)


def _resources_text(nodes: Sequence[Mapping[str, Any]]) -> str:
    cpus, gpus, memory = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU", "memory"))
    count = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}"
    return f"{cpus:g} CPUs, {gpus:g} GPUs and {memory / 1e9:.1f} GB for workers on {count}"
