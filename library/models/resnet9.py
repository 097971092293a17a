"""The small residual network that learned CIFAR-10 to 94% in seconds on one GPU: David Page, 2018."""

from __future__ import annotations

import torch
from torch import nn


class ResNet9(nn.Module):
    """ResNet-9 (https://myrtle.ai/learn/how-to-train-your-resnet/): eight convolutions and a classifier.

    `width` 64 is Page's network. Any picture from 8x8 goes, as the last pooling takes all that is left. His scaling of
    the logits by 0.125 stands before the classifier, where it is the same.

    Args:
        num_classes: outputs.
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
        x = self.layer3(self.layer2(self.layer1(self.prep(x))))
        return self.classifier(self.pool(x).flatten(1) * 0.125)


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
