"""Reads JPEG 2000 (JP2 files and bare codestreams), any number of bands, up to 16 bits, with imagecodecs' OpenJPEG."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from imagecodecs import jpeg2k_decode
from numpy.typing import NDArray

from library.errors import BadPicture
from library.imaging.codec.boxes import boxes
from library.imaging.codec.conversions import divided_by_alpha, full_range
from library.imaging.codec.header import Header, header_of

JP2_MAGIC, CODESTREAM_MAGIC = b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"
_SUPPORTED_COLOURS = (
    0,
    16,
    17,
    18,
)  # unspecified (OpenJPEG's code), sRGB, grey, and sYCC, which imagecodecs converts to RGB
_COLOUR_NAMES = {12: "CMYK", 14: "CIELab", 24: "e-sYCC"}
_ENUMERATED, _PREMULTIPLIED = 1, 2


@dataclass
class _Boxes:
    """The contents of a JP2 file's boxes.

    Attributes:
        codestream: offset of its first byte.
        colours: number of the colour space; None if only a profile gives it, or nothing does.
        palette: coded depth of each column of the palette; empty without a palette.
        premultiplied: whether colours are multiplied by alpha.
    """

    codestream: int = 0
    colours: int | None = None
    palette: list[int] = field(default_factory=list[int])
    premultiplied: bool = False


def jpeg2000_header(data: bytes) -> Header:
    contents = _boxes(data)
    width, height, samples = _size(data, contents.codestream)
    depths = contents.palette or samples
    if len(set(samples)) > 1 or len(set(depths)) > 1:
        raise BadPicture("unsupported", "a JPEG 2000 whose components differ in depth or size")
    if depths[0] & 0x80 or depths[0] > 15:
        kind = "signed samples" if depths[0] & 0x80 else f"samples of {depths[0] + 1} bits"
        raise BadPicture("unsupported", f"a JPEG 2000 of {kind}")
    if contents.colours is not None and contents.colours not in _SUPPORTED_COLOURS:
        name = _COLOUR_NAMES.get(contents.colours, f"of space {contents.colours}")
        raise BadPicture("unsupported", f"a JPEG 2000 whose colours are {name}")
    dtype = "uint8" if depths[0] < 8 else "uint16"
    work_px = jpeg2000_work_px(data[contents.codestream :])
    return header_of("jp2", width, height, len(depths), dtype, work_px=work_px, px_ns=PX_NS)


def _boxes(data: bytes) -> _Boxes:
    contents = _Boxes()
    if data.startswith(CODESTREAM_MAGIC):
        return contents
    for kind, start, end in boxes(data, 0, len(data)):
        if kind == b"jp2h":
            for inner, at, stop in boxes(data, start, end):
                _read_box(contents, inner, data[at:stop])
        elif kind == b"jp2c":
            contents.codestream = start
            return contents
    raise BadPicture("truncated", "the JPEG 2000 file ends before its codestream")


def _read_box(contents: _Boxes, kind: bytes, content: bytes) -> None:
    if kind == b"colr" and contents.colours is None and content[:1] == bytes([_ENUMERATED]):
        (contents.colours,) = struct.unpack_from(">I", content, 3)
    elif kind == b"pclr":
        contents.palette = list(content[3 : 3 + content[2]])
    elif kind == b"cdef":
        types = [struct.unpack_from(">H", content, at)[0] for at in range(4, len(content) - 1, 6)]
        contents.premultiplied = _PREMULTIPLIED in types


def _size(data: bytes, at: int) -> tuple[int, int, list[int]]:
    """Width, height and the coded depth of each component, from the codestream's SIZ marker segment."""
    if data[at : at + 4] != CODESTREAM_MAGIC:
        raise BadPicture("damaged", "the JPEG 2000 file has no codestream where its boxes say it begins")
    right, bottom, left, top, tile_width, tile_height, _, _, count = struct.unpack_from(">8IH", data, at + 8)
    components = data[at + 42 : at + 42 + 3 * count]
    if count < 1 or len(components) < 3 * count or min(tile_width, tile_height) < 1:
        raise BadPicture(
            "damaged", f"the JPEG 2000 header declares {count} components and tiles of {tile_width} x {tile_height}"
        )
    if any(step != 1 for step in components[1::3] + components[2::3]):
        raise BadPicture("unsupported", "a JPEG 2000 whose components are subsampled")
    return right - left, bottom - top, list(components[::3])


def jpeg2000_pixels(data: bytes, header: Header) -> NDArray[Any]:
    contents = _boxes(data)
    depths = contents.palette or _size(data, contents.codestream)[2]
    pixels = full_range(jpeg2k_decode(data), depths[0] + 1)
    if contents.premultiplied:
        return divided_by_alpha(pixels, header.channels - 1, header.channels - 1, np.iinfo(pixels.dtype).max)
    return pixels


# -- the work ---------------------------------------------------------------------------------------------------------
#
# Marker segments as in ITU-T T.800 (ISO/IEC 15444-1), annex A.

#: See `Header.px_ns`. Losslessly coded noise takes this long, photos an eighth.
PX_NS = 400.0
_PACKET_PX = 20  # an empty packet
_TILE_PX = 500
_MAX_SEGMENTS = 200_000
_SIZ, _COD, _COC, _SOT, _SOD = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93
_LARGEST_PRECINCT = 15


def jpeg2000_work_px(data: bytes) -> int:
    """`Header.work_px` of a codestream or of a file that contains one; 0 without a codestream.

    It counts samples and packets: a few bytes may declare a great many packets.

    Raises:
        BadPicture: `too_much_work` if there are more than 200,000 marker segments.
    """
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0:
        return 0
    work_px = tiles = samples = packets = 0
    size = (0, 0)
    for marker, segment in _segments(data, start + 2):
        if marker == _SIZ and not tiles:
            right, bottom, left, top, across, down, tile_left, tile_top, samples = struct.unpack_from(
                ">8IH", segment, 2
            )
            tiles = -(-(right - tile_left) // max(across, 1)) * -(-(bottom - tile_top) // max(down, 1))
            size = min(across, right - left), min(down, bottom - top)
            work_px = max(right - left, 0) * max(bottom - top, 0) * -(-samples // 3)
        elif marker == _COD and len(segment) >= 10:
            layers = int.from_bytes(segment[2:4], "big")
            packets = max(packets, layers * _packets(size, segment[5], segment[10:] if segment[0] & 1 else b""))
        elif marker == _COC:
            at = 1 if samples < 257 else 2
            sizes = segment[at + 6 :] if segment[at] & 1 else b""
            # COC does not give the number of layers, so the work of any number is assumed.
            packets = max(packets, 2 * _packets(size, segment[at + 1], sizes))
    return work_px + tiles * (_TILE_PX + samples * packets * _PACKET_PX)


def _segments(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Yields the markers and segments of the main header and of all tile-part headers; coded data is skipped."""
    following = len(data)
    for _ in range(_MAX_SEGMENTS):
        if at + 4 > len(data):
            return
        marker, length = struct.unpack_from(">HH", data, at)
        if marker == _SOD:
            at = following
            continue
        if marker == _SOT:
            (part,) = struct.unpack_from(">I", data.ljust(at + 12, b"\0"), at + 6)
            following = at + part if part >= 14 else len(data)
        yield marker, data[at + 4 : at + 2 + length]
        at += 2 + max(length, 2)
    raise BadPicture("too_much_work", f"the JPEG 2000 data has more than {_MAX_SEGMENTS:,} segments")


def _packets(size: tuple[int, int], levels: int, precincts: bytes) -> int:
    """The number of packets of one tile component in one layer: one for each precinct of each resolution."""
    total = 0
    for resolution in range(min(levels, 32) + 1):
        sizes = precincts[resolution] if resolution < len(precincts) else _LARGEST_PRECINCT * 17
        scale = min(levels, 32) - resolution
        total += math.prod(
            -(-side // 2 ** (scale + bits)) + 1 for side, bits in zip(size, (sizes & 15, sizes >> 4), strict=True)
        )
    return total
