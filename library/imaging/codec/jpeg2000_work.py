"""How much work JPEG 2000 data is: its samples, and its packets, of which a few bytes may hold a great many.

Marker segments as in ITU-T T.800 (ISO/IEC 15444-1), annex A.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

from library.errors import BadPicture

#: As `Header.px_ns`. Noise of which nothing is left out takes so long, and photos an eighth.
PX_NS = 400.0
_PACKET_PX = 20  # that is empty
_TILE_PX = 500
_MOST_SEGMENTS = 200_000
_SIZ, _COD, _COC, _SOT, _SOD = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93
_LARGEST_PRECINCT = 15


def jpeg2000_work_px(data: bytes) -> int:
    """`Header.work_px` of a codestream, or of a file that has one; 0 without one.

    Raises:
        BadPicture: `too_much_work` where it has more segments than are looked at.
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
            # It says nothing of layers, which may be as many as there can be.
            packets = max(packets, 2 * _packets(size, segment[at + 1], sizes))
    return work_px + tiles * (_TILE_PX + samples * packets * _PACKET_PX)


def _segments(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Markers with their segments, of the main header and of those of all tile-parts, whose data is passed over."""
    following = len(data)
    for _ in range(_MOST_SEGMENTS):
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
    raise BadPicture("too_much_work", f"the JPEG 2000 data has more than {_MOST_SEGMENTS:,} segments")


def _packets(size: tuple[int, int], levels: int, precincts: bytes) -> int:
    """Packets of one component of a tile in one layer: one for each precinct of each resolution."""
    total = 0
    for resolution in range(min(levels, 32) + 1):
        sizes = precincts[resolution] if resolution < len(precincts) else _LARGEST_PRECINCT * 17
        scale = min(levels, 32) - resolution
        total += math.prod(
            -(-side // 2 ** (scale + bits)) + 1 for side, bits in zip(size, (sizes & 15, sizes >> 4), strict=True)
        )
    return total
