"""Writes pictures that take as long to decode as their format allows, as an attacker would; no encoder is needed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence

#: One scan of a progressive JPEG: its components, first and last coefficient, and the bits before and after it.
Scan = tuple[Sequence[int], int, int, int, int]

_LONGEST_RUN = 2**15 - 1  # of empty blocks, in one symbol


def progressive_jpeg(width: int, height: int, scans: Iterable[Scan], components: int = 1) -> bytes:
    """Returns a progressive JPEG of one colour; only scans of the first coefficient have more than a few bytes.

    Args:
        width: in pixels.
        height: in pixels.
        scans: in their order in the file.
        components: 1 is grey, 3 are YCbCr without subsampling.
    """
    frame = struct.pack(">BHHB", 8, height, width, components)
    frame += b"".join(bytes([number, 0x11, 0]) for number in range(1, components + 1))
    blocks = -(-width // 8) * -(-height // 8)
    parts = [b"\xff\xd8", _segment(0xDB, b"\0" + b"\x01" * 64), _segment(0xC2, frame), _TABLES]
    for numbers, first, last, high, low in scans:
        head = bytes([len(numbers)]) + b"".join(bytes([number, 0]) for number in numbers)
        parts.append(_segment(0xDA, head + bytes([first, last, high << 4 | low])))
        # A 0 bit for each block; or runs of empty blocks, each a 0 bit and fourteen 1 bits.
        zeros = -(-blocks * len(numbers) // 8)
        parts.append(bytes(zeros) if first == 0 else _packed("0" + "1" * 14, -(-blocks // _LONGEST_RUN)))
    return b"".join([*parts, b"\xff\xd9"])


def many_scans(number: int, refining: bool = False) -> list[Scan]:
    """Returns a scan of the first coefficients and `number` of the rest, repeated or (slower) refined bit by bit."""
    again: list[Scan] = [((1,), 1, 63, 0, 13), *(((1,), 1, 63, low + 1, low) for low in range(12, -1, -1))]
    return [((1,), 0, 0, 0, 0), *([again[scan % 14 if refining else 0] for scan in range(number)])]


def _segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def _packed(bits: str, times: int) -> bytes:
    text = bits * times
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")


#: Huffman tables with one symbol each, whose code is a 0 bit: no difference, and the longest run of empty blocks.
_TABLES = _segment(0xC4, b"\x00\x01" + bytes(15) + b"\x00") + _segment(0xC4, b"\x10\x01" + bytes(15) + b"\xe0")


def thin_png(rows: int, interlaced: bool = False) -> bytes:
    """Returns a PNG of one column, or of two if it is interlaced."""
    width = 2 if interlaced else 1
    header = struct.pack(">IIBBBBB", width, rows, 8, 0, 0, 0, interlaced)
    # Each row begins with its filter. Five of the seven passes of an interlaced PNG have a pixel in two columns.
    passes = [(0, 8, 2), (4, 8, 2), (2, 4, 2), (0, 2, 2), (1, 2, 3)] if interlaced else [(0, 1, 2)]
    pixels = zlib.compress(bytes(sum(-(-(rows - first) // step) * size for first, step, size in passes)), 9)
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def striped_tiff(width: int, strips: int, strip: bytes, compression: int = 8, rows: int = 1) -> bytes:
    """Returns a grey TIFF whose strips are all the same bytes.

    Args:
        width: in pixels.
        strips: number of strips.
        strip: one encoded strip.
        compression: TIFF's number: 8 is zlib, 7 is JPEG.
        rows: number of rows of a strip.
    """
    places, sizes, begin = 8, 8 + 4 * strips, 8 + 8 * strips
    entries = [(256, width), (257, strips * rows), (258, 8), (259, compression), (262, 1), (277, 1), (278, rows)]
    values = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries]
    where = (begin, len(strip)) if strips == 1 else (places, sizes)
    values.insert(5, struct.pack("<HHII", 273, 4, strips, where[0]))
    values.append(struct.pack("<HHII", 279, 4, strips, where[1]))
    directory = struct.pack("<H", len(values)) + b"".join(values) + bytes(4)
    lists = struct.pack("<I", begin) * strips + struct.pack("<I", len(strip)) * strips
    return b"II*\0" + struct.pack("<I", begin + len(strip)) + lists + strip + directory


def run_length_bmp(width: int, height: int, runs: bytes) -> bytes:
    """Returns a BMP of 256 colours whose pixels are these run lengths (RLE8)."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    offset = 14 + 40 + 1024
    return b"BM" + struct.pack("<IHHI", offset + len(runs), 0, 0, offset) + head + bytes(1024) + runs


def commented_gif(blocks: int) -> bytes:
    """Returns a GIF of one pixel after a comment of `blocks` blocks of one byte."""
    comment = b"!\xfe" + b"\x01x" * blocks + b"\0"
    pixel = b",\0\0\0\0\x01\0\x01\0\0" + b"\x02\x02\x44\x01\0"
    return b"GIF89a\x01\0\x01\0\x80\0\0" + bytes(6) + comment + pixel + b";"


def layered_heif(kind: bytes, parts: int, width: int, height: int, layers: int = 1) -> bytes:
    """Returns the boxes of a HEIF file whose primary picture is composed of one picture, referred to many times.

    Args:
        kind: type of the composition: `grid` or `iovl`.
        parts: number of references of each composition.
        width: width of each picture, in pixels.
        height: height of each picture, in pixels.
        layers: depth of nested compositions.
    """
    last = layers + 1
    entries = [
        _box(b"infe", bytes([2, 0, 0, 0]) + struct.pack(">HH", n, 0) + (kind if n < last else b"hvc1"))
        for n in range(1, last + 1)
    ]
    references = [
        _box(b"dimg", struct.pack(">HH", n, parts) + struct.pack(">H", n + 1) * parts) for n in range(1, last)
    ]
    size = _box(b"ispe", struct.pack(">III", 0, width, height))
    associations = struct.pack(">II", 0, last) + b"".join(struct.pack(">HBB", n, 1, 1) for n in range(1, last + 1))
    meta = b"".join(
        [
            bytes(4),
            _box(b"pitm", bytes(4) + b"\0\1"),
            _box(b"iinf", bytes(4) + struct.pack(">H", last) + b"".join(entries)),
            _box(b"iref", bytes(4) + b"".join(references)),
            _box(b"iprp", _box(b"ipco", size) + _box(b"ipma", associations)),
        ]
    )
    return _box(b"ftyp", b"heic\0\0\0\0heicmif1") + _box(b"meta", meta)


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + kind + content
