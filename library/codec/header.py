"""What every reader gives and needs: a header, and the way up."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray
from PIL import Image

ORIENTATION_TAG = 0x0112  # in EXIF and in TIFF
_TURNED = (5, 6, 7, 8)  # orientations that swap width and height


@dataclass(frozen=True)
class Header:
    """What the first bytes of a picture say; width and height with the orientation applied.

    `orientation` (1 to 8) and `colours` (a JPEG's colour space) are for the reader of the pixels, which would look
    them up again.
    """

    format: str
    width: int
    height: int
    channels: int
    dtype: str = "uint8"
    orientation: int = field(default=1, compare=False)
    colours: str = field(default="", compare=False)


@dataclass(frozen=True)
class Format:
    """How to read one format: its header (no pixel decoded), and with that its pixels (upright)."""

    header: Callable[[bytes], Header]
    pixels: Callable[[bytes, Header], NDArray[Any]]


def header_of(
    name: str, width: int, height: int, channels: int, dtype: str = "uint8", orientation: int = 1, colours: str = ""
) -> Header:
    """A header from the stored size; the orientation may swap its sides."""
    if orientation in _TURNED:
        width, height = height, width
    return Header(name, width, height, channels, dtype, orientation, colours)


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn stored pixels the way their EXIF orientation (1 to 8; anything else is 1) says they are seen."""
    if orientation in _TURNED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def exif_orientation(segment: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(segment)
        return int(exif.get(ORIENTATION_TAG, 1))
    except (SyntaxError, ValueError, TypeError, struct.error, OSError, KeyError, IndexError, OverflowError):
        return 1  # a damaged tag says nothing; the pixels may still be whole
