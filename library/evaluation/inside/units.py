"""What units look for: kernels of the first layer, receptive fields on the picture, the patches that excite most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from library.evaluation.inside.recording import StageMaps, activations, feature_maps
from library.imaging.picture import Pixels
from library.models.classifier import Classifier

#: Top, left, bottom and right in pixels, the last two excluded.
Box = tuple[int, int, int, int]

_BATCH = 16


@dataclass(frozen=True)
class FirstKernels:
    """The weights of the first layer, which see pixels.

    Attributes:
        module: path of the layer.
        values: units x channels x height x width, float32, for normalised pixels; a dense layer's are as large as the
            picture.
    """

    module: str
    values: NDArray[np.float32]

    @property
    def is_dense(self) -> bool:
        """Whether every unit sees the whole picture, as in a multi-layer perceptron."""
        return self.module.startswith("dense ")


def first_kernels(model: Classifier, size: tuple[int, int]) -> FirstKernels | None:
    """Returns the kernels of the first layer, in the network's own order; None where the first layer is neither a
    convolution nor dense.

    Args:
        model: the network.
        size: height and width of its input in pixels, which give the weights of a dense layer their shape.
    """
    for path, module in model.net.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == model.in_chans:
            return FirstKernels(path, _array(module.weight))
        if isinstance(module, nn.Linear) and module.in_features == model.in_chans * size[0] * size[1]:
            return FirstKernels(f"dense {path}", _array(module.weight).reshape(-1, model.in_chans, *size))
    return None


def _array(weight: torch.Tensor) -> NDArray[np.float32]:
    return weight.detach().float().cpu().numpy().copy()


def field_of(maps: StageMaps, row: int, column: int, size: tuple[int, int]) -> Box:
    """The receptive field of one unit on the picture; it reaches outside where the unit depends on padding.

    A token of a transformer depends on the whole picture: its field is its own patch, where it begins. So is that of
    squeeze and excitation, of which only the part that its convolutions see is given.

    Args:
        maps: the stage of the unit.
        row: its place in the map, from 0.
        column: of the unit in the map, from 0.
        size: height and width of the picture in pixels.
    """
    height, width = maps.values.shape[1:]
    if not maps.is_map:
        return 0, 0, *size
    if maps.view is not None:
        return maps.view.box(row, column)
    return (
        row * size[0] // height,
        column * size[1] // width,
        (row + 1) * size[0] // height,
        (column + 1) * size[1] // width,
    )


def most_active(maps: StageMaps) -> tuple[int, int, int]:
    """The unit of a stage that differs most from the mean of its channel: channel, row and column."""
    values = maps.values
    distance = np.abs(values - values.mean((1, 2), keepdims=True)) if maps.is_map else values
    channel, row, column = np.unravel_index(int(distance.argmax()), values.shape)
    return int(channel), int(row), int(column)


@dataclass(frozen=True)
class Patch:
    """What a unit saw when it answered most in one picture.

    Attributes:
        picture: number of the picture.
        value: of the unit there.
        box: its receptive field; it reaches outside where the unit depends on padding.
        pixels: the part of the picture inside the box, height x width x channels.
    """

    picture: int
    value: float
    box: Box
    pixels: Pixels


@dataclass(frozen=True)
class UnitPatches:
    """The patches that excite one unit of a stage most, greatest value first, at most one from each picture."""

    stage: str
    unit: int
    patches: tuple[Patch, ...]


def exciting_patches(
    model: Classifier,
    pictures: Sequence[Pixels],
    *,
    units: int = 4,
    count: int = 9,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[UnitPatches, ...]:
    """Finds the patches of pictures that excite units of each stage most (Zeiler and Fergus 2014, figure 2).

    The units are those whose greatest answers stand out most from their usual ones: the distance of the mean of the
    `count` greatest from the mean, in standard deviations over the pictures.

    Args:
        model: a network in evaluation mode.
        pictures: at least one, of one size and dtype, as the network takes them.
        units: units for each stage.
        count: patches for each unit.
        progress: is called with the number of pictures that are done, and of all.
    """
    stages = feature_maps(model, pictures[0])
    peaks: list[list[NDArray[np.float32]]] = [[] for _ in stages]
    places: list[list[NDArray[np.int64]]] = [[] for _ in stages]
    for first in range(0, len(pictures), _BATCH):
        batch = pictures[first : first + _BATCH]
        for number, values in enumerate(activations(model, batch, stages)):
            flat = values.reshape(*values.shape[:2], -1)
            peaks[number].append(flat.max(2))
            places[number].append(flat.argmax(2))
        if progress is not None:
            progress(first + len(batch), len(pictures))
    patches_of_units: list[UnitPatches] = []
    for stage, peak, place in zip(stages, peaks, places, strict=True):
        greatest, at = np.concatenate(peak), np.concatenate(place)
        for unit in _standing_out(greatest, units, count):
            order = np.argsort(-greatest[:, unit], kind="stable")[:count]
            patches = [_patch(stage, pictures[n], int(n), greatest[n, unit], at[n, unit]) for n in order]
            patches_of_units.append(UnitPatches(stage.stage, unit, tuple(patches)))
    return tuple(patches_of_units)


def _standing_out(peaks: NDArray[np.float32], units: int, count: int) -> list[int]:
    """The units (columns) whose greatest peaks are furthest above their mean; units that never differ come last."""
    top = np.sort(peaks, 0)[-count:].mean(0)
    deviation = peaks.std(0)
    score = np.where(deviation > 0, (top - peaks.mean(0)) / np.where(deviation > 0, deviation, 1), -1)
    return [int(unit) for unit in np.argsort(-score, kind="stable")[:units]]


def _patch(stage: StageMaps, pixels: Pixels, picture: int, value: np.float32, place: np.int64) -> Patch:
    height, width = pixels.shape[:2]
    row, column = divmod(int(place), stage.values.shape[2])
    box = field_of(stage, row, column, (height, width))
    top, left, bottom, right = box
    part = pixels[max(0, top) : max(1, bottom), max(0, left) : max(1, right)]
    return Patch(picture, float(value), box, part if part.size else pixels[-1:, -1:])
