"""What every reader gives and needs: a header, and the way up."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

ORIENTATION_TAG = 0x0112  # in EXIF and in TIFF
_SHORT = 3  # EXIF's type of 16 bits
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


def exif_orientation(exif: bytes) -> int:
    """The orientation (1 to 8) in a block of EXIF; 1 where there is none or the block is damaged.

    Only the first directory is looked at: Pillow's reader of all tags warns of oddities without a picture's name.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    if exif[:4] == b"II*\0":
        order = "<"
    elif exif[:4] == b"MM\0*":
        order = ">"
    else:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, _, short, _ = struct.unpack_from(order + "HHIHH", exif, entry)
            if tag == ORIENTATION_TAG:
                return short if kind == _SHORT and 1 <= short <= 8 else 1
    except struct.error:
        pass
    return 1
