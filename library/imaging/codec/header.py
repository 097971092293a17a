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
PLAIN_PX_NS = 10.0


@dataclass(frozen=True)
class Header:
    """What the first bytes of a picture say; width and height with the orientation applied.

    `orientation` (1 to 8) and `colours` (a JPEG's colour space) are for the reader of the pixels, which would look
    them up again. `has_more_pages` says that only the first of several pictures in the file is read.

    `work_px` is what decoding costs at most, counted in pixels of a plain picture of the format, whatever the file
    repeats or pads: a plain one of 1,000 x 1,000 pixels counts 1,000,000. Readers count it from the header and the
    markers; 0 where the header was not read from the bytes. `px_ns` is what each of these pixels costs, in nanoseconds
    on one core of the machine of docs/security.md; it says how long to expect, and limits nothing.
    """

    format: str
    width: int
    height: int
    channels: int
    dtype: str = "uint8"
    orientation: int = field(default=1, compare=False)
    colours: str = field(default="", compare=False)
    work_px: int = field(default=0, compare=False)
    px_ns: float = field(default=PLAIN_PX_NS, compare=False)
    has_more_pages: bool = field(default=False, compare=False)

    @property
    def expected_s(self) -> float:
        """How long decoding takes at most, in seconds."""
        return self.work_px * self.px_ns * 1e-9


@dataclass(frozen=True)
class Format:
    """How to read one format: its header (no pixel decoded), and with that its pixels (upright)."""

    header: Callable[[bytes], Header]
    pixels: Callable[[bytes, Header], NDArray[Any]]


def header_of(
    name: str,
    width: int,
    height: int,
    channels: int,
    dtype: str = "uint8",
    orientation: int = 1,
    colours: str = "",
    *,
    work_px: int | None = None,
    px_ns: float = PLAIN_PX_NS,
) -> Header:
    """A header from the stored size; the orientation may swap its sides. Without `work_px` it is a plain picture."""
    if orientation in _TURNED:
        width, height = height, width
    if work_px is None:
        work_px = width * height
    return Header(name, width, height, channels, dtype, orientation, colours, work_px, px_ns)


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
