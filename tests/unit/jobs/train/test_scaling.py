"""The workers of a training and their CPUs, on machines and on clusters that may grow."""

from __future__ import annotations

import pytest

from cluster.connection.session import Session
from cluster.machine import object_store_bytes
from jobs.train.scaling import Scaling
from library.errors import UsageError


def choose(session: Session, workers: str, gpu: bool | None = None) -> Scaling:
    return Scaling.choose(session, workers, gpu=gpu, cpus_per_worker=None)


def test_half_of_the_cpus_train_and_half_decode() -> None:
    scaling = choose(Session(None, 16, 1, node_cpus=(16,)), "1")
    assert (scaling.worker_cpus, scaling.decoders, scaling.threads, scaling.waits_for_nodes) == (8, 8, 16, False)


def test_a_head_without_cpus_takes_no_threads_from_a_worker() -> None:
    scaling = choose(Session("head:6379", 16, 2, node_cpus=(16,)), "1")
    assert scaling.threads == 16


def test_workers_of_a_cluster_wait_for_missing_nodes() -> None:
    session = Session("head:6379", 7, 2, 0, (7.0,))
    eight = choose(session, "8", gpu=True)
    assert (eight.workers, eight.gpu, eight.waits_for_nodes) == ((8, 8), True, True)
    assert not choose(session, "1", gpu=False).waits_for_nodes


def test_an_elastic_training_starts_with_the_present_nodes() -> None:
    scaling = choose(Session("head:6379", 4, 1, 0, (4.0,)), "2-8")
    assert (scaling.workers, scaling.worker_cpus, scaling.waits_for_nodes) == ((2, 8), 0.5, False)


@pytest.mark.parametrize("workers", ["0", "9-3", "many"])
def test_an_invalid_number_of_workers_is_refused(workers: str) -> None:
    with pytest.raises(UsageError, match="use a number from 1, or a range"):
        choose(Session(None, 16, 1, node_cpus=(16,)), workers)


def test_more_than_this_machine_has_is_refused() -> None:
    session = Session(None, 16, 1, 2, (16,))
    with pytest.raises(UsageError, match="Ray has 2"):
        choose(session, "3", gpu=True)
    with pytest.raises(UsageError, match="Ray has 16 CPUs"):
        choose(session, "17", gpu=False)


def test_the_object_store_follows_memory_and_shared_memory() -> None:
    gib = 2**30
    assert object_store_bytes(100 * gib, 60 * gib) == 30 * gib
    assert object_store_bytes(100 * gib, 10 * gib) == 9 * gib
    assert object_store_bytes(100 * gib, None) == 30 * gib
    assert object_store_bytes(2**28, 64 * 2**20) == 100 * 2**20
