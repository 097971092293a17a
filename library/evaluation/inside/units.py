"""The kernels of a network's first layer, and where its units look: receptive fields on the picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from library.evaluation.inside.recording import StageMaps
from library.models.classifier import Classifier

#: Top, left, bottom and right in pixels, the last two excluded.
Box = tuple[int, int, int, int]


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
        column: likewise.
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
