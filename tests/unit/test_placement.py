"""Where the workers of a training go, by what a cluster has and what may come."""

from __future__ import annotations

import pytest

from cluster.session import Session, object_store_bytes
from jobs.placement import Placement
from library.errors import UsageError


def placed(session: Session, workers: str, gpu: bool | None = None) -> Placement:
    return Placement.of(session, workers, gpu=gpu, cpus_per_worker=None)


def test_half_of_the_cpus_learn_and_half_decode() -> None:
    made = placed(Session(None, 16, 1, node_cpus=(16,), present_nodes=1, present_cpus=16), "1")
    assert (made.worker_cpus, made.decoders, made.threads, made.waits_for_nodes) == (8, 8, 16, False)


def test_a_head_without_cpus_takes_no_threads_from_a_worker() -> None:
    made = placed(Session("head:6379", 16, 2, node_cpus=(16,), present_nodes=2, present_cpus=16), "1")
    assert made.threads == 16


def test_no_node_is_brought_only_to_decode() -> None:
    # Ten nodes of 7 CPUs may come, and eight with a GPU; one of the first is there.
    nodes = (7.0,) * 18
    session = Session("head:6379", 126, 19, 8, nodes, present_nodes=2, present_cpus=7)
    made = placed(session, "1", gpu=True)
    assert made.worker_cpus + made.decoders * made.decoder_cpus <= 7
    assert made.waits_for_nodes
    eight = placed(session, "8", gpu=True)
    assert 8 * (eight.worker_cpus + eight.decoders * eight.decoder_cpus) <= 8 * 7
    assert not placed(session, "1", gpu=False).waits_for_nodes


@pytest.mark.parametrize("workers", ["0", "9-3", "many"])
def test_what_is_no_number_of_workers_is_refused(workers: str) -> None:
    with pytest.raises(UsageError, match="write a number from 1, or a range"):
        placed(Session(None, 16, 1, node_cpus=(16,), present_cpus=16), workers)


def test_more_than_there_can_be_is_refused() -> None:
    session = Session("head:6379", 16, 1, 2, (16,), present_nodes=1, present_cpus=16, present_gpus=2)
    with pytest.raises(UsageError, match="Ray has 2"):
        placed(session, "3", gpu=True)
    with pytest.raises(UsageError, match="Ray has 16 CPUs"):
        placed(session, "17", gpu=False)


def test_the_object_store_follows_memory_and_shared_memory() -> None:
    gib = 2**30
    assert object_store_bytes(100 * gib, 60 * gib) == 30 * gib
    assert object_store_bytes(100 * gib, 10 * gib) == 9 * gib
    assert object_store_bytes(100 * gib, None) == 30 * gib
    assert object_store_bytes(2**28, 64 * 2**20) == 100 * 2**20
