"""Members of an ensemble, asked at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

#: Prepared pictures of one member to its probabilities, N x classes.
Predictor: TypeAlias = Callable[[Sequence[Any]], NDArray[np.float32]]


class ParallelMembers:
    """Threads for the members of an ensemble.

    On a CPU each member computes with as many threads of torch as it would alone, so the last one at work has all
    cores. Two ResNet-18s take 0.74 of the time that they take in turns on two cores, a ResNet-50 beside an Inception v3
    0.8 and beside a LeNet 1.0 (with half the threads each it was 1.6). Where torch has one thread the members take
    turns. On CUDA each has a stream of its own.

    Args:
        predictors: one a member.
        device: of all of them.
    """

    def __init__(self, predictors: Sequence[Predictor], device: torch.device) -> None:
        if device.type == "cuda":
            # The weights may still be on their way, in the stream of who loaded them.
            torch.cuda.synchronize(device)
            predictors = [partial(_in_stream, torch.cuda.Stream(device), predictor) for predictor in predictors]
        self._predictors, self._on_cpu = predictors, device.type == "cpu"
        self._pool = ThreadPoolExecutor(len(predictors), "member")

    def probabilities(self, pictures: Sequence[tuple[Any, ...]]) -> list[NDArray[np.float32]]:
        """What each member says, of pictures that were prepared for each; raises what the first member to fail raises,
        when all have ended."""
        inputs = [[picture[number] for picture in pictures] for number in range(len(self._predictors))]
        if self._on_cpu and torch.get_num_threads() == 1:
            return [predictor(own) for predictor, own in zip(self._predictors, inputs, strict=True)]
        futures = [self._pool.submit(predictor, own) for predictor, own in zip(self._predictors, inputs, strict=True)]
        wait(futures)
        return [future.result() for future in futures]


def _in_stream(stream: torch.cuda.Stream, predictor: Predictor, pictures: Sequence[Any]) -> NDArray[np.float32]:
    with torch.cuda.stream(stream):
        return predictor(pictures)
