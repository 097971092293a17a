"""The networks that are written out here: LeNet-5, the perceptron of its paper, ResNet-9, and one to look into."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from library.models.filter_gates import FilterGates


class LeNet5(nn.Module):
    """LeNet-5 in the layout of 1998 (https://doi.org/10.1109/5.726791, figure 2): 61,706 parameters with 10 classes.

    It differs from the paper: C3 sees all six maps of S2, not a selection (2,416 parameters, not 1,516); subsampling
    has no trainable factor and offset; tanh is not scaled; the output is a dense layer, not radial basis functions.

    Args:
        num_classes: number of outputs.
        in_chans: channels of the input.
        size: side of the input in pixels; 28 is padded with zeros to the paper's 32.
        activation: `tanh` or `relu`.
        pooling: `avg` or `max`.
    """

    def __init__(self, num_classes: int, *, in_chans: int, size: int, activation: str, pooling: str) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(in_chans, 6, 5, padding=(32 - size) // 2)
        self.c3 = nn.Conv2d(6, 16, 5)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.classifier = nn.Linear(84, num_classes)
        self.s2, self.s4 = (nn.AvgPool2d(2) if pooling == "avg" else nn.MaxPool2d(2) for _ in range(2))
        self.activation = nn.Tanh() if activation == "tanh" else nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes logits, N x num_classes, from normalised pixels, N x in_chans x size x size."""
        x = self.s2(self.activation(self.c1(x)))
        x = self.s4(self.activation(self.c3(x)))
        x = self.activation(self.c5(x)).flatten(1)
        return self.classifier(self.activation(self.f6(x)))


class Mlp(nn.Module):
    """Dense layers with ReLU over the pixels; `hidden=[300]` is the paper's 28x28-300-10 (4.7% errors there)."""

    def __init__(self, num_classes: int, *, hidden: Sequence[int], in_chans: int, size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        units = in_chans * size * size
        for width in hidden:
            layers += [nn.Linear(units, width), nn.ReLU()]
            units = width
        self.hidden = nn.Sequential(*layers)
        self.classifier = nn.Linear(units, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes logits, N x num_classes, from normalised pixels, N x in_chans x size x size."""
        return self.classifier(self.hidden(x.flatten(1)))


class ResNet9(nn.Module):
    """ResNet-9 (https://myrtle.ai/learn/how-to-train-your-resnet/): eight convolutions and a classifier.

    With `width` 64 it learns CIFAR-10 to 94% in seconds on one GPU (David Page, 2018). Pictures of any size from 8x8
    work, because the last pooling covers the whole map. Page's scaling of the logits by 0.125 is applied before the
    classifier, which is the same.

    Args:
        num_classes: number of outputs.
        in_chans: channels of the input.
        width: channels of the first layer; the last has eight times as many.
    """

    def __init__(self, num_classes: int, *, in_chans: int, width: int) -> None:
        super().__init__()
        self.prep = _convolution(in_chans, width)
        self.layer1 = nn.Sequential(_convolution(width, width * 2, halve=True), _Residual(width * 2))
        self.layer2 = _convolution(width * 2, width * 4, halve=True)
        self.layer3 = nn.Sequential(_convolution(width * 4, width * 8, halve=True), _Residual(width * 8))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.classifier = nn.Linear(width * 8, num_classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes logits, N x num_classes, from normalised pixels, N x in_chans x height x width."""
        x = self.layer3(self.layer2(self.layer1(self.prep(x))))
        return self.classifier(self.pool(x).flatten(1) * 0.125)


class FilterNet(nn.Module):
    """A small network whose first layer is meant to be looked at: `count` kernels, then two convolutions.

    The first layer sees both signs of what each kernel finds (concatenated ReLU, https://arxiv.org/abs/1603.05201), so
    that it learns no kernel twice with opposite signs. Pictures of any size from 8x8 work.

    Args:
        num_classes: number of outputs.
        count: number of kernels.
        kernel_size: side of a kernel in pixels.
        gates: whether `FilterGates` come before the kernels.
        in_chans: channels of the input.
    """

    #: Mean and deviation by which pixels in 0..1 are normalised: the same for all channels, so that a kernel's weights
    #: mean the same for pixels as for what the network sees.
    MEAN, STD = 0.5, 0.25

    def __init__(self, num_classes: int, *, count: int, kernel_size: int, gates: bool, in_chans: int) -> None:
        super().__init__()
        self.gates = FilterGates() if gates else None
        self.kernels = nn.Conv2d(
            in_chans, count, kernel_size, padding=kernel_size // 2, padding_mode="reflect", bias=False
        )
        self.norm = nn.BatchNorm2d(count)
        self.pool = nn.MaxPool2d(2)
        self.layers = nn.Sequential(_convolution(2 * count, 32, halve=True), _convolution(32, 64))
        self.last = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes logits, N x num_classes, from normalised pixels, N x in_chans x height x width."""
        if self.gates is not None:
            x = (self.gates(x * self.STD + self.MEAN) - self.MEAN) / self.STD
        responses = self.norm(self.kernels(x))
        both = torch.cat([torch.relu(responses), torch.relu(-responses)], 1)
        return self.classifier(self.last(self.layers(self.pool(both))).flatten(1))


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = _convolution(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x))


def _convolution(channels: int, out: int, *, halve: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(True)]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if halve else []))
