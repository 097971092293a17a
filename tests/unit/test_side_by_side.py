from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from library.side_by_side import SideBySide

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


@pytest.mark.parametrize("torch_threads", [1, 2, 4], indirect=True)
def test_each_member_is_asked_for_its_own_of_every_picture(torch_threads: int) -> None:
    first, second = SideBySide(2, CPU).map([as_array, lambda own: -as_array(own)], PICTURES)
    assert first.tolist() == [1, 2, 3]
    assert second.tolist() == [-10, -20, -30]


@pytest.mark.parametrize("torch_threads", [2], indirect=True)
def test_members_compute_at_the_same_time(torch_threads: int) -> None:
    both = threading.Barrier(2)

    def ask(own: Sequence[Any]) -> NDArray[np.float32]:
        both.wait(timeout=10)
        return as_array(own)

    assert len(SideBySide(2, CPU).map([ask, ask], PICTURES)) == 2


@pytest.mark.parametrize(
    ("torch_threads", "members", "each"), [(4, 2, 2), (4, 3, 1), (2, 5, 1)], indirect=["torch_threads"]
)
def test_members_share_the_threads_and_no_other_thread_loses_any(torch_threads: int, members: int, each: int) -> None:
    def ask(_: Sequence[Any]) -> NDArray[np.float32]:
        return as_array([torch.get_num_threads()])

    parts = SideBySide(members, CPU).map([ask] * members, [tuple(range(members))])
    assert [part.tolist() for part in parts] == [[each]] * members
    with ThreadPoolExecutor(1) as another:
        assert another.submit(torch.get_num_threads).result() == torch.get_num_threads() == torch_threads


@pytest.mark.parametrize("torch_threads", [1], indirect=True)
def test_with_one_thread_members_take_turns_in_it(torch_threads: int) -> None:
    asked: list[int] = []

    def ask(own: Sequence[Any]) -> NDArray[np.float32]:
        asked.append(threading.get_ident())
        return as_array(own)

    SideBySide(2, CPU).map([ask, ask], PICTURES)
    assert asked == [threading.get_ident()] * 2


@pytest.mark.parametrize("torch_threads", [2], indirect=True)
def test_what_a_member_raises_reaches_who_asked(torch_threads: int) -> None:
    def fail(_: Sequence[Any]) -> NDArray[np.float32]:
        raise ValueError("no weights")

    with pytest.raises(ValueError, match="no weights"):
        SideBySide(2, CPU).map([as_array, fail], PICTURES)
