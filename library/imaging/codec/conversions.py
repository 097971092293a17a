"""Conversions of stored samples to what every reader returns: full range, RGB, not multiplied by alpha."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_STRIP_PX = 2**16  # pixels converted to float64 at a time


def full_range(pixels: NDArray[Any], bits: int, *, inverted: bool = False) -> NDArray[Any]:
    """Stretches unsigned samples of 1 to 16 bits over the full range of uint8 (up to 8 bits) or uint16.

    Args:
        pixels: samples from 0 to 2^bits - 1, of any shape.
        bits: their depth.
        inverted: whether 0 is white; each sample is first replaced by 2^bits - 1 - sample.

    Returns:
        round(sample x 255 / (2^bits - 1)), or with 65535 for more than 8 bits.
    """
    if bits in (8, 16) and not inverted:
        return pixels
    most, full = 2**bits - 1, 255 if bits <= 8 else 65535
    table = ((np.arange(most + 1) * full * 2 + most) // (2 * most)).astype(np.uint8 if bits <= 8 else np.uint16)
    # A table needs no memory per pixel. 1-bit samples may be booleans, which NumPy would take for a mask.
    return np.take(table[::-1] if inverted else table, pixels.astype(np.uint8) if bits == 1 else pixels)


def divided_by_alpha(pixels: NDArray[Any], colours: int, alpha: int, opaque: float) -> NDArray[Any]:
    """Divides premultiplied colours by their alpha; black where alpha is zero.

    Args:
        pixels: height x width x channels; unsigned colours are rounded and limited to `opaque`.
        colours: number of colour channels, which come first.
        alpha: index of the alpha channel.
        opaque: alpha value of a fully opaque pixel.
    """
    whole = pixels.dtype.kind == "u"
    divided = pixels.copy()
    rows = max(_STRIP_PX // pixels.shape[1], 1)
    for top in range(0, len(pixels), rows):
        part = pixels[top : top + rows].astype(np.float64)
        covered = part[:, :, alpha : alpha + 1]
        values = np.zeros_like(part[:, :, :colours])
        np.divide(part[:, :, :colours] * opaque, covered, out=values, where=covered > 0)
        divided[top : top + rows, :, :colours] = np.minimum(np.rint(values), opaque) if whole else values
    return divided


def cmyk_to_rgb(pixels: NDArray[Any]) -> NDArray[Any]:
    """Converts full-range unsigned CMYK to RGB; a fifth channel, alpha, is kept."""
    white = np.iinfo(pixels.dtype).max
    rgb = pixels[:, :, 1:].copy()
    # In strips, since the whole picture as float64 would take eight times its size.
    rows = max(_STRIP_PX // pixels.shape[1], 1)
    for top in range(0, len(pixels), rows):
        paper = 1 - pixels[top : top + rows].astype(np.float64) / white
        rgb[top : top + rows, :, :3] = np.rint(paper[:, :, :3] * paper[:, :, 3:4] * white)
    return rgb
