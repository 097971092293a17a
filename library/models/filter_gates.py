"""Gates over filters: a network sees a weighted sum of filtered copies of its picture, and learns the weights.

Each filter is the step of the same text, written in torch. Continuous weights over operations: Liu, Simonyan and Yang,
"DARTS" (https://arxiv.org/abs/1806.09055), here over one step before the network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Multiplies what the optimizer changes, so that gates settle within a few epochs at the learning rate of the kernels.
_SHARPNESS = 10.0
_SOBEL = ((-0.25, 0.0, 0.25), (-0.5, 0.0, 0.5), (-0.25, 0.0, 0.25))
_LAPLACIAN = ((0.0, -1.0, 0.0), (-1.0, 4.0, -1.0), (0.0, -1.0, 0.0))
#: Exchanges after which the fifth of nine values is their median (Smith, "Implementing median filters in XC4000E
#: FPGAs", 1996).
_MEDIAN_OF_9 = ((1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3), (5, 8), (4, 7), (3, 6),
                (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2))  # fmt: skip


class FilterGates(nn.Module):
    """The sum of the pictures that `GATED` filters make, each weighted by its gate."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(len(GATED)))

    @property
    def gates(self) -> Tensor:
        """The weights, in the order of `GATED`: positive, with a sum of 1."""
        return torch.softmax(self.logits * _SHARPNESS, 0)

    def forward(self, pixels: Tensor) -> Tensor:
        """Filters pixels in 0..1, N x channels x height x width, of at least 4 x 4."""
        total = torch.zeros_like(pixels)
        for gate, filtered in zip(self.gates, GATED.values(), strict=True):
            total = total + gate * filtered(pixels)
        return total


def _correlated(pixels: Tensor, kernel: Tensor, mode: str = "reflect") -> Tensor:
    """Correlates each channel with one kernel."""
    rows, columns = kernel.shape
    padded = functional.pad(pixels, (columns // 2, columns // 2, rows // 2, rows // 2), mode)
    planes = padded.reshape(-1, 1, *padded.shape[2:])
    return functional.conv2d(planes, kernel.to(pixels)[None, None]).reshape(pixels.shape)


def _gaussian_blur(pixels: Tensor) -> Tensor:
    bell = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / 2)
    bell = bell / bell.sum()
    return _correlated(_correlated(pixels, bell[None]), bell[:, None])


def _sharpened(pixels: Tensor) -> Tensor:
    return (2 * pixels - _gaussian_blur(pixels)).clamp(0, 1)


def _edges(pixels: Tensor) -> Tensor:
    kernel = torch.tensor(_SOBEL)
    squares = _correlated(pixels, kernel) ** 2 + _correlated(pixels, kernel.T) ** 2
    return (squares + 1e-12).sqrt().clamp(0, 1)


def _median(pixels: Tensor) -> Tensor:
    padded = functional.pad(pixels, (1, 1, 1, 1), "replicate")
    height, width = pixels.shape[2:]
    values = [padded[:, :, y : y + height, x : x + width] for y, x in itertools.product(range(3), repeat=2)]
    for low, high in _MEDIAN_OF_9:
        values[low], values[high] = torch.minimum(values[low], values[high]), torch.maximum(values[low], values[high])
    return values[4]


def _dilated(pixels: Tensor) -> Tensor:
    return functional.max_pool2d(pixels, 3, 1, 1)


def _stretched(pixels: Tensor) -> Tensor:
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    return torch.where(high > low, (pixels - low) / (high - low).clamp(min=1e-6), pixels)


#: The filters that have a gate, by their texts; the empty text changes nothing. Pixels are in 0..1.
GATED: Mapping[str, Callable[[Tensor], Tensor]] = {
    "": lambda pixels: pixels,
    "gaussian_blur(sigma=1)": _gaussian_blur,
    "box_blur(size=3)": lambda pixels: _correlated(pixels, torch.full((3, 3), 1 / 9)),
    "median_blur(size=3)": _median,
    "sharpen(amount=1)": _sharpened,
    "laplacian_sharpen(amount=0.5)": lambda pixels: (
        pixels + 0.5 * _correlated(pixels, torch.tensor(_LAPLACIAN))
    ).clamp(0, 1),
    "edges(gain=1)": _edges,
    "gamma(gamma=0.5)": lambda pixels: pixels.clamp(min=1e-6) ** 0.5,
    "gamma(gamma=2)": lambda pixels: pixels**2,
    "contrast_stretch(low_percentile=0, high_percentile=100)": _stretched,
    "erode(size=3)": lambda pixels: -_dilated(-pixels),
    "dilate(size=3)": _dilated,
}
