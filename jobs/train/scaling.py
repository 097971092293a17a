"""The number of training workers, and the CPUs and GPUs of workers and decoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.connection.session import Session
from library.errors import UsageError


@dataclass(frozen=True)
class Scaling:
    """The workers of a training and their resources.

    Attributes:
        workers: minimum and maximum number of workers.
        gpu: whether each worker has a GPU.
        worker_cpus: logical CPUs of each worker; the other CPUs decode.
        threads: threads of torch in each worker.
        decoders: number of actors that decode a stream for each worker.
        decoder_cpus: logical CPUs of each of these actors.
        cluster: whether Ray runs on a cluster, which others may use too.
        waits_for_nodes: whether the workers have to wait for more nodes.
    """

    workers: tuple[int, int]
    gpu: bool
    worker_cpus: float
    threads: int
    decoders: int
    decoder_cpus: float
    cluster: bool = False
    waits_for_nodes: bool = False

    @classmethod
    def choose(cls, session: Session, workers: str, *, gpu: bool | None, cpus_per_worker: float | None) -> Scaling:
        """Divides the CPUs between workers and decoders.

        On a cluster that lacks nodes for the minimum number of workers, each worker gets one CPU (or `cpus_per_worker`)
        and one decoder, because the size of future nodes is not known.

        Args:
            session: the connection to Ray.
            workers: number of workers, or a range such as `1-8`.
            gpu: whether each worker gets a GPU; None uses GPUs if there are any.
            cpus_per_worker: logical CPUs of each worker; None leaves half of all CPUs for decoding.

        Raises:
            UsageError: when the machine or the cluster has too few CPUs or GPUs, and cannot grow.
        """
        low, high = _range(workers)
        use_gpu = session.gpus > 0 if gpu is None else gpu
        present = session.gpus if use_gpu else session.cpus
        if low > present and not session.may_grow:
            what, instead = ("GPUs", ", or --no-gpu") if use_gpu else ("CPUs", "")
            raise UsageError(f"--workers {workers}: Ray has {present} {what}; use at most {present} workers{instead}")
        if not session.may_grow:
            high = min(high, present)
        now = min(high, present)  # shares of the present CPUs; more workers start with more nodes
        share = cpus_per_worker or 1.0
        waiting = cls((low, high), use_gpu, share, max(1, int(share)), 1, 1.0, cluster=True, waits_for_nodes=True)
        if low > min(present, session.cpus):
            return waiting
        if cpus_per_worker is None:
            share = min(session.cpus / (2 * now), 1.0 if use_gpu else 64, _max_share(session.node_cpus, now))
        room = sum(int(cpus / share) for cpus in session.node_cpus)
        if room < low:
            if session.may_grow:
                return waiting
            raise UsageError(
                f"--cpus-per-worker {share:g} x {low} workers: a worker runs on one node, and only {room} fit; use at "
                f"most --cpus-per-worker {_max_share(session.node_cpus, low):.2g}"
            )
        left = session.cpus - share * now
        if left <= 0:
            raise UsageError(
                f"--cpus-per-worker {share:g} x {now} workers leave none of {session.cpus} CPUs for decoding; use at "
                f"most --cpus-per-worker {(session.cpus - 0.5) / now:.2g}"
            )
        decoders = max(1, int(left // now))
        nodes = max(1, len(session.node_cpus))
        threads = max(1, (session.cpus // nodes) // max(1, -(-now // nodes)))
        decoder_cpus = min(1.0, left / (now * decoders) * 0.99)
        return cls((low, high), use_gpu, share, threads, decoders, decoder_cpus, session.may_grow)


def _max_share(node_cpus: Sequence[float], workers: int) -> float:
    """Returns the most CPUs that each of `workers` can have; a worker runs on one node."""
    shares = {cpus / number for cpus in node_cpus for number in range(1, workers + 1)}
    return max(share for share in shares if sum(int(cpus / share) for cpus in node_cpus) >= workers)


def _range(workers: str) -> tuple[int, int]:
    low, dash, high = workers.partition("-")
    if not low.isdigit() or (dash and not high.isdigit()) or int(low) < 1 or (dash and int(high) < int(low)):
        raise UsageError(f"--workers '{workers}': use a number from 1, or a range such as 1-8")
    return int(low), int(high) if dash else int(low)
