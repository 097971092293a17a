"""The arithmetic of steps that look at the surroundings of each pixel, for stacks: n x height x width x channels.

Like `kernels`, they repeat OpenCV's arithmetic, and sum in a fixed order.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from library.steps.augmentations.policies import SMOOTH
from library.training.augmenting.kernels import on, rounded

# The fractions of OpenCV's kernels, in bits.
_KERNEL_BITS = 8


def blur(stack: Tensor, sigmas: NDArray[np.float64]) -> Tensor:
    """Blurs with Gaussians, mirrored at the borders, in OpenCV's whole numbers: 256ths for each direction."""
    weights = gaussians(sigmas)
    values = stack.float()
    for axis in (2, 1):
        total = torch.zeros(stack.shape, device=stack.device)
        for tap in range(weights.shape[1]):
            weight = on(stack.device, weights[:, tap], 1, 1, 1)
            total = total + _shifted(values, axis, tap - weights.shape[1] // 2, "reflect_101") * weight
        values = total
    return ((values + 2 ** (2 * _KERNEL_BITS - 1)) / 2 ** (2 * _KERNEL_BITS)).floor().clamp(0, 255).to(torch.uint8)


def gaussians(sigmas: NDArray[np.float64]) -> NDArray[np.float32]:
    """Gaussian kernels as OpenCV rounds them: whole numbers whose sum is 256, each error carried to the next one.

    Returns:
        n x taps, odd; shorter kernels have zeros on both ends.
    """
    radii = (np.rint(sigmas * 6 + 1).astype(np.int64) | 1) // 2
    most = int(radii.max(initial=0))
    distances = np.abs(np.arange(-most, most + 1))
    kernels = np.exp(-0.5 * distances**2 / sigmas[:, None] ** 2) * (distances <= radii[:, None])
    kernels *= 2**_KERNEL_BITS / kernels.sum(axis=1, keepdims=True)
    whole = np.zeros_like(kernels)
    error = np.zeros(len(sigmas))
    for tap in range(most):
        exact = kernels[:, tap] + error
        whole[:, tap] = whole[:, -1 - tap] = np.rint(exact)
        error = exact - whole[:, tap]
    whole[:, most] = 2**_KERNEL_BITS - whole.sum(axis=1)
    return whole.astype(np.float32)


def unsharp(stack: Tensor, amount: float, sigma: float) -> Tensor:
    """Adds the difference from a Gaussian blur, `amount` times."""
    blurred = blur(stack, np.full(len(stack), sigma))
    return rounded(stack.double() * (1 + amount) - blurred.double() * amount)


def mean(stack: Tensor, size: int, border: str) -> Tensor:
    """Replaces each pixel by the mean of a window."""
    total = stack.to(torch.int32)
    for axis in (1, 2):
        lines = total
        total = torch.zeros_like(lines)
        for offset in range(-(size // 2), size // 2 + 1):
            total = total + _shifted(lines, axis, offset, border)
    return rounded(total.double() / size**2)


def convolution(stack: Tensor, weights: NDArray[np.float64], border: str) -> Tensor:
    """Weighs the surroundings of each pixel; a kernel of even sides reaches one pixel further right and down."""
    values, total = stack.float(), torch.zeros(stack.shape, device=stack.device)
    rows, columns = weights.shape
    for y in range(rows):
        line = _shifted(values, 1, y - (rows - 1) // 2, border)
        for x in range(columns):
            if weights[y, x]:
                total = total + _shifted(line, 2, x - (columns - 1) // 2, border) * float(np.float32(weights[y, x]))
    return rounded(total)


def sharpness(stack: Tensor, gains: NDArray[np.float64]) -> Tensor:
    """Multiplies the difference of each pixel from its surroundings, mirrored at the borders."""
    weights = SMOOTH * (1 - gains)[:, None, None]
    weights[:, 1, 1] += gains
    total = torch.zeros(stack.shape, device=stack.device)
    values = stack.float()
    for y in range(3):
        line = _shifted(values, 1, y - 1, "reflect_101")
        for x in range(3):
            weight = on(stack.device, weights[:, y, x].astype(np.float32), 1, 1, 1)
            total = total + _shifted(line, 2, x - 1, "reflect_101") * weight
    return torch.where(on(stack.device, gains == 1, 1, 1, 1), stack, rounded(total))


def _shifted(stack: Tensor, axis: int, offset: int, border: str) -> Tensor:
    """For each line the one `offset` lines further on; the picture continues as a `library.steps.arrays.Border`."""
    side = stack.shape[axis]
    lines = torch.arange(side, device=stack.device) + offset
    if border == "reflect_101":
        folded = lines % max(2 * side - 2, 1)
        return stack.index_select(axis, torch.minimum(folded, (2 * side - 2 - folded).clamp(min=0)))
    if border == "reflect":
        folded = lines % (2 * side)
        return stack.index_select(axis, torch.minimum(folded, 2 * side - 1 - folded))
    shifted = stack.index_select(axis, lines.clamp(0, side - 1))
    if border == "zeros":
        shifted.index_fill_(axis, ((lines < 0) | (lines >= side)).nonzero()[:, 0], 0)
    return shifted
