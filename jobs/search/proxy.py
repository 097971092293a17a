"""Cheap stand-ins for a recipe, on which many candidates are compared: a small network, or a head on frozen features.

A stand-in trains in about a second on one core. It ranks candidates; whether one helps is decided on the recipe itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from library.choosing.labels.linear_head import LinearHead
from library.models.classifier import Classifier
from library.pipeline.inputs import scaled
from library.randomness import generator, seed_of
from library.training.in_memory import PackedPictures

#: Inputs up to this side are taken as they are, by a network without a stride.
SMALL_PX = 32
_LEAST_PX = 20
#: Larger ones are resized to this side, after all filters.
LARGE_PX = 64
_BATCH, _LEARNING_RATE, _WEIGHT_DECAY = 64, 3e-3, 1e-2
#: Steps of a training: so many epochs of few pictures as give these, between the two limits.
_STEPS, _EPOCHS = 150, (3, 12)
_FEATURES_BATCH = 64


class SmallCnn(nn.Module):
    """Two convolutions and two dense layers, as in LeNet-5, with ReLU and max pooling; larger inputs with stride 2."""

    def __init__(self, channels: int, classes: int, side: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 5, stride=1 if side <= SMALL_PX else 2, padding=2)
        self.conv2 = nn.Conv2d(8, 16, 5)
        pooled = (side if side <= SMALL_PX else -(-side // 2)) // 2
        self.dense = nn.Linear(16 * ((pooled - 4) // 2) ** 2, 64)
        self.classifier = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes logits, N x classes, from pixels from -1 to 1, N x channels x side x side."""
        for convolution in (self.conv1, self.conv2):
            x = functional.relu(functional.max_pool2d(convolution(x), 2))
        return self.classifier(functional.relu(self.dense(x.flatten(1))))


@dataclass(frozen=True)
class Mixture:
    """Training pictures that are drawn in one of two forms, anew in each epoch.

    Attributes:
        plain: as they are.
        filtered: the same ones, filtered.
        p: probability of the filtered form.
    """

    plain: PackedPictures
    filtered: PackedPictures
    p: float


def proxy_side(size: tuple[int, int]) -> int:
    """Returns the side of the stand-in's input for a recipe's input of this height and width."""
    side = max(size)
    return max(side, _LEAST_PX) if side <= SMALL_PX else LARGE_PX


def train_small_cnn(train: PackedPictures | Mixture, val: PackedPictures, classes: int, seed: int) -> NDArray[np.bool_]:
    """Trains a `SmallCnn` and returns which validation pictures it classifies correctly.

    Args:
        train: inputs of one shape, or two forms of them.
        val: inputs of the same shape.
        classes: number of classes.
        seed: of the weights, the order and the draws.
    """
    plain = train.plain if isinstance(train, Mixture) else train
    x = _tensor(plain)
    other = _tensor(train.filtered) if isinstance(train, Mixture) else None
    y = torch.from_numpy(plain.labels)
    torch.manual_seed(seed_of("search", "weights", seed) % 2**63)
    network = SmallCnn(x.shape[1], classes, x.shape[2])
    per_epoch = max(1, -(-len(y) // _BATCH))
    epochs = min(max(_EPOCHS[0], round(_STEPS / per_epoch)), _EPOCHS[1])
    optimizer = torch.optim.AdamW(network.parameters(), _LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=epochs * per_epoch)
    network.train()
    for epoch in range(epochs):
        rng = generator("search", "order", seed, epoch)
        order = rng.permutation(len(y))
        is_filtered = torch.from_numpy(rng.random(len(y)) < train.p) if isinstance(train, Mixture) else None
        for first in range(0, len(y), _BATCH):
            rows = torch.from_numpy(order[first : first + _BATCH])
            batch = x[rows]
            if other is not None and is_filtered is not None:
                batch = torch.where(is_filtered[rows][:, None, None, None], other[rows], batch)
            loss = functional.cross_entropy(network(batch), y[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.inference_mode():
        return (network(_tensor(val)).argmax(1).numpy() == val.labels).astype(np.bool_)


def features_of(
    model: Classifier,
    pictures: PackedPictures,
    device: torch.device,
    watch: Callable[[float, float], None] | None = None,
) -> NDArray[np.float32]:
    """Returns the features of a frozen backbone, N x D.

    Args:
        model: the backbone with its head.
        pictures: in the model's size.
        device: to compute on.
        watch: called after each batch but the first, which prepares much: with the seconds since the first one, and the
            share of the other batches that is done. An error that it raises ends this. None for no call.
    """
    uniform = pictures.uniform
    assert uniform is not None
    model = model.to(device).eval()
    parts: list[NDArray[np.float32]] = []
    starts, begun = range(0, len(uniform), _FEATURES_BATCH), math.inf
    with torch.inference_mode():
        for first in starts:
            x = torch.from_numpy(np.ascontiguousarray(uniform[first : first + _FEATURES_BATCH]))
            parts.append(model.features(x.to(device).permute(0, 3, 1, 2)).float().cpu().numpy())
            if first == 0:
                begun = time.perf_counter()
            elif watch is not None:
                watch(time.perf_counter() - begun, (len(parts) - 1) / (len(starts) - 1))
    return np.concatenate(parts)


def train_head(
    train: NDArray[np.float32], labels: NDArray[np.int64], val: PackedPictures, features: NDArray[np.float32], seed: int
) -> NDArray[np.bool_]:
    """Fits a linear head on features and returns which validation pictures it classifies correctly.

    Fitting has no randomness, so the seed is a replicate of a bootstrap: it weights the training pictures (Rubin 1981,
    https://doi.org/10.1214/aos/1176345338), for every candidate in the same way.
    """
    weights = generator("search", "bootstrap", seed).exponential(size=len(labels))
    classes = int(max(labels.max(), val.labels.max())) + 1
    head = LinearHead.fit(train, labels, classes, sample_weights=weights)
    return (head.probabilities(features).argmax(1) == val.labels).astype(np.bool_)


def _tensor(pictures: PackedPictures) -> torch.Tensor:
    uniform = pictures.uniform
    assert uniform is not None
    x = torch.from_numpy(scaled(uniform)).permute(0, 3, 1, 2)
    return (2 * x - 1).contiguous()
