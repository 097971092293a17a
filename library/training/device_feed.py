"""Moves batches to the device that trains, one ahead of the step that uses them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from library.training.augmenting.execution import augmented_tensor
from library.training.augmenting.operations import UndonePictures
from library.training.batches import Batch, PictureRows

#: Pictures are held in a GPU's memory if they take at most this share of what a training step leaves free.
SPARE_SHARE = 0.5


@dataclass(frozen=True)
class DeviceBatch:
    """One worker's part of a batch, on the device.

    Attributes:
        pictures: n x height x width x channels, as stored; or n x features where the backbone's are cached.
        labels: n class ids, int64.
        keys: keys of the pictures.
        size: pictures of the whole batch, over all workers.
        rejected: as in `Batch`.
        on_cpu: as in `Batch`.
    """

    pictures: torch.Tensor
    labels: torch.Tensor
    keys: Sequence[str]
    size: int
    rejected: int = 0
    on_cpu: int = 0

    def part(self, rows: slice) -> DeviceBatch:
        """Some rows, as a batch of the same `size`."""
        return DeviceBatch(self.pictures[rows], self.labels[rows], self.keys[rows], self.size)


def moved(batch: Batch, device: torch.device) -> DeviceBatch:
    """Returns a batch on `device`, where its pictures are augmented if they have yet to be.

    To a GPU it is copied from pinned memory, which does not wait for the GPU.
    """
    pictures, labels = batch.pictures, _copied(batch.labels, device)
    pictures = augmented_tensor(pictures, device) if isinstance(pictures, UndonePictures) else _copied(pictures, device)
    return DeviceBatch(pictures, labels, batch.keys, batch.size, batch.rejected, batch.on_cpu)


class DeviceFeed:
    """Iterates over a loader's batches on a device, in the same order.

    With `ahead`, a thread takes the next batch from the loader and copies it to the device while the current one is
    used. On a GPU the copies run in a CUDA stream of their own, so neither the CPU nor the GPU's computations wait for
    them. An error of the loader is raised where its batch would have come.

    Args:
        device: device to train on.
        ahead: whether a thread prepares the next batch; None for GPUs only, as on a CPU there is nothing to copy.
    """

    def __init__(self, device: torch.device, *, ahead: bool | None = None) -> None:
        self._device = device
        self._ahead = device.type == "cuda" if ahead is None else ahead
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batches: Iterator[Batch]) -> Iterator[DeviceBatch]:
        """Yields each batch of `batches`. Closing this iterator closes `batches`, in the thread that has used it."""
        if not self._ahead:
            for batch in batches:
                yield moved(batch, self._device)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="device-feed") as thread:
            try:
                following = thread.submit(self._next, batches)
                while (current := following.result()) is not None:
                    following = thread.submit(self._next, batches)
                    batch, copied = current
                    yield self._ready(batch, copied)
            finally:
                thread.submit(_close, batches)

    def _next(self, batches: Iterator[Batch]) -> tuple[DeviceBatch, torch.cuda.Event | None] | None:
        """Takes the next batch and starts its copies; returns it with the event of their end, or None at the end."""
        with self._copying():
            batch = next(batches, None)
            if batch is None:
                return None
            fed = moved(batch, self._device)
            if self._stream is None:
                return fed, None
            copied = torch.cuda.Event()
            copied.record(self._stream)
            return fed, copied

    def _copying(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _ready(self, batch: DeviceBatch, copied: torch.cuda.Event | None) -> DeviceBatch:
        """Makes the computations that follow wait for the copies; the caller does not wait."""
        if copied is not None:
            using = torch.cuda.current_stream(self._device)
            using.wait_event(copied)
            for tensor in (batch.pictures, batch.labels):
                tensor.record_stream(using)  # its memory is not reused before these computations end
        return batch


class DevicePictures:
    """Pictures of one shape in a device's memory; takes rows there, so that batches are not copied at all.

    Args:
        pictures: n x height x width x channels, or n x features.
        device: device to hold them.
    """

    def __init__(self, pictures: NDArray[Any], device: torch.device) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # torch only reads it
            self._pictures = torch.from_numpy(pictures).to(device)

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> torch.Tensor:
        if isinstance(rows, slice):
            return self._pictures[rows]
        return self._pictures.index_select(0, _copied(rows, self._pictures.device))


def placing(device: torch.device, spare_bytes: Callable[[], int]) -> Callable[[NDArray[Any]], PictureRows]:
    """Returns a function that moves pictures into the memory of a GPU if there is room, and else returns them as given.

    Args:
        device: device to train on; on a CPU, pictures stay where they are.
        spare_bytes: measures the memory that a training step leaves free; all pictures together take at most
            `SPARE_SHARE` of it. Called at most once, on a GPU.
    """
    room = functools.cache(spare_bytes)
    held: list[int] = []

    def place(pictures: NDArray[Any]) -> PictureRows:
        if device.type != "cuda" or sum(held) + pictures.nbytes > room() * SPARE_SHARE:
            return pictures
        held.append(pictures.nbytes)
        return DevicePictures(pictures, device)

    return place


def _copied(array: NDArray[Any] | torch.Tensor, device: torch.device) -> torch.Tensor:
    tensor = array if isinstance(array, torch.Tensor) else torch.from_numpy(array)
    if device.type != "cuda" or tensor.is_cuda:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _close(batches: Iterator[Batch]) -> None:
    close = getattr(batches, "close", None)
    if close is not None:
        close()
