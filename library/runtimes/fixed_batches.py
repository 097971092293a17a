"""Computes a network in batches of a few fixed sizes, so that cuDNN, a compiler and CUDA graphs meet few shapes.

A batch is filled up to the next power of two, and the rows of the filling are thrown away. A picture's probabilities do
not depend on the others of its batch, except for the last digits, as kernels differ by size.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from library.models.classifier import autocast, probabilities
from library.pipeline.inputs import Prepared
from library.runtimes.onnx_session import LARGEST, padded_size

#: Runs before a CUDA graph is recorded: cuDNN chooses its kernels in the first.
_RUNS_BEFORE = 3

#: Computes logits (N x classes) of a batch (uint8, N x channels x height x width).
Forward: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class _Slot:
    """The memory of one batch size, which is used again and again.

    Attributes:
        host: the pictures, N x height x width x channels; pinned for a GPU.
        device: the same on the device; on a CPU the same memory.
        replay: replays the CUDA graph of this size, which computes `rows`; None where there is none.
        rows: the graph's probabilities, on the device.
    """

    host: torch.Tensor
    device: torch.Tensor
    replay: Callable[[], None] | None = None
    rows: torch.Tensor | None = None


class FixedBatches:
    """Computes probabilities of uint8 pictures in batches of 1, 2, 4 ... `LARGEST`.

    Pictures are stacked in pinned memory and copied without blocking. One caller computes at a time.

    Args:
        forward: computes logits.
        shape: height, width and channels of a picture.
        classes: number of classes.
        device: where `forward` computes.
        precision: of the bundle's record.
        multilabel: of the bundle's record.
        graphs: record a CUDA graph for each size at its first use: one call of Python then starts all kernels of a
            batch, where every kernel of an eager network is a call that other threads may delay. CUDA only.
    """

    def __init__(
        self,
        forward: Forward,
        shape: tuple[int, int, int],
        classes: int,
        device: torch.device,
        precision: str,
        *,
        multilabel: bool = False,
        graphs: bool = False,
    ) -> None:
        self._forward, self._shape, self._classes = forward, shape, classes
        self._device, self._precision, self._graphs = device, precision, graphs
        self._multilabel = multilabel
        self._slots: dict[int, _Slot] = {}
        self._lock = threading.Lock()

    def __call__(self, pictures: Sequence[Prepared]) -> NDArray[np.float32]:
        """Probabilities of uint8 pictures, N x classes."""
        with self._lock, torch.inference_mode():
            parts = [self._part(pictures[first : first + LARGEST]) for first in range(0, len(pictures), LARGEST)]
        return np.concatenate(parts) if parts else np.zeros((0, self._classes), np.float32)

    def _part(self, pictures: Sequence[Any]) -> NDArray[np.float32]:
        slot = self._slot(padded_size(len(pictures)))
        np.stack(pictures, out=slot.host.numpy()[: len(pictures)])
        if slot.device is not slot.host:
            slot.device.copy_(slot.host, non_blocking=True)
        if slot.replay is not None and slot.rows is not None:
            slot.replay()
            rows = slot.rows
        else:
            rows = self._rows(slot.device)
        # A copy: the next batch of this size writes to the same rows.
        return rows[: len(pictures)].to("cpu", copy=True).numpy()

    def _slot(self, size: int) -> _Slot:
        slot = self._slots.get(size)
        if slot is None:
            host = torch.zeros((size, *self._shape), dtype=torch.uint8, pin_memory=self._device.type == "cuda")
            slot = _Slot(host, host if self._device.type == "cpu" else torch.zeros_like(host, device=self._device))
            if self._graphs:
                self._record(slot)
            self._slots[size] = slot
        return slot

    def _rows(self, batch: torch.Tensor) -> torch.Tensor:
        with autocast(self._device, self._precision):
            logits = self._forward(batch.permute(0, 3, 1, 2))
        return probabilities(logits.float(), multilabel=self._multilabel)

    def _record(self, slot: _Slot) -> None:
        # Kernels must be chosen, and memory must be there, before a graph is recorded; not in the default stream.
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_RUNS_BEFORE):
                self._rows(slot.device)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads, as those of an ensemble's other members, may allocate memory meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            slot.rows = self._rows(slot.device)
        slot.replay = graph.replay
