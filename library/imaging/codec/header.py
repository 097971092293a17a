"""What all format readers share: the header of a picture and its orientation."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

ORIENTATION_TAG = 0x0112  # in EXIF and in TIFF
_SHORT = 3  # EXIF's type code of a 16-bit number
_SIDES_SWAPPED = (5, 6, 7, 8)  # orientations that swap width and height
PLAIN_PX_NS = 10.0


@dataclass(frozen=True)
class Header:
    """A picture's properties, read without decoding pixels.

    Attributes:
        format: jpeg, png, webp, tiff, avif, heic, jp2, gif, bmp or npy.
        width: in pixels, with the orientation applied.
        height: in pixels, with the orientation applied.
        channels: of the decoded picture.
        dtype: of the decoded picture: uint8, uint16 or float32.
        orientation: 1 to 8, as in EXIF; saves the pixel reader from looking it up again.
        colours: format-specific colour information (a JPEG's colour space, an AVIF's bit depth) for the pixel reader.
        work_px: upper bound of the decoding cost, in pixels of a plain picture of the same format: 1,000,000 for a
            plain one of 1,000 x 1,000 pixels, more if the file repeats or pads its data. Computed from the header and
            the markers; 0 if this header was not read from the picture's bytes.
        px_ns: cost of one such pixel in nanoseconds, on one core of the machine in docs/security.md; used to estimate
            the decoding time, not to limit it.
        has_more_pages: whether the file holds more pictures than the one that is read.
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
        """Estimated upper bound of the decoding time, in seconds."""
        return self.work_px * self.px_ns * 1e-9


@dataclass(frozen=True)
class Format:
    """The two readers of one format: its header, without decoding a pixel, and its pixels, upright."""

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
    """Builds a header from the stored size, which the orientation may swap; `work_px` defaults to width x height."""
    if orientation in _SIDES_SWAPPED:
        width, height = height, width
    if work_px is None:
        work_px = width * height
    return Header(name, width, height, channels, dtype, orientation, colours, work_px, px_ns)


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Applies an EXIF orientation (1 to 8; any other value counts as 1) to stored pixels."""
    if orientation in _SIDES_SWAPPED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def exif_orientation(exif: bytes) -> int:
    """The orientation (1 to 8) in an EXIF block; 1 if it has none or the block is damaged.

    Reads only the first directory. Pillow's reader of all tags logs warnings that do not name the picture.
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
