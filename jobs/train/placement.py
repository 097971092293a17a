"""Where the workers of a training go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.connection.session import Session
from library.errors import UsageError


@dataclass(frozen=True)
class Placement:
    """Where the workers go.

    Attributes:
        workers: how many at least and at most.
        gpu: whether each has one.
        worker_cpus: logical CPUs of each; what is left decodes.
        threads: of torch in each.
        decoders: actors that stream pictures to each.
        decoder_cpus: logical CPUs of each of these.
        cluster: whether it is a Ray that others use too.
        waits_for_nodes: whether some have to come first.
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
    def of(cls, session: Session, workers: str, *, gpu: bool | None, cpus_per_worker: float | None) -> Placement:
        """Work out a placement that leaves CPUs to decoding.

        On a cluster that lacks nodes for the least number of workers, each is given one CPU, unless `cpus_per_worker`
        says more, and one decoder: what nodes will come is not known.

        Raises:
            UsageError: when this machine does not have it.
        """
        low, high = _range(workers)
        use_gpu = session.gpus > 0 if gpu is None else gpu
        present = session.gpus if use_gpu else session.cpus
        if low > present and not session.may_grow:
            what, instead = ("GPUs", "for at most as many, or --no-gpu") if use_gpu else ("CPUs", "for at most as many")
            raise UsageError(f"--workers {workers}: Ray has {present} {what}; ask {instead}")
        if not session.may_grow:
            high = min(high, present)
        now = min(high, present)  # shares are of what is there; more workers come with more nodes
        share = cpus_per_worker or 1.0
        waiting = cls((low, high), use_gpu, share, max(1, int(share)), 1, 1.0, cluster=True, waits_for_nodes=True)
        if low > min(present, session.cpus):
            return waiting
        if cpus_per_worker is None:
            share = min(session.cpus / (2 * now), 1.0 if use_gpu else 64, _most_that_fits(session.node_cpus, now))
        room = sum(int(cpus / share) for cpus in session.node_cpus)
        if room < low:
            if session.may_grow:
                return waiting
            raise UsageError(
                f"--cpus-per-worker {share:g} x {low} workers: a worker is on one node, and there is room for {room}; "
                f"at most {_most_that_fits(session.node_cpus, low):.2g} each do"
            )
        left = session.cpus - share * now
        if left <= 0:
            raise UsageError(
                f"--cpus-per-worker {share:g} x {now} workers leave none of {session.cpus} CPUs for decoding; "
                f"at most {(session.cpus - 0.5) / now:.2g} do"
            )
        decoders = max(1, int(left // now))
        nodes = max(1, len(session.node_cpus))
        threads = max(1, (session.cpus // nodes) // max(1, -(-now // nodes)))
        decoder_cpus = min(1.0, left / (now * decoders) * 0.99)
        return cls((low, high), use_gpu, share, threads, decoders, decoder_cpus, session.may_grow)


def _most_that_fits(node_cpus: Sequence[float], workers: int) -> float:
    """The most CPUs that each of so many workers can have, where no worker spreads over nodes."""
    shares = {cpus / number for cpus in node_cpus for number in range(1, workers + 1)}
    return max(share for share in shares if sum(int(cpus / share) for cpus in node_cpus) >= workers)


def _range(workers: str) -> tuple[int, int]:
    low, dash, high = workers.partition("-")
    if not low.isdigit() or (dash and not high.isdigit()) or int(low) < 1 or (dash and int(high) < int(low)):
        raise UsageError(f"--workers '{workers}': write a number from 1, or a range such as 1-8")
    return int(low), int(high) if dash else int(low)
