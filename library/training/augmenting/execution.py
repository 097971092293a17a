"""Executes what was drawn for a batch on a torch device: the CPU's results within the tolerances of `forms`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from library.steps.augmentations.degradation import normal_levels
from library.training.augmenting import kernels, neighbourhoods
from library.training.augmenting.kernels import on
from library.training.augmenting.operations import (
    Bands,
    Blur,
    ChannelShifts,
    Composite,
    Convolution,
    Drawn,
    Erase,
    Gain,
    Grey,
    Lookup,
    Mean,
    Move,
    Noise,
    Operation,
    Resize,
    Stretch,
    Transpose,
    UndonePictures,
    Unsharp,
    Warp,
)
from library.training.augmenting.streams import Rows

# The functions of operations with one number for each picture.
_GAINS: dict[str, Callable[[Tensor, NDArray[np.float64]], Tensor]] = {
    "brightness": kernels.brightness,
    "contrast": kernels.contrast,
    "saturation": kernels.saturation,
    "sharpness": neighbourhoods.sharpness,
    "hue": kernels.hue,
    "posterize": kernels.posterize,
    "solarize": kernels.solarize,
    "stretch": kernels.stretch,
    "equalize": kernels.equalize,
    "invert": kernels.invert,
}

# Samples that a resize holds at once, each in 4 bytes; its results do not depend on it.
_RESIZED_SAMPLES = 2**25


def execute(flat: Tensor, starts: NDArray[np.int64], shapes: NDArray[Any], drawn: Drawn) -> list[Tensor]:
    """Augments pictures.

    Args:
        flat: uint8, the samples of all pictures, on the device; it is not written to.
        starts: n, index of each picture's first sample in `flat`.
        shapes: n x 3; height, width and channels of each picture.
        drawn: what is done to them.

    Returns:
        For each picture height x width x channels, uint8, on the device.
    """
    pictures = _executed(flat, starts, shapes, drawn)
    results: list[Tensor] = [flat[:0]] * len(starts)
    for rows, stack in pictures.stacks(np.arange(len(starts))):
        for row, picture in zip(rows.tolist(), stack, strict=True):
            results[row] = picture
    return results


def execute_stack(flat: Tensor, starts: NDArray[np.int64], shapes: NDArray[Any], drawn: Drawn) -> Tensor:
    """Like `execute` where all results have one shape: n x height x width x channels."""
    pictures = _executed(flat, starts, shapes, drawn)
    ((_, stack),) = pictures.stacks(np.arange(len(starts)))
    return stack


def augmented_tensor(undone: UndonePictures, device: torch.device) -> Tensor:
    """Augments pictures on a device: n x height x width x channels, uint8.

    To a GPU only what is used of each picture is copied, from pinned memory, which does not wait for the GPU.
    """
    flat = undone.pictures.flat
    if isinstance(flat, np.ndarray):
        undone = undone.packed() if device.type == "cuda" else undone
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is not written to
            flat = torch.from_numpy(undone.pictures.samples)
        if device.type == "cuda":
            flat = flat.pin_memory().to(device, non_blocking=True)
    return execute_stack(flat, undone.pictures.starts, undone.pictures.shapes, undone.drawn)


def augmented_arrays(undone: UndonePictures) -> NDArray[np.uint8]:
    """Augments pictures on the CPU: n x height x width x channels."""
    return augmented_tensor(undone, torch.device("cpu")).numpy()


def _executed(flat: Tensor, starts: NDArray[np.int64], shapes: NDArray[Any], drawn: Drawn) -> _Pictures:
    pictures = _Pictures(flat, starts, shapes)
    for operation in drawn.operations:
        _run(operation, pictures)
    return pictures


def _run(operation: Operation, pictures: _Pictures) -> None:
    rows = operation.rows
    match operation:
        case Move():
            for same in pictures.by_channels(rows):
                which = np.searchsorted(rows, same)
                pictures.put(same, _moved(pictures, same, operation.ys[which], operation.xs[which], operation.value))
        case Resize():
            for same in pictures.by_channels(rows):
                pictures.put(same, _resized(pictures, same, operation.boxes[np.searchsorted(rows, same)], operation))
        case Erase():
            _erase(pictures, operation)
        case Warp() | Blur() | Gain() | ChannelShifts() | Noise():
            for same, stack in pictures.stacks(rows):
                pictures.put(same, _drawn_for_each(operation, stack, np.searchsorted(rows, same)))
        case _:
            for same, stack in pictures.stacks(rows):
                pictures.put(same, _same_for_all(operation, stack))


def _drawn_for_each(
    operation: Warp | Blur | Gain | ChannelShifts | Noise, stack: Tensor, which: NDArray[np.int64]
) -> Tensor:
    """Runs an operation on pictures of one shape, with the parameters of each."""
    match operation:
        case Warp():
            return kernels.warp(stack, operation.inverses[which], operation.fill)
        case Blur():
            return neighbourhoods.blur(stack, operation.sigmas[which])
        case Gain():
            return _GAINS[operation.name](stack, operation.amounts[which])
        case ChannelShifts():
            return kernels.channel_shift(stack, operation.offsets[which])
        case Noise():
            return kernels.noise(stack, operation.levels[which], normal_levels(), operation.sigma)


def _same_for_all(
    operation: Mean | Convolution | Unsharp | Transpose | Bands | Composite | Grey | Lookup | Stretch, stack: Tensor
) -> Tensor:
    """Runs an operation on pictures of one shape that does the same to all."""
    match operation:
        case Mean():
            return neighbourhoods.mean(stack, operation.size, operation.border)
        case Convolution():
            return neighbourhoods.convolution(stack, operation.weights, operation.border)
        case Unsharp():
            return neighbourhoods.unsharp(stack, operation.amount, operation.sigma)
        case Transpose():
            return stack.transpose(1, 2).contiguous()
        case Bands():
            return stack[..., list(operation.bands)]
        case Composite():
            return kernels.composite(stack, operation.background)
        case Grey():
            return kernels.grey(stack)
        case Lookup():
            return on(stack.device, operation.table)[stack.to(torch.int64)]
        case Stretch():
            return kernels.stretch_between(stack, *operation.percentiles)


class _Pictures:
    """Pictures of any sizes, packed in one tensor.

    Args:
        flat: samples of all pictures; not written to before it has been copied.
        starts: index of each picture's first sample.
        shapes: height, width and channels of each picture.
    """

    def __init__(self, flat: Tensor, starts: NDArray[Any], shapes: NDArray[Any]) -> None:
        self.flat, self._owned = flat, False
        self.starts, self.shapes = np.array(starts, np.int64), np.array(shapes, np.int64)

    @property
    def device(self) -> torch.device:
        return self.flat.device

    def by_channels(self, rows: Rows) -> Iterator[Rows]:
        """Yields pictures with as many channels."""
        for channels in np.unique(self.shapes[rows, 2]).tolist():
            yield rows[self.shapes[rows, 2] == channels]

    def stacks(self, rows: Rows) -> Iterator[tuple[Rows, Tensor]]:
        """Yields pictures of one shape, and these as n x height x width x channels."""
        if not len(rows):
            return
        distinct, numbers = np.unique(self.shapes[rows], axis=0, return_inverse=True)
        for number, shape in enumerate(distinct.tolist()):
            same = rows[numbers.reshape(-1) == number]
            yield same, self._samples(same, int(np.prod(shape))).reshape(len(same), *shape)

    def _samples(self, rows: Rows, size: int) -> Tensor:
        """The samples of pictures of one size: n x size; a view where they lie one after the other."""
        starts = self.starts[rows]
        if (np.diff(starts) == size).all():
            return self.flat[int(starts[0]) : int(starts[0]) + size * len(rows)].reshape(len(rows), size)
        return self.flat[self._indices(rows, size)]

    def _indices(self, rows: Rows, size: int) -> Tensor:
        return on(self.device, self.starts[rows], 1) + torch.arange(size, device=self.device)

    def put(self, rows: Rows, stack: Tensor) -> None:
        """Replaces pictures by others, of one shape."""
        size, shape = stack[0].numel(), tuple(stack.shape[1:])
        if len(rows) == len(self.starts):
            self.flat, self._owned = stack.reshape(-1), True
            self.starts = np.arange(len(rows)) * size
        elif (self.shapes[rows].prod(axis=1) == size).all():
            self.writable()[self._indices(rows, size)] = stack.reshape(len(rows), size)
        else:
            flat = self.writable()  # the old pictures are left where they were
            self.starts[rows] = flat.numel() + np.arange(len(rows)) * size
            self.flat = torch.cat([flat, stack.reshape(-1)])
        self.shapes[rows] = shape

    def writable(self) -> Tensor:
        """The samples, in a tensor that may be written to and holds little else."""
        if not self._owned:
            sizes = self.shapes.prod(axis=1)
            first = np.cumsum(sizes) - sizes
            places = np.arange(int(sizes.sum())) + np.repeat(self.starts - first, sizes)
            self.flat, self.starts, self._owned = self.flat[on(self.device, places)], first, True
        return self.flat


class _Gatherer:
    """Takes pixels of pictures of any sizes with as many channels.

    Args:
        pictures: the pictures.
        rows: n of them.
    """

    def __init__(self, pictures: _Pictures, rows: Rows) -> None:
        self._device = pictures.device
        starts, self._channels = pictures.starts[rows], int(pictures.shapes[rows[0], 2])
        self._widths = on(self._device, pictures.shapes[rows, 1], 1, 1)
        count = pictures.flat.numel() // self._channels
        self._aligned = not (starts % self._channels).any()
        self._flat = pictures.flat[: count * self._channels].reshape(-1, self._channels)
        if not self._aligned:  # pictures with other numbers of channels lie between these
            self._flat = pictures.flat
        self._starts = on(self._device, starts // self._channels if self._aligned else starts, 1, 1)

    def __call__(self, ys: Tensor, xs: Tensor) -> Tensor:
        """The pixels at rows `ys` (n x height) and columns `xs` (n x width): n x height x width x channels."""
        places = ys[:, :, None] * self._widths + xs[:, None, :]
        if self._aligned:
            taken = self._flat.index_select(0, (places + self._starts).reshape(-1))
        else:
            samples = (places * self._channels + self._starts)[..., None]
            taken = self._flat[samples + torch.arange(self._channels, device=self._device)]
        return taken.reshape(*places.shape, self._channels)


def _moved(pictures: _Pictures, rows: Rows, ys: NDArray[Any], xs: NDArray[Any], value: int) -> Tensor:
    device = pictures.device
    result = _Gatherer(pictures, rows)(on(device, np.maximum(ys, 0)), on(device, np.maximum(xs, 0)))
    outside = np.nonzero(ys < 0)
    if len(outside[0]):
        result[on(device, outside[0]), on(device, outside[1])] = value
    outside = np.nonzero(xs < 0)
    if len(outside[0]):
        result[on(device, outside[0]), :, on(device, outside[1])] = value
    return result


def _resized(pictures: _Pictures, rows: Rows, boxes: NDArray[np.int64], operation: Resize) -> Tensor:
    """Resizes the boxes, a part of the pictures at a time: first all columns, then all rows."""
    height, width = operation.size
    line = height * int(pictures.shapes[rows, 2].max())
    parts: list[Tensor] = []
    first = 0
    while first < len(rows):
        widest = np.maximum.accumulate(boxes[first:, 3]) * np.arange(1, len(rows) - first + 1)
        last = first + max(1, int(np.searchsorted(widest * line, _RESIZED_SAMPLES, side="right")))
        parts.append(_resized_part(pictures, rows[first:last], boxes[first:last], height, width))
        first = last
    return torch.cat(parts)


def _resized_part(pictures: _Pictures, rows: Rows, boxes: NDArray[np.int64], height: int, width: int) -> Tensor:
    device = pictures.device
    top, left, heights, widths = (on(device, boxes[:, column], 1) for column in range(4))
    gather = _Gatherer(pictures, rows)
    most_high, most_wide = int(boxes[:, 2].max()), int(boxes[:, 3].max())
    columns = left + torch.minimum(torch.arange(most_wide, device=device), widths - 1)
    first, weights = kernels.taps(heights[:, 0], height, most_high)
    lines = None
    for tap in range(weights.shape[2]):
        ys = top + torch.minimum(first + tap, heights - 1)
        term = gather(ys, columns) * weights[:, :, tap, None, None]
        lines = term if lines is None else lines + term
    assert lines is not None
    first, weights = kernels.taps(widths[:, 0], width, most_wide)
    total = None
    for tap in range(weights.shape[2]):
        xs = torch.minimum(first + tap, widths - 1)[:, None, :, None]
        term = lines.gather(2, xs.expand(-1, height, -1, lines.shape[3])) * weights[:, None, :, tap, None]
        total = term if total is None else total + term
    assert total is not None
    return kernels.rounded(total)


def _erase(pictures: _Pictures, operation: Erase) -> None:
    """Writes the rectangles, of all pictures at once."""
    device = pictures.device
    top, left, heights, widths = operation.boxes.T
    shapes = pictures.shapes[operation.rows]
    # For each line of a rectangle its first sample and its length, then every sample of it.
    picture = np.repeat(np.arange(len(heights)), heights)
    number = np.arange(len(picture)) - np.repeat(np.cumsum(heights) - heights, heights)
    lengths = (widths * shapes[:, 2])[picture]
    first = (top[picture] + number) * shapes[picture, 1] + left[picture]
    first = pictures.starts[operation.rows][picture] + first * shapes[picture, 2]
    shift = first - (np.cumsum(lengths) - lengths)
    indices = np.arange(int(lengths.sum())) + np.repeat(shift, lengths)
    values = on(device, operation.values)
    pictures.writable()[on(device, indices)] = values if len(values) != 1 else values.expand(len(indices))
