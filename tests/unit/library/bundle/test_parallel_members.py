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
def test_each_member_is_asked_for_its_own_of_every_picture(torch_threads: int) -> None:
    first, second = ParallelMembers([as_array, lambda own: -as_array(own)], CPU).probabilities(PICTURES)
    assert first.tolist() == [1, 2, 3]
    assert second.tolist() == [-10, -20, -30]


@pytest.mark.parametrize("torch_threads", [2], indirect=True)
def test_members_compute_at_the_same_time(torch_threads: int) -> None:
    both = threading.Barrier(2)

    def ask(own: Sequence[Any]) -> NDArray[np.float32]:
        both.wait(timeout=10)
        return as_array(own)

    assert len(ParallelMembers([ask, ask], CPU).probabilities(PICTURES)) == 2


@pytest.mark.parametrize("torch_threads", [1], indirect=True)
def test_with_one_thread_members_take_turns_in_it(torch_threads: int) -> None:
    asked: list[int] = []

    def ask(own: Sequence[Any]) -> NDArray[np.float32]:
        asked.append(threading.get_ident())
        return as_array(own)

    ParallelMembers([ask, ask], CPU).probabilities(PICTURES)
    assert asked == [threading.get_ident()] * 2


@pytest.mark.parametrize("torch_threads", [2], indirect=True)
def test_what_a_member_raises_is_raised_when_the_others_have_ended(torch_threads: int) -> None:
    failed, ended = threading.Event(), threading.Event()

    def fail(_: Sequence[Any]) -> NDArray[np.float32]:
        failed.set()
        raise ValueError("no weights")

    def go_on(own: Sequence[Any]) -> NDArray[np.float32]:
        assert failed.wait(10)
        # Another thread would see the error by now, if nobody waited for this one.
        assert not ended.wait(0.1)
        ended.set()
        return as_array(own)

    with pytest.raises(ValueError, match="no weights"):
        ParallelMembers([fail, go_on], CPU).probabilities(PICTURES)
    assert ended.is_set()
