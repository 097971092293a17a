"""Repairs JPEGs with stray bytes, a kind of damage that costs no pixel.

Some JPEGs (a few of the well-known cats and dogs, for example) have stray bytes between the coded pixels and the next
marker. Viewers skip them; strict decoding refuses them because it cannot tell what else is wrong. Without these bytes,
and otherwise unchanged, the file decodes strictly everywhere.
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
_READ_AHEAD_BYTES = 8
_MAX_CUTS = 8  # places with stray bytes in one file
_MAX_DECODINGS = 500


def repair(data: bytes) -> bytes | None:
    """Returns the file without its stray bytes; None if it has none, or has other damage.

    The result decodes strictly, so every pixel comes from the file's own data, and to the same pixels that a lenient
    decoder makes of `data`. Stray bytes that only repeat the byte before them are refused, because lost data is often
    filled in that way. The caller must have checked the limits with `probe`.
    """
    if sniff(data) != "jpeg":
        return None
    try:
        return _repaired(data, _StrictDecoder(DEFAULT_LIMITS.max_work_px // max(probe(data).work_px, 1)))
    except (BadPicture, _TooMuchWork):
        return None


def _repaired(data: bytes, decoder: _StrictDecoder) -> bytes | None:
    repaired = data
    for _ in range(_MAX_CUTS):
        error = decoder.error(repaired)
        if error is None:
            break
        for candidate in _candidates(repaired, error, decoder):
            next_error = decoder.error(candidate)
            # A cut in a wrong place leaves the stray bytes where they were, or does damage.
            if next_error is None or (next_error != error and _STRAY.search(next_error)):
                repaired = candidate
                break
        else:
            return None
    if repaired is data or decoder.error(repaired) is not None:
        return None
    return repaired if np.array_equal(_decoded(repaired, strict=True), _decoded(data, strict=False)) else None


def _decoded(data: bytes, *, strict: bool) -> NDArray[Any]:
    colours = simplejpeg.decode_jpeg_header(data)[2]
    colourspace = {"Gray": "GRAY", "CMYK": "CMYK", "YCCK": "CMYK"}.get(colours, "RGB")
    return simplejpeg.decode_jpeg(data, colourspace, strict=strict)


class _TooMuchWork(Exception):
    """The strict decodings together would cost more than decoding one picture may."""


class _StrictDecoder:
    """Decodes strictly, a limited number of times."""

    def __init__(self, max_decodings: int) -> None:
        self._left = min(max_decodings, _MAX_DECODINGS)

    def error(self, data: bytes) -> str | None:
        """The decoder's error message, or None if it has none."""
        if self._left < 1:
            raise _TooMuchWork
        self._left -= 1
        try:
            _decoded(data, strict=True)
        except ValueError as error:
            return str(error)
        return None


def _candidates(data: bytes, error: str, decoder: _StrictDecoder) -> Iterator[bytes]:
    """Yields the file without the stray bytes that libjpeg reports, once for each place where they may be."""
    match = _STRAY.search(error)
    if match is None:
        return
    count, marker = int(match[1]), bytes([0xFF, int(match[2], 16)])
    at = data.find(b"\xff\xda")  # the first scan
    while at >= 0 and (at := data.find(marker, at + 1)) >= 0:
        end = at
        while data[end - 1] == 0xFF:  # padding before a marker is not counted
            end -= 1
        start = end - count
        if start > 2 and decoder.error(data[:start] + data[at:]) is None:
            # The decoder may have read ahead before it looked for the marker: the stray bytes may begin earlier.
            while start > end - count - _READ_AHEAD_BYTES and decoder.error(data[: start - 1] + data[at:]) is None:
                start -= 1
            if set(data[start:end]) == {data[start - 1]}:
                return
        if start > 2:
            yield data[:start] + data[at:]
