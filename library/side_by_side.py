"""Members of an ensemble, asked at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class SideBySide:
    """Threads for the members of an ensemble, made when they are first asked.

    On a CPU each thread has an equal part of the calling thread's torch threads, so that no more are at work than
    before; with one, the members take turns in the calling thread. Threads of torch wait for each other by spinning,
    so members that need fewer of them bear other work on the same cores better: two ResNet-18s took 0.4 of the time
    that they take in turns where two cores had other work, 0.92 where they had none, a ResNet-50 beside an Inception v3
    0.7 and 1.1. On CUDA each thread has a stream of its own. A member's bits are the same at every call, as its part of
    the threads is.

    Args:
        members: how many.
        device: of all of them.
    """

    def __init__(self, members: int, device: torch.device) -> None:
        self._members, self._device = members, device

    def map(
        self, asked: Sequence[Callable[[Sequence[Any]], NDArray[np.float32]]], pictures: Sequence[tuple[Any, ...]]
    ) -> list[NDArray[np.float32]]:
        """What each of `asked`, one a member, answers to its own of every picture."""
        seen = [[picture[number] for picture in pictures] for number in range(self._members)]
        if self._pool is None:
            return [ask(own) for ask, own in zip(asked, seen, strict=True)]
        return list(self._pool.map(lambda ask, own: ask(own), asked, seen))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor | None:
        threads = torch.get_num_threads()
        on_cpu = self._device.type == "cpu"
        workers = min(self._members, threads) if on_cpu else self._members
        if workers == 1:
            return None
        if not on_cpu:
            # The weights may still be on their way, in the stream of who loaded them.
            torch.cuda.synchronize(self._device)
        begun = threading.Barrier(workers)

        def begin(_: int) -> None:
            if on_cpu:
                torch.get_num_threads()  # a thread's first use of torch gives it the number that holds for all
                torch.set_num_threads(threads // workers)
            else:
                torch.cuda.set_stream(torch.cuda.Stream(self._device))
            begun.wait()  # so that each of the threads comes here once

        pool = ThreadPoolExecutor(workers, "member")
        list(pool.map(begin, range(workers)))
        # It holds for the thread that calls it and for those to come, which are not ours.
        torch.set_num_threads(threads)
        return pool
