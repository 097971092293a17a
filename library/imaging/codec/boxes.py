"""How much work AVIF and HEIC are: every coded picture that the primary one is put together from, and its frames.

A few kilobytes may name one large tile thousands of times, lay a picture over itself, or hold frames that are not
shown. Boxes as in ISO/IEC 14496-12 (ISOBMFF) and 23008-12 (HEIF); units of the coded data as in AV1, 5.3, and in ITU-T
H.265, 7.3.1.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from library.errors import BadPicture

#: As `Header.px_ns`.
PX_NS = 35.0
#: Of each pixel that is coded. A picture with alpha counts six times its pixels; what counts eight times is refused.
_CODED_PX = 3
#: What is counted at least: the coded data may claim another size than its container, which only the decoder sees.
_LEAST_PX = 8 * 2**20
_ITEM_PX = 10_000
_MOST_BOXES, _MOST_UNITS = 50_000, 20_000
_MOST_BRANDS = 64
_MOST_OVERLAP, _LEAST_READ_BYTES = 2, 2**24
_MOST_PX = 2**60


def heif_work_px(data: bytes) -> int:
    """`Header.work_px` of an AVIF or HEIC file.

    Raises:
        BadPicture: `too_much_work` where it has more boxes, or names more data, than is looked at.
    """
    items = _Items()
    for kind, start, end in boxes(data, 0, len(data)):
        if kind == b"meta":
            _read_meta(items, data, start + 4, end)
        elif kind == b"moov":
            _read_track(items, data, start, end)
    known: dict[int, int] = {}
    primary = items.work_px(items.primary, data, known)
    return max(primary + sum(items.work_px(item, data, known) for item in items.beside), _LEAST_PX)


@dataclass
class _Items:
    """The pictures of a file.

    Attributes:
        primary: number of the one that is shown.
        beside: alpha and other planes.
        kinds: by number: `av01`, `hvc1`, or how it is put together of others.
        parts: by number: those that it is put together of, as often as they are named.
        sizes: by number: its area in pixels.
        places: by number: first byte and length of its data, in pieces.
        first_frame: of the track that is read, where its first frame is, by box.
    """

    primary: int = 0
    beside: list[int] = field(default_factory=list[int])
    kinds: dict[int, bytes] = field(default_factory=dict[int, bytes])
    parts: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    sizes: dict[int, int] = field(default_factory=dict[int, int])
    places: dict[int, list[tuple[int, int]]] = field(default_factory=dict[int, list[tuple[int, int]]])
    first_frame: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    # What may still be looked at, of all items together: they may all name the same data.
    _units: Iterator[int] = field(default_factory=lambda: iter(range(_MOST_UNITS)))
    _bytes_read: int = 0

    def work_px(self, item: int, data: bytes, known: dict[int, int]) -> int:
        """Of one picture with all that it is put together of; `known` has those counted so far."""
        if item not in known:
            known[item] = 0  # one that names itself is refused by every decoder
            total = _ITEM_PX + _CODED_PX * self.sizes.get(item, 0) * max(self._frames(item, data), 1)
            for part, times in Counter(self.parts.get(item, ())).items():
                total += times * self.work_px(part, data, known)
            known[item] = min(total, _MOST_PX)
        return known[item]

    def _frames(self, item: int, data: bytes) -> int:
        kind = self.kinds.get(item)
        if kind not in (b"av01", b"hvc1"):
            return 1
        places = self.places.get(item, ())
        self._bytes_read += sum(min(length, len(data)) for _, length in places)
        if self._bytes_read > max(_MOST_OVERLAP * len(data), _LEAST_READ_BYTES):
            raise BadPicture("too_much_work", "the parts of the picture share most of their bytes")
        coded = b"".join(data[start : start + length] for start, length in places)
        return av1_frames(coded, self._units) if kind == b"av01" else _hevc_pictures(coded, self._units)


# -- boxes ------------------------------------------------------------------------------------------------------------


def brands(data: bytes) -> list[bytes]:
    """The brands of a file in boxes (MP4, HEIF and their relatives), the major one first; none of other files."""
    if data[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(data[:4], "big"), 16 + 4 * _MOST_BRANDS)
    return [data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))]


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields the boxes that stand beside each other in `data[start:end]`; JPEG 2000 files consist of them too.

    Yields:
        Kind, first byte and end of the content of each box; a box that claims to reach past `end` is cut there.

    Raises:
        BadPicture: `too_much_work` where there are more boxes than are looked at.
    """
    for _ in range(_MOST_BOXES):
        if start + 8 > end:
            return
        size, kind, content = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8], start + 8
        if size == 1:
            size, content = int.from_bytes(data[start + 8 : start + 16], "big"), start + 16
        stop = end if size == 0 else max(start + size, content)
        yield kind, content, min(stop, end)
        start = stop
    raise BadPicture("too_much_work", f"the file has more than {_MOST_BOXES:,} boxes beside each other")


def _read_meta(items: _Items, data: bytes, start: int, end: int) -> None:
    inner = list(boxes(data, start, end))
    own_data = next((at for kind, at, _ in inner if kind == b"idat"), 0)
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
            _read_places(items, data[at:stop], own_data)
        elif kind == b"iprp":
            _read_sizes(items, data, at, stop)


def _read_track(items: _Items, data: bytes, start: int, end: int) -> None:
    """The first frame of a sequence, which is the one that is decoded, as one more picture."""
    item = -1 - len(items.beside)
    for kind, at, stop in boxes(data, start, end):
        if kind in (b"trak", b"mdia", b"minf", b"stbl"):
            _read_track(items, data, at, stop)
        elif kind == b"stsd":
            for coding, entry, _ in boxes(data, at + 8, stop):
                items.kinds[item] = coding
                items.sizes[item] = math.prod(struct.unpack_from(">HH", data, entry + 24))
                items.beside.append(item)
        elif kind in (b"stsz", b"stco", b"co64"):
            items.first_frame[kind] = data[at + 4 : at + 16]
    if {b"stsz"} < items.first_frame.keys():
        size, _, first_size = struct.unpack(">III", items.first_frame.pop(b"stsz"))
        (kind, content) = items.first_frame.popitem()
        offset = int.from_bytes(content[4 : 12 if kind == b"co64" else 8], "big")
        items.places.setdefault(items.beside[-1] if items.beside else item, []).append((offset, size or first_size))


def _read_sizes(items: _Items, data: bytes, start: int, end: int) -> None:
    areas: list[int] = []
    named: list[tuple[int, int]] = []
    for kind, first, last in boxes(data, start, end):
        if kind == b"ipco":
            areas = [_area(data, *box) for box in boxes(data, first, last)]
        elif kind == b"ipma":
            named += _associations(data[first:last])
    for item, number in named:
        if 0 < number <= len(areas) and areas[number - 1]:
            items.sizes[item] = max(items.sizes.get(item, 0), areas[number - 1])


def _area(data: bytes, kind: bytes, start: int, end: int) -> int:
    if kind != b"ispe" or end - start < 12:
        return 0
    width, height = struct.unpack_from(">II", data, start + 4)
    return width * height


def _associations(content: bytes) -> Iterator[tuple[int, int]]:
    """Item and property, numbered from 1."""
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
            items.beside.append(source)


def _read_places(items: _Items, content: bytes, own_data: int) -> None:
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
        base = number(base_size) + (own_data if in_boxes else 0)
        for _ in range(number(2)):
            if at >= len(content):
                return
            number(index_size)
            offset, length = number(offset_size), number(length_size)
            items.places.setdefault(item, []).append((base + offset, length))


# -- coded data -------------------------------------------------------------------------------------------------------


def av1_frames(coded: bytes, units: Iterator[int]) -> int:
    """Frames, shown or not: units of the types frame header and frame; `units` ends where no more are looked at."""
    at, frames = 0, 0
    for _ in units:
        if at >= len(coded):
            return frames
        head = coded[at]
        at += 2 if head & 4 else 1
        frames += head >> 3 & 15 in (3, 6)
        if not head & 2:  # it goes on to the end
            return frames
        size = shift = 0
        while at < len(coded) and shift < 56:
            size |= (coded[at] & 127) << shift
            shift += 7
            at += 1
            if coded[at - 1] < 128:
                break
        at += size
    return _MOST_PX


def _hevc_pictures(coded: bytes, units: Iterator[int]) -> int:
    """Pictures: slices that are the first of one. Units are led by their lengths, in four bytes as encoders write."""
    at, pictures = 0, 0
    for _ in units:
        if at + 7 > len(coded):
            return pictures
        pictures += coded[at + 4] >> 1 & 63 < 32 and coded[at + 6] >> 7
        at += 4 + int.from_bytes(coded[at : at + 4], "big")
    return _MOST_PX
