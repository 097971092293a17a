"""The members of an ensemble compute at the same time, each on its own inputs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from library.bundle.network import ParallelMembers

CPU = torch.device("cpu")
PICTURES = [(1, 10), (2, 20), (3, 30)]


@pytest.fixture
def torch_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def as_array(own: Sequence[Any]) -> NDArray[np.float32]:
    return np.asarray(own, np.float32)


@pytest.mark.parametrize("torch_threads", [1, 2], indirect=True)
def test_each_member_gets_its_own_input_of_every_picture(torch_threads: int) -> None:
    first, second = ParallelMembers([as_array, lambda own: -as_array(own)], CPU).probabilities(PICTURES)
    assert first.tolist() == [1, 2, 3]
    assert second.tolist() == [-10, -20, -30]


@pytest.mark.parametrize("torch_threads", [2], indirect=True)
def test_members_compute_at_the_same_time(torch_threads: int) -> None:
    both = threading.Barrier(2)

    def predict(own: Sequence[Any]) -> NDArray[np.float32]:
        both.wait(timeout=10)
        return as_array(own)

    assert len(ParallelMembers([predict, predict], CPU).probabilities(PICTURES)) == 2


@pytest.mark.parametrize("torch_threads", [1], indirect=True)
def test_with_one_torch_thread_members_run_one_after_the_other(torch_threads: int) -> None:
    threads: list[int] = []

    def predict(own: Sequence[Any]) -> NDArray[np.float32]:
        threads.append(threading.get_ident())
        return as_array(own)

    ParallelMembers([predict, predict], CPU).probabilities(PICTURES)
    assert threads == [threading.get_ident()] * 2


@pytest.mark.parametrize("torch_threads", [2], indirect=True)
def test_a_members_error_is_raised_after_the_others_have_ended(torch_threads: int) -> None:
    failed, ended = threading.Event(), threading.Event()

    def fail(_: Sequence[Any]) -> NDArray[np.float32]:
        failed.set()
        raise ValueError("no weights")

    def resume(own: Sequence[Any]) -> NDArray[np.float32]:
        assert failed.wait(10)
        # Without waiting, the error would be raised by now.
        assert not ended.wait(0.1)
        ended.set()
        return as_array(own)

    with pytest.raises(ValueError, match="no weights"):
        ParallelMembers([fail, resume], CPU).probabilities(PICTURES)
    assert ended.is_set()
