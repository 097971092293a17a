"""Reads PNG with libpng (from imagecodecs), the fastest decoder; it detects missing rows and reads 16 bits.

libpng receives only the chunks that make pixels. Text, profiles and other ancillary chunks are neither unpacked nor a
reason to reject a picture, even with a wrong checksum; gamma and profiles are not applied. Transparency (tRNS) becomes
an alpha channel, for grey and RGB too. An animated PNG gives its default picture.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

from imagecodecs import png_decode
from numpy.typing import NDArray

from library.errors import BadPicture
from library.imaging.codec.header import Header, exif_orientation, header_of, upright

_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type
_PALETTE = 3
_TRANSPARENCY_BYTES = {0: range(2, 3), 2: range(6, 7), _PALETTE: range(1, 257)}  # by colour type
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_PX_NS = 15.0  # at 8 bits a sample
_ROW_PX = 10  # fixed cost of unpacking a row
_MAX_CHUNKS = 100_000  # libpng writes chunks of 8 KiB: 65,536 of them in 512 MiB


def png_header(data: bytes) -> Header:
    width, height, depth, colour = _ihdr(data)
    transparency, orientation, begun = b"", 1, False
    for kind, start, end in _chunks(data):
        if kind == b"IDAT" and not begun:
            begun = True
            if data.find(b"eXIf", end) < 0:  # the usual case: no later chunk matters
                break
        elif kind == b"tRNS" and not begun:
            transparency = data[start + 8 : end - 4]
        elif kind == b"eXIf" and _checksum_holds(data, start, end):
            orientation = exif_orientation(data[start + 8 : end - 4])
    channels = _CHANNELS.get(colour, 0) + _adds_alpha(colour, transparency)
    dtype = "uint16" if depth == 16 else "uint8"
    work_px = width * height + _ROW_PX * _rows(height, interlaced=data[28] != 0)
    return header_of(
        "png", width, height, channels, dtype, orientation, work_px=work_px, px_ns=_PX_NS * max(depth / 8, 1)
    )


def _rows(height: int, *, interlaced: bool) -> int:
    """The number of rows to unpack; an interlaced picture consists of seven smaller ones."""
    return 15 * height // 8 + 7 if interlaced else height


def _ihdr(data: bytes) -> tuple[int, int, int, int]:
    """Width, height, bits per sample and colour type."""
    if data[12:16] == b"CgBI":
        raise BadPicture(
            "unsupported", "an iOS PNG (CgBI), as Xcode writes it; `pngcrush -revert-iphone-optimizations` restores it"
        )
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise BadPicture("truncated", "the PNG ends before its header")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    return width, height, depth, colour


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields the name, first byte and end of each chunk; the last one may end after the data."""
    at = 8
    for _ in range(_MAX_CHUNKS):
        if at >= len(data):
            return
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield kind, at, end
        if kind == b"IEND":
            return
        at = end
    raise BadPicture("too_large", f"the PNG has more than {_MAX_CHUNKS:,} chunks")


def _checksum_holds(data: bytes, start: int, end: int) -> bool:
    return zlib.crc32(memoryview(data)[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")


def _adds_alpha(colour: int, transparency: bytes) -> bool:
    """Whether a tRNS chunk makes pixels transparent; one that does not fit the colour type is ignored."""
    return len(transparency) in _TRANSPARENCY_BYTES.get(colour, ())


def png_pixels(data: bytes, header: Header) -> NDArray[Any]:
    return upright(png_decode(_pixel_chunks(data)), header.orientation)


def _pixel_chunks(data: bytes) -> bytes:
    """The file reduced to the chunks that make its pixels, with their checksums checked."""
    _, _, depth, colour = _ihdr(data)
    palette, transparency, kind, pixels = b"", b"", b"", list[memoryview]()
    for kind, start, end in _chunks(data):
        if end > len(data):
            raise BadPicture("truncated", f"the PNG ends in the chunk that starts at byte {start}")
        if kind not in _PIXEL_CHUNKS:
            if not kind[0] & 32:  # a capital letter marks a critical chunk, which no reader may skip
                raise BadPicture("unsupported", f"a PNG with an unknown critical chunk {kind.decode('latin-1')!r}")
        elif not _checksum_holds(data, start, end):
            raise BadPicture("damaged", f"bad checksum in the {kind.decode('latin-1')} chunk at byte {start}")
        elif kind == b"PLTE" and colour == _PALETTE:
            palette = data[start + 8 : end - 4]
        elif kind == b"tRNS" and not pixels:
            transparency = data[start + 8 : end - 4]
        elif kind == b"IDAT":
            pixels.append(memoryview(data)[start:end])
    if kind != b"IEND":
        raise BadPicture("truncated", "the PNG has no IEND chunk")
    before = [data[:33]]
    if colour == _PALETTE:
        before.append(_chunk(b"PLTE", palette))
        transparency = transparency[: min(len(palette) // 3, 2**depth)]  # libpng ignores a longer one
    if _adds_alpha(colour, transparency):
        before.append(_chunk(b"tRNS", transparency))
    return b"".join([*before, *pixels, _chunk(b"IEND", b"")])


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
