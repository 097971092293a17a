"""Where the workers of a training go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.session import Session
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
        waits_for_nodes: whether an autoscaler has to bring some first.
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

        Raises:
            UsageError: when it cannot be had; it would wait for ever.
        """
        low, high = _range(workers)
        gpus = session.gpus
        use_gpu = gpus > 0 if gpu is None else gpu
        if use_gpu and low > gpus:
            raise UsageError(
                f"--workers {workers} with a GPU each: Ray has {gpus}; ask for at most so many, or --no-gpu"
            )
        if low > session.cpus:
            raise UsageError(f"--workers {workers}: Ray has {session.cpus} CPUs; ask for at most so many")
        high = min(high, gpus if use_gpu else session.cpus)
        # An autoscaler brings nodes for the workers, and none to decode only.
        near = max(session.present_cpus, int(sum(sorted(session.node_cpus, reverse=True)[:high])))
        share = cpus_per_worker
        if share is None:
            share = min(near / (2 * high), 1.0 if use_gpu else 64, _most_that_fits(session.node_cpus, high))
        room = sum(int(cpus / share) for cpus in session.node_cpus)
        if room < low:
            raise UsageError(
                f"--cpus-per-worker {share:g} x {low} workers: a worker is on one node, and there is room for {room}; "
                f"at most {_most_that_fits(session.node_cpus, low):.2g} each do"
            )
        left = near - share * high
        if left <= 0:
            raise UsageError(
                f"--cpus-per-worker {share:g} x {high} workers leave none of {near} CPUs for decoding; "
                f"at most {(near - 0.5) / high:.2g} do"
            )
        decoders = max(1, int(left // high))
        nodes = max(1, len(session.node_cpus))
        threads = max(1, (session.cpus // nodes) // max(1, -(-high // nodes)))
        decoder_cpus = min(1.0, left / (high * decoders) * 0.99)
        waits = share * low > session.present_cpus or (use_gpu and low > session.present_gpus)
        return cls((low, high), use_gpu, share, threads, decoders, decoder_cpus, session.address is not None, waits)


def _most_that_fits(node_cpus: Sequence[float], workers: int) -> float:
    """The most CPUs that each of so many workers can have, where no worker spreads over nodes."""
    shares = {cpus / number for cpus in node_cpus for number in range(1, workers + 1)}
    return max(share for share in shares if sum(int(cpus / share) for cpus in node_cpus) >= workers)


def _range(workers: str) -> tuple[int, int]:
    low, dash, high = workers.partition("-")
    if not low.isdigit() or (dash and not high.isdigit()) or int(low) < 1 or (dash and int(high) < int(low)):
        raise UsageError(f"--workers '{workers}': write a number from 1, or a range such as 1-8")
    return int(low), int(high) if dash else int(low)
