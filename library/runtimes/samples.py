"""Pictures that a runtime is tried out with: noise, which reaches every weight, and shapes, as pictures have them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from library.bundle.bundle import Bundle, Prepared
from library.imaging.picture import Pixels


def noise(bundle: Bundle, seed: int) -> Prepared:
    """A prepared picture of random pixels; for an ensemble one a member."""
    if bundle.members:
        return tuple(noise(member, seed) for member in bundle.members)
    height, width = bundle.record.input_size
    return np.random.default_rng(seed).integers(0, 256, (height, width, bundle.record.channels), np.uint8)


def samples(bundle: Bundle, count: int) -> list[Prepared]:
    """Prepared pictures of many kinds, the same for the same bundle; for an ensemble each is one a member."""
    if bundle.members:
        return list(zip(*(samples(member, count) for member in bundle.members), strict=True))
    height, width = bundle.record.input_size
    return [_sample(number, height, width, bundle.record.channels) for number in range(count)]


def _sample(number: int, height: int, width: int, channels: int) -> Pixels:
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    shapes = (
        rng.random((height, width)),
        (x + y) / 2,
        np.hypot(x - 0.5, y - 0.4) < 0.3,
        np.sin(2 * np.pi * (3 * x + 5 * y)) / 2 + 0.5,
        (np.floor(8 * x) + np.floor(8 * y)) % 2,
        np.exp(-8 * np.hypot(x - 0.3, y - 0.6)),
        np.ones_like(x),
        np.zeros_like(x),
    )
    shape: NDArray[np.float64] = np.asarray(shapes[number % len(shapes)], np.float64)
    low, high = rng.integers(0, 256, (2, channels)) * np.array([[0.4], [1.0]])
    grain = 6 * rng.standard_normal((height, width, channels))
    return np.clip(low + (high - low) * shape[:, :, None] + grain, 0, 255).astype(np.uint8)
