"""Damage that costs no pixel, cut out of the file: for those who want what every viewer shows.

Some JPEGs have stray bytes between the coded pixels and the next marker (a few of the well-known cats and dogs do).
Decoders skip them with a warning, which strict decoding takes for damage, as it can't tell what else is wrong. Cut out,
without touching anything else, they leave a file that passes strict decoding everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from library.errors import BadPicture
from library.imaging.codec.decoding import DEFAULT_LIMITS, probe
from library.imaging.codec.formats import sniff

_STRAY = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
_READ_AHEAD = 8
_MOST_PLACES = 8  # of stray bytes in one file
_MOST_DECODINGS = 500


def repair(data: bytes) -> bytes | None:
    """The file without stray bytes, or None where they are not all that is wrong.

    The result decodes strictly, so every pixel comes from the file's own data, and to the same pixels that a lenient
    decoder makes of `data`. Stray bytes of one value that go on from the pixels' data are refused: lost data is filled
    up like that. The caller has checked the limits with `probe`.
    """
    if sniff(data) != "jpeg":
        return None
    try:
        return _repaired(data, _Complaints(DEFAULT_LIMITS.max_work_px // max(probe(data).work_px, 1)))
    except (BadPicture, _TooMuchWork):
        return None


def _repaired(data: bytes, complaints: _Complaints) -> bytes | None:
    mended = data
    for _ in range(_MOST_PLACES):
        complaint = complaints.of(mended)
        if complaint is None:
            break
        for candidate in _candidates(mended, complaint, complaints):
            again = complaints.of(candidate)
            # A cut in a wrong place leaves the stray bytes where they were, or does damage.
            if again is None or (again != complaint and _STRAY.search(again)):
                mended = candidate
                break
        else:
            return None
    if mended is data or complaints.of(mended) is not None:
        return None
    return mended if np.array_equal(_decoded(mended, strict=True), _decoded(data, strict=False)) else None


def _decoded(data: bytes, *, strict: bool) -> NDArray[Any]:
    colours = simplejpeg.decode_jpeg_header(data)[2]
    wanted = {"Gray": "GRAY", "CMYK": "CMYK", "YCCK": "CMYK"}.get(colours, "RGB")
    return simplejpeg.decode_jpeg(data, wanted, strict=strict)


class _TooMuchWork(Exception):
    """All strict decodings together would cost more than one picture may."""


class _Complaints:
    """What strict decoding says; so many times at most."""

    def __init__(self, most: int) -> None:
        self._left = min(most, _MOST_DECODINGS)

    def of(self, data: bytes) -> str | None:
        """The complaint, or None."""
        if self._left < 1:
            raise _TooMuchWork
        self._left -= 1
        try:
            _decoded(data, strict=True)
        except ValueError as error:
            return str(error)
        return None


def _candidates(data: bytes, complaint: str, complaints: _Complaints) -> Iterator[bytes]:
    """The file without the bytes that libjpeg complains of, for each place where they may be."""
    found = _STRAY.search(complaint)
    if found is None:
        return
    count, marker = int(found[1]), bytes([0xFF, int(found[2], 16)])
    at = data.find(b"\xff\xda")  # the first scan
    while at >= 0 and (at := data.find(marker, at + 1)) >= 0:
        end = at
        while data[end - 1] == 0xFF:  # padding before a marker is not counted
            end -= 1
        start = end - count
        if start > 2 and complaints.of(data[:start] + data[at:]) is None:
            # The decoder had read on a little before it looked for the marker.
            while start > end - count - _READ_AHEAD and complaints.of(data[: start - 1] + data[at:]) is None:
                start -= 1
            if set(data[start:end]) == {data[start - 1]}:
                return
        if start > 2:
            yield data[:start] + data[at:]
