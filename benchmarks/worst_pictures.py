"""Pictures that cost as much as their size lets them: what attackers send, made in code without an encoder."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

#: One scan of a progressive JPEG: its components, first and last coefficient, and the bits before and after it.
Scan = tuple[Sequence[int], int, int, int, int]

_LONGEST_RUN = 2**15 - 1  # of empty blocks, in one symbol


def progressive_jpeg(width: int, height: int, scans: Iterable[Scan], components: int = 1) -> bytes:
    """A flat picture in these scans, none of them with more than a few bytes but those of the first coefficient.

    Args:
        width: in pixels.
        height: in pixels.
        scans: first to last.
        components: 1 is grey, 3 are YCbCr without subsampling.
    """
    frame = struct.pack(">BHHB", 8, height, width, components)
    frame += b"".join(bytes([number, 0x11, 0]) for number in range(1, components + 1))
    blocks = -(-width // 8) * -(-height // 8)
    parts = [b"\xff\xd8", _segment(0xDB, b"\0" + b"\x01" * 64), _segment(0xC2, frame), _TABLES]
    for numbers, first, last, high, low in scans:
        head = bytes([len(numbers)]) + b"".join(bytes([number, 0]) for number in numbers)
        parts.append(_segment(0xDA, head + bytes([first, last, high << 4 | low])))
        # A bit of 0 for each block; or runs of empty blocks, each a bit of 0 and 14 of 1.
        zeros = -(-blocks * len(numbers) // 8)
        parts.append(bytes(zeros) if first == 0 else _packed("0" + "1" * 14, -(-blocks // _LONGEST_RUN)))
    return b"".join([*parts, b"\xff\xd9"])


def many_scans(number: int, refining: bool = False) -> list[Scan]:
    """The first coefficients, then as many scans more: the rest again and again, or (dearer) bit by bit."""
    again: list[Scan] = [((1,), 1, 63, 0, 13), *(((1,), 1, 63, low + 1, low) for low in range(12, -1, -1))]
    return [((1,), 0, 0, 0, 0), *([again[scan % 14 if refining else 0] for scan in range(number)])]


def _segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def _packed(bits: str, times: int) -> bytes:
    text = bits * times
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")


#: Huffman tables of one symbol each, a bit of 0: no difference, and the longest run of empty blocks.
_TABLES = _segment(0xC4, b"\x00\x01" + bytes(15) + b"\x00") + _segment(0xC4, b"\x10\x01" + bytes(15) + b"\xe0")
