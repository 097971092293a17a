"""The boxes of AVIF, HEIC and JPEG 2000 files, and the cost of decoding AVIF and HEIC.

The cost counts every coded picture and frame that the primary picture is composed of: a few kilobytes may use one large
tile thousands of times, overlay a picture on itself, or hold frames that are not shown. Boxes are defined in ISO/IEC
14496-12 (ISOBMFF) and 23008-12 (HEIF), the units of the coded data in AV1, 5.3, and ITU-T H.265, 7.3.1.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from library.errors import BadPicture

#: See `Header.px_ns`.
PX_NS = 35.0
#: Work per coded pixel. A picture with alpha thus counts six times its pixels; the limit is eight times.
_CODED_PX = 3
#: The least work of a file: its coded data may declare a larger size than its boxes, and only the decoder sees that.
_MIN_PX = 8 * 2**20
_ITEM_PX = 10_000
_MAX_BOXES, _MAX_UNITS = 50_000, 20_000
_MAX_BRANDS = 64
_MAX_OVERLAP, _MIN_READ_BYTES = 2, 2**24
_MAX_PX = 2**60


def heif_work_px(data: bytes) -> int:
    """`Header.work_px` of an AVIF or HEIC file.

    Raises:
        BadPicture: `too_much_work` if it has too many boxes, or its pictures share too much data.
    """
    items = _Items()
    for kind, start, end in boxes(data, 0, len(data)):
        if kind == b"meta":
            _read_meta(items, data, start + 4, end)
        elif kind == b"moov":
            _read_track(items, data, start, end)
    counted: dict[int, int] = {}
    primary = items.work_px(items.primary, data, counted)
    return max(primary + sum(items.work_px(item, data, counted) for item in items.auxiliary), _MIN_PX)


@dataclass
class _Items:
    """The image items of a file; each has a number.

    Attributes:
        primary: the item that is shown.
        auxiliary: items with alpha and other planes.
        kinds: for each item `av01`, `hvc1`, or how it is composed of other items.
        parts: for each item those it is composed of, repeated as often as they are used.
        sizes: for each item its area in pixels.
        extents: for each item the (first byte, length) of the pieces of its data.
        first_frame: the boxes that locate the first frame of the track that is read.
    """

    primary: int = 0
    auxiliary: list[int] = field(default_factory=list[int])
    kinds: dict[int, bytes] = field(default_factory=dict[int, bytes])
    parts: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    sizes: dict[int, int] = field(default_factory=dict[int, int])
    extents: dict[int, list[tuple[int, int]]] = field(default_factory=dict[int, list[tuple[int, int]]])
    first_frame: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    # The remaining budget, shared by all items because they may all refer to the same data.
    _units: Iterator[int] = field(default_factory=lambda: iter(range(_MAX_UNITS)))
    _bytes_read: int = 0

    def work_px(self, item: int, data: bytes, counted: dict[int, int]) -> int:
        """The work of one item and all that it is composed of; `counted` caches the work of each item."""
        if item not in counted:
            counted[item] = 0  # ends the recursion for an item that contains itself, which every decoder refuses
            total = _ITEM_PX + _CODED_PX * self.sizes.get(item, 0) * max(self._num_frames(item, data), 1)
            for part, times in Counter(self.parts.get(item, ())).items():
                total += times * self.work_px(part, data, counted)
            counted[item] = min(total, _MAX_PX)
        return counted[item]

    def _num_frames(self, item: int, data: bytes) -> int:
        kind = self.kinds.get(item)
        if kind not in (b"av01", b"hvc1"):
            return 1
        extents = self.extents.get(item, ())
        self._bytes_read += sum(min(length, len(data)) for _, length in extents)
        if self._bytes_read > max(_MAX_OVERLAP * len(data), _MIN_READ_BYTES):
            raise BadPicture("too_much_work", "the parts of the picture share most of their bytes")
        coded = b"".join(data[start : start + length] for start, length in extents)
        return av1_frames(coded, self._units) if kind == b"av01" else _hevc_pictures(coded, self._units)


# -- boxes ------------------------------------------------------------------------------------------------------------


def brands(data: bytes) -> list[bytes]:
    """The brands of a file made of boxes (MP4, HEIF and relatives), the major one first; empty for other files."""
    if data[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(data[:4], "big"), 16 + 4 * _MAX_BRANDS)
    return [data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))]


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields the boxes of one level in `data[start:end]`.

    Yields:
        Kind, first byte and end of the content of each box; a box that claims to end after `end` is cut there.

    Raises:
        BadPicture: `too_much_work` if there are more than 50,000.
    """
    for _ in range(_MAX_BOXES):
        if start + 8 > end:
            return
        size, kind, content = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8], start + 8
        if size == 1:
            size, content = int.from_bytes(data[start + 8 : start + 16], "big"), start + 16
        stop = end if size == 0 else max(start + size, content)
        yield kind, content, min(stop, end)
        start = stop
    raise BadPicture("too_much_work", f"the file has more than {_MAX_BOXES:,} boxes on one level")


def _read_meta(items: _Items, data: bytes, start: int, end: int) -> None:
    inner = list(boxes(data, start, end))
    idat_start = next((at for kind, at, _ in inner if kind == b"idat"), 0)
    for kind, at, stop in inner:
        if kind == b"pitm":
            items.primary = int.from_bytes(data[at + 4 : at + (8 if data[at] else 6)], "big")
        elif kind == b"iinf":
            for _, entry, _ in boxes(data, at + (8 if data[at] else 6), stop):
                wide = data[entry] > 2
                number = int.from_bytes(data[entry + 4 : entry + (8 if wide else 6)], "big")
                items.kinds[number] = data[entry + (10 if wide else 8) : entry + (14 if wide else 12)]
        elif kind == b"iref":
            _read_references(items, data, at, stop)
        elif kind == b"iloc":
            _read_extents(items, data[at:stop], idat_start)
        elif kind == b"iprp":
            _read_sizes(items, data, at, stop)


def _read_track(items: _Items, data: bytes, start: int, end: int) -> None:
    """Adds the first frame of a sequence, the one that is decoded, as an auxiliary item."""
    item = -1 - len(items.auxiliary)
    for kind, at, stop in boxes(data, start, end):
        if kind in (b"trak", b"mdia", b"minf", b"stbl"):
            _read_track(items, data, at, stop)
        elif kind == b"stsd":
            for coding, entry, _ in boxes(data, at + 8, stop):
                items.kinds[item] = coding
                items.sizes[item] = math.prod(struct.unpack_from(">HH", data, entry + 24))
                items.auxiliary.append(item)
        elif kind in (b"stsz", b"stco", b"co64"):
            items.first_frame[kind] = data[at + 4 : at + 16]
    if {b"stsz"} < items.first_frame.keys():
        size, _, first_size = struct.unpack(">III", items.first_frame.pop(b"stsz"))
        (kind, content) = items.first_frame.popitem()
        offset = int.from_bytes(content[4 : 12 if kind == b"co64" else 8], "big")
        items.extents.setdefault(items.auxiliary[-1] if items.auxiliary else item, []).append(
            (offset, size or first_size)
        )


def _read_sizes(items: _Items, data: bytes, start: int, end: int) -> None:
    areas: list[int] = []
    associations: list[tuple[int, int]] = []
    for kind, first, last in boxes(data, start, end):
        if kind == b"ipco":
            areas = [_area(data, *box) for box in boxes(data, first, last)]
        elif kind == b"ipma":
            associations += _associations(data[first:last])
    for item, number in associations:
        if 0 < number <= len(areas) and areas[number - 1]:
            items.sizes[item] = max(items.sizes.get(item, 0), areas[number - 1])


def _area(data: bytes, kind: bytes, start: int, end: int) -> int:
    if kind != b"ispe" or end - start < 12:
        return 0
    width, height = struct.unpack_from(">II", data, start + 4)
    return width * height


def _associations(content: bytes) -> Iterator[tuple[int, int]]:
    """Yields pairs of an item and the number of one of its properties, counted from 1."""
    wide_items, wide_properties = content[0] > 0, content[3] & 1
    (count,) = struct.unpack_from(">I", content, 4)
    at = 8
    for _ in range(min(count, len(content))):
        item = int.from_bytes(content[at : at + (4 if wide_items else 2)], "big")
        at += 4 if wide_items else 2
        number = content[at]
        at += 1
        for _ in range(number):
            value = int.from_bytes(content[at : at + (2 if wide_properties else 1)], "big")
            at += 2 if wide_properties else 1
            yield item, value & (0x7FFF if wide_properties else 0x7F)


def _read_references(items: _Items, data: bytes, start: int, end: int) -> None:
    size = 4 if data[start] else 2
    for kind, at, stop in boxes(data, start + 4, end):
        source = int.from_bytes(data[at : at + size], "big")
        count = int.from_bytes(data[at + size : at + size + 2], "big")
        first = at + size + 2
        targets = [
            int.from_bytes(data[to : to + size], "big") for to in range(first, min(first + count * size, stop), size)
        ]
        if kind == b"dimg":
            items.parts.setdefault(source, []).extend(targets)
        elif kind == b"auxl":
            items.auxiliary.append(source)


def _read_extents(items: _Items, content: bytes, idat_start: int) -> None:
    version, sizes = content[0], content[4:6]
    offset_size, length_size, base_size = sizes[0] >> 4, sizes[0] & 15, sizes[1] >> 4
    index_size = sizes[1] & 15 if version else 0
    number_size = 4 if version > 1 else 2
    at = 6

    def number(size: int) -> int:
        nonlocal at
        at += size
        return int.from_bytes(content[at - size : at], "big")

    for _ in range(number(number_size)):
        if at >= len(content):
            return
        item = number(number_size)
        in_boxes = version > 0 and number(2) & 15 == 1
        number(2)
        base = number(base_size) + (idat_start if in_boxes else 0)
        for _ in range(number(2)):
            if at >= len(content):
                return
            number(index_size)
            offset, length = number(offset_size), number(length_size)
            items.extents.setdefault(item, []).append((base + offset, length))


# -- coded data -------------------------------------------------------------------------------------------------------


def av1_frames(coded: bytes, units: Iterator[int]) -> int:
    """The number of frames, shown or not: units (OBUs) of the types frame header and frame.

    `units` yields once for each unit that may still be read; after that the result is a number above every limit.
    """
    at, frames = 0, 0
    for _ in units:
        if at >= len(coded):
            return frames
        head = coded[at]
        at += 2 if head & 4 else 1
        frames += head >> 3 & 15 in (3, 6)
        if not head & 2:  # without a size it extends to the end
            return frames
        size = shift = 0
        while at < len(coded) and shift < 56:
            size |= (coded[at] & 127) << shift
            shift += 7
            at += 1
            if coded[at - 1] < 128:
                break
        at += size
    return _MAX_PX


def _hevc_pictures(coded: bytes, units: Iterator[int]) -> int:
    """The number of pictures: slices that are the first of one. Encoders write each unit's length in four bytes."""
    at, pictures = 0, 0
    for _ in units:
        if at + 7 > len(coded):
            return pictures
        pictures += coded[at + 4] >> 1 & 63 < 32 and coded[at + 6] >> 7
        at += 4 + int.from_bytes(coded[at : at + 4], "big")
    return _MAX_PX
