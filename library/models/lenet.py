"""LeNet-5 and the plain network that it was compared with: LeCun, Bottou, Bengio, Haffner, 1998."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class LeNet5(nn.Module):
    """LeNet-5 in the layout of 1998 (https://doi.org/10.1109/5.726791, figure 2): 61,706 parameters with 10 classes.

    Where it differs from the paper: C3 sees all six maps of S2, not a chosen few (1,516 parameters there, 2,416 here);
    subsampling has no trainable factor and offset; tanh is not stretched; the output is a dense layer, not radial
    basis functions.

    Args:
        num_classes: outputs.
        in_chans: channels of the input.
        size: its side; 28 is padded with zeros to the 32 of the paper.
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
        return self.classifier(self.hidden(x.flatten(1)))
