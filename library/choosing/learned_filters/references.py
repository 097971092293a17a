"""The kernels of the textbook, and which of them a learned kernel resembles most. Imports no torch.

A learned kernel has a plane of weights for each channel. It is compared with a reference (one plane) in every colour at
once: the cosine is that with the reference times the best weights of the channels, which are the kernel's projections
on it. Its sign does not count, because later layers may reverse it. A reference may also lie up to `(size - 3) // 2`
pixels beside the middle.
"""

from __future__ import annotations

import colorsys
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from library.steps.edges import Gabor

Weights: TypeAlias = NDArray[np.float64]
#: What a kernel answers to: steps of brightness, lines, spots, or the mean of a neighbourhood.
Family: TypeAlias = Literal["edge", "line", "spot", "blur"]

_ANGLES = tuple(22.5 * number for number in range(8))
#: Wavelengths of Gabor kernels, as parts of the kernel's side.
_WAVELENGTHS = (0.6, 0.9, 1.4)
_SIGMAS = (1 / 8, 1 / 5, 1 / 3)
#: Above this share of energy in equal weights of all channels a kernel counts as grey.
_GREY_SHARE = 0.9
_HUES = ("red", "orange", "yellow", "lime", "green", "turquoise", "cyan", "azure", "blue", "violet", "magenta", "pink")


@dataclass(frozen=True)
class Reference:
    """A kernel of the textbook.

    Attributes:
        name: such as `sobel x` or `gabor 45 degrees, 4.5 px, phase 90`.
        family: what it answers to.
        weights: size x size; the sum of squares is 1.
    """

    name: str
    family: Family
    weights: Weights


@dataclass(frozen=True)
class Match:
    """The reference that a kernel resembles most.

    Attributes:
        reference: name of it.
        family: what it answers to.
        cosine: from 0 to 1; 1 for a kernel that is the reference in one colour.
        shift: pixels by which it lies further down and to the right.
        channels: weight of each channel; the sum of squares is 1, and the largest one is positive.
        colour: `grey`, or the two hues that it sets against each other, or the hue that it prefers.
        is_colour: whether it answers to colours: less than nine tenths of its energy is in equal channels.
        weights: the reference in these colours, shifted and signed as the kernel is: channels x size x size.
    """

    reference: str
    family: Family
    cosine: float
    shift: tuple[int, int]
    channels: tuple[float, ...]
    colour: str
    is_colour: bool
    weights: Weights


def references(size: int) -> tuple[Reference, ...]:
    """Returns Sobel, Prewitt, Laplacian, Gabor and Gaussian kernels of a side in pixels, odd and at least 3."""
    smooth, ramp = np.array([1.0, 2.0, 1.0]), np.array([-1.0, 0.0, 1.0])
    kernels: list[Reference] = []
    for name, across in (("sobel", smooth), ("prewitt", np.ones(3))):
        kernels += [
            _reference(f"{name} x", "edge", _widened(np.outer(across, ramp), size)),
            _reference(f"{name} y", "edge", _widened(np.outer(ramp, across), size)),
        ]
    if size >= 5:  # the same operators over a larger neighbourhood
        slope, wide = (np.asarray(part, np.float64).ravel() for part in cv2.getDerivKernels(1, 0, 5))
        steps = np.arange(-2.0, 3.0)
        for name, row, column in (("sobel", slope, wide), ("prewitt", steps, np.ones(5))):
            kernels += [
                _reference(f"{name} 5x5 x", "edge", _widened(np.outer(column, row), size)),
                _reference(f"{name} 5x5 y", "edge", _widened(np.outer(row, column), size)),
            ]
    four = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], np.float64)
    eight = np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]], np.float64)
    kernels += [
        _reference("laplacian 4", "spot", _widened(four, size)),
        _reference("laplacian 8", "spot", _widened(eight, size)),
    ]
    for angle, part, phase in itertools.product(_ANGLES, _WAVELENGTHS, (0, 90)):
        wavelength = max(2.5, part * size)
        whole = Gabor(wavelength=wavelength, angle=angle, sigma=wavelength * 0.4, aspect=0.7).kernel(phase)
        name = f"gabor {angle:g} degrees, {wavelength:.2g} px, phase {phase}"
        kernels.append(_reference(name, "edge" if phase else "line", _cut(whole, size)))
    for part in _SIGMAS:
        bell = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * (part * size) ** 2))
        kernels.append(_reference(f"gaussian, sigma {part * size:.2g} px", "blur", np.outer(bell, bell)))
    return tuple(kernels)


def nearest(kernels: NDArray[np.floating]) -> list[Match]:
    """Returns the most similar reference of each kernel.

    Args:
        kernels: count x channels x size x size.
    """
    size = kernels.shape[-1]
    known = references(size)
    numbers, shifts, planes = _moved_references(size)
    matches: list[Match] = []
    for kernel in np.asarray(kernels, np.float64):
        length = np.linalg.norm(kernel)
        projections = np.tensordot(kernel, planes, axes=([1, 2], [1, 2]))  # channels x candidates
        similar = np.linalg.norm(projections, axis=0)
        best = int(similar.argmax())
        reference, projection = known[int(numbers[best])], projections[:, best]
        colours = projection / (np.linalg.norm(projection) or 1.0)
        drawn = colours[:, None, None] * planes[best]
        colours = colours * (1.0 if colours[np.abs(colours).argmax()] >= 0 else -1.0)
        colour, is_colour = describe_colour(colours)
        shift = int(shifts[best][0]), int(shifts[best][1])
        cosine = float(similar[best] / length) if length else 0.0
        channels = tuple(float(value) for value in colours)
        matches.append(Match(reference.name, reference.family, cosine, shift, channels, colour, is_colour, drawn))
    return matches


def chance(kernels: NDArray[np.floating], *, draws: int = 500, share: float = 0.95) -> float:
    """Returns the cosine that this share of random kernels as smooth and as coloured as some kernels stays below.

    They are normal noise whose values are correlated over distances and channels as those of the kernels are in the
    mean; each kernel counts as much, with its mirror images and turned by right angles. White noise would be no
    measure: a blurred one resembles edges and blurs more than that.

    Args:
        kernels: count x channels x size x size.
        draws: number of random kernels.
        share: from 0 to 1.
    """
    kernels = np.asarray(kernels, np.float64)
    lengths = np.linalg.norm(kernels.reshape(len(kernels), -1), axis=1)
    alike = kernels[lengths > 0] / lengths[lengths > 0, None, None, None]
    if not len(alike):
        return 0.0
    images = [np.rot90(one, turns, (2, 3)) for one in (alike, alike[:, :, :, ::-1]) for turns in range(4)]
    values, vectors = np.linalg.eigh(_stationary_covariance(np.concatenate(images)))
    roots = vectors * np.sqrt(np.clip(values, 0, None))
    white = np.random.default_rng(0).normal(size=(draws, len(values)))
    noise = (white @ roots.T).reshape(draws, *kernels.shape[1:])
    _, _, planes = _moved_references(kernels.shape[-1])
    projections = np.tensordot(noise, planes, axes=([2, 3], [1, 2]))  # kernels x channels x candidates
    similar = np.linalg.norm(projections, axis=1).max(1) / np.linalg.norm(noise.reshape(draws, -1), axis=1)
    return float(np.quantile(similar, share))


def _stationary_covariance(kernels: Weights) -> Weights:
    """Covariance of all weights of a kernel, each pair of channels by the mean over all places at the same distance."""
    count, channels, size, _ = kernels.shape
    flat = kernels.reshape(count, channels, size * size)
    rows, columns = np.divmod(np.arange(size * size), size)
    down, right = rows - rows[:, None] + size - 1, columns - columns[:, None] + size - 1
    distance = down * (2 * size - 1) + right
    pairs = np.bincount(distance.ravel())
    covariance = np.empty((channels, size * size, channels, size * size))
    for one, other in itertools.product(range(channels), repeat=2):
        products = flat[:, one].T @ flat[:, other] / count
        covariance[one, :, other] = (np.bincount(distance.ravel(), products.ravel()) / pairs)[distance]
    return covariance.reshape(2 * (channels * size * size,))


def describe_colour(channels: Sequence[float] | Weights) -> tuple[str, bool]:
    """Names the weights of channels, and says whether they are those of a colour detector."""
    weights = np.asarray(channels, np.float64)
    total = float((weights**2).sum())
    if len(weights) == 1 or not total:
        return "grey", False
    if float(weights.mean()) ** 2 * len(weights) / total >= _GREY_SHARE:
        return "grey", False
    if len(weights) != 3:
        first, last = int(weights.argmax()), int(weights.argmin())
        return f"band {first} against band {last}" if weights[last] < 0 else f"mostly band {first}", True
    light = _hue(weights)
    return f"{light} against {_hue(-weights)}" if weights.min() < 0 else f"mostly {light}", True


def _hue(weights: Weights) -> str:
    shares = (weights - weights.min()) / (weights.max() - weights.min())
    return _HUES[round(colorsys.rgb_to_hsv(*shares.tolist())[0] * len(_HUES)) % len(_HUES)]


@lru_cache(maxsize=8)
def _moved_references(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Weights]:
    """Returns for each reference in each place its number, its shift (n x 2), and its weights (n x size x size)."""
    reach = (size - 3) // 2
    numbers: list[int] = []
    shifts: list[tuple[int, int]] = []
    planes: list[Weights] = []
    for number, reference in enumerate(references(size)):
        for down, right in itertools.product(range(-reach, reach + 1), repeat=2):
            plane = _shifted(reference.weights, down, right)
            length = float(np.linalg.norm(plane))
            if length < math.sqrt(0.5):  # half of it would lie outside
                continue
            numbers.append(number)
            shifts.append((down, right))
            planes.append(plane / length)
    return np.asarray(numbers), np.asarray(shifts), np.stack(planes)


def _reference(name: str, family: Family, weights: Weights) -> Reference:
    return Reference(name, family, weights / np.linalg.norm(weights))


def _widened(weights: Weights, size: int) -> Weights:
    rim = (size - len(weights)) // 2
    return np.pad(weights, rim)


def _cut(weights: Weights, size: int) -> Weights:
    """Returns the middle, size x size, of odd sides; zeros where it is larger."""
    padded = np.pad(weights, size)
    top, left = ((side - size) // 2 for side in padded.shape)
    return padded[top : top + size, left : left + size]


def _shifted(weights: Weights, down: int, right: int) -> Weights:
    size = len(weights)
    padded = np.pad(weights, size)
    return padded[size - down : 2 * size - down, size - right : 2 * size - right]
