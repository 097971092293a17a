"""Robustness: accuracy on corrupted pictures, with blur, noise, JPEG and low contrast at three strengths each.

The amounts are those of severities 1, 3 and 5 of ImageNet-C (Hendrycks and Dietterich 2019, arXiv:1903.12261, its
`make_imagenet_c.py`). Unlike there, the stored picture is corrupted instead of a crop of 224 pixels, so the blur grows
with the picture (its sigma is stated for a shorter side of 224 pixels), and noise and JPEG blocks are finer on a larger
picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from library.imaging import codec
from library.imaging.picture import Pixels
from library.randomness import generator, seed_of
from library.steps.arrays import by_channel_groups, each_channel, white

CorruptionName = Literal["blur", "noise", "jpeg", "contrast"]

STRENGTHS = (1, 2, 3)
_REFERENCE_PX = 224


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption at one strength.

    Attributes:
        name: blur, noise, jpeg or contrast.
        strength: 1, 2 or 3.
        amount: blur: sigma in pixels for a shorter side of 224 pixels; noise: standard deviation as a fraction of
            white; jpeg: quality; contrast: the fraction that remains.
    """

    name: CorruptionName
    strength: int
    amount: float

    def __call__(self, pixels: Pixels, key: str) -> Pixels:
        """Corrupts a picture; the same key gives the same result.

        Args:
            pixels: height x width x channels, uint8, uint16 or float32.
            key: the picture's key, which decides its noise.

        Returns:
            The same shape and dtype; noise and JPEG clip float32 to 0 to 1.
        """
        if self.name == "noise":
            return _noisy(pixels, self.amount, generator("robustness", self.strength, key))
        return _PLAIN[self.name](pixels, self.amount)


def chosen(key: str, fraction: float) -> bool:
    """Returns whether a picture is in the `fraction` on which robustness is measured; depends on its key alone."""
    return order_of(key) < fraction * 2**64


def order_of(key: str) -> int:
    """Returns the rank by which pictures are chosen, a 64-bit hash of the key."""
    return seed_of("robustness", key) >> 64


def _blurred(pixels: Pixels, amount: float) -> Pixels:
    sigma = amount * min(pixels.shape[:2]) / _REFERENCE_PX
    return by_channel_groups(lambda group: cv2.GaussianBlur(group, (0, 0), sigma), pixels)


def _noisy(pixels: Pixels, amount: float, rng: np.random.Generator) -> Pixels:
    noise = rng.standard_normal(pixels.shape, np.float32)
    top = white(pixels.dtype)
    return _as_dtype(np.clip(pixels + noise * np.float32(amount * top), 0, top), pixels)


def _recompressed(pixels: Pixels, amount: float) -> Pixels:
    quality = codec.Encoding("jpeg", round(amount))
    top = white(pixels.dtype)

    def through_jpeg(part: Pixels) -> Pixels:
        return codec.decode(codec.encode(part, quality)[0], limits=None)

    levels = np.rint(np.clip(pixels / np.float32(top), 0, 1) * 255).astype(np.uint8)
    # JPEG holds one channel or three; others are compressed one by one.
    corrupted = (
        through_jpeg(levels) if pixels.shape[2] in (1, 3) else each_channel(lambda p: _plane(through_jpeg, p), levels)
    )
    return corrupted if pixels.dtype == np.uint8 else _as_dtype(corrupted * np.float32(top / 255), pixels)


def _plane(function: Callable[[Pixels], Pixels], plane: Pixels) -> Pixels:
    return function(np.ascontiguousarray(plane)[:, :, None])[:, :, 0]


def _faded(pixels: Pixels, amount: float) -> Pixels:
    means = pixels.mean((0, 1), np.float64).astype(np.float32)
    return _as_dtype((pixels - means) * np.float32(amount) + means, pixels)


def _as_dtype(values: Pixels, like: Pixels) -> Pixels:
    return values.astype(like.dtype) if like.dtype == np.float32 else np.rint(values).astype(like.dtype)


_PLAIN: dict[str, Callable[[Pixels, float], Pixels]] = {"blur": _blurred, "jpeg": _recompressed, "contrast": _faded}

_AMOUNTS: dict[CorruptionName, tuple[float, float, float]] = {
    "blur": (1, 3, 6),
    "noise": (0.08, 0.18, 0.38),
    "jpeg": (25, 15, 7),
    "contrast": (0.4, 0.2, 0.05),
}

#: All corruptions by kind, each from weak to strong.
CORRUPTIONS = tuple(
    Corruption(name, strength, amount)
    for name, amounts in _AMOUNTS.items()
    for strength, amount in zip(STRENGTHS, amounts, strict=True)
)


@dataclass(frozen=True)
class Robustness:
    """Accuracy under every corruption.

    Attributes:
        pictures: number of pictures that were measured.
        clean: top-1 on these pictures without corruption.
        top1: top-1 for each of `CORRUPTIONS`; None where the classifier's own selectors drop every picture.
        judged: number of judged pictures for each of `CORRUPTIONS`.
    """

    pictures: int
    clean: float
    top1: tuple[float | None, ...]
    judged: tuple[int, ...]


def measure(robust: Sequence[tuple[int, str]], most: int) -> Robustness | None:
    """Computes accuracy under every corruption from a classifier's answers for the chosen pictures.

    Args:
        robust: `Sums.robust` of `library.evaluation.sums`.
        most: the largest number of pictures that count; the choice depends on their keys alone.

    Returns:
        None where there are no pictures.
    """
    rows = [answers for _, answers in sorted(robust)[:most]]
    if not rows:
        return None
    clean, *columns = zip(*rows, strict=True)
    judged = tuple(len(column) - column.count("-") for column in columns)
    top1 = tuple(column.count("1") / count if count else None for column, count in zip(columns, judged, strict=True))
    return Robustness(len(rows), clean.count("1") / len(rows), top1, judged)
