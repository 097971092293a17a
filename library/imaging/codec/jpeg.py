"""Reads JPEG with simplejpeg, the fastest decoder and a strict one."""

from __future__ import annotations

import io
import math
import re
import struct
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import JpegImagePlugin

from library.errors import BadPicture
from library.imaging.codec.header import Header, exif_orientation, header_of, upright


def jpeg_header(data: bytes) -> Header:
    orientation, work_px = _read_markers(data)
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    channels = 1 if colours == "Gray" else 3
    return header_of(
        "jpeg",
        int(width),
        int(height),
        channels,
        orientation=orientation,
        colours=colours,
        work_px=work_px,
        px_ns=_PX_NS,
    )


def jpeg_pixels(data: bytes, header: Header) -> NDArray[Any]:
    if header.colours in ("CMYK", "YCCK"):
        simplejpeg.decode_jpeg(data, "CMYK")  # only to detect damage: Pillow handles Adobe's inverted inks
        pixels = np.asarray(JpegImagePlugin.JpegImageFile(io.BytesIO(data)).convert("RGB"))
    else:
        pixels = simplejpeg.decode_jpeg(data, "GRAY" if header.colours == "Gray" else "RGB")
    return upright(pixels, header.orientation)


# -- markers ----------------------------------------------------------------------------------------------------------
#
# The cost of decoding, in units of 7 ns, the cost of a plain pixel. Measured on one core with 8,000 x 8,000 pixels: a
# scan of runs of empty blocks takes 7 ns a block, one that refines all 63 coefficients 41 ns; entropy-coded data takes
# 7 ns a byte in a sequential file and 27 ns in a progressive one. Progressive photos have 10 to 20 scans; only this
# cost limits their number.

_PX_NS = 7.0
_SCAN_PX = 1000
_BLOCK_PX = 2
_COEFFICIENTS_PER_PX = 8
_BYTE_PX, _PROGRESSIVE_BYTE_PX = 1, 3
_ARITHMETIC_FACTOR = 3
_MAX_SEGMENTS = 20_000

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SOI, _EOI, _SOS, _APP1, _TEM = 0xD8, 0xD9, 0xDA, 0xE1, 0x01
_UNSUPPORTED_FRAMES = {
    **dict.fromkeys((0xC3, 0xC7, 0xCB, 0xCF), "lossless JPEG"),
    **dict.fromkeys((0xC5, 0xC6, 0xCD, 0xCE), "hierarchical JPEG"),
    0xF7: "JPEG-LS file",
}
_FRAMES = {0xF7, *range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = (0xC0, 0xC1, 0xC3, 0xC9)
_SKIPPED_MARKERS = frozenset(bytes([0xFF, marker]) for marker in (0xC4, 0xDB, 0xDD, 0xE0, *range(0xE2, 0xF0), 0xFE))


def jpeg_work_px(data: bytes) -> int:
    """`Header.work_px` of JPEG data, which may be embedded in a file of another format."""
    return _read_markers(data)[1]


def _read_markers(data: bytes) -> tuple[int, int]:
    """Returns the orientation and `Header.work_px`.

    A sequential file whose first scan has all components has no second scan, so reading stops there. In other files
    all scans are counted, to the end of the picture. Thumbnails are inside segments, which are skipped, or come after.
    """
    orientation, frame, byte_px, work_px, at = None, b"", 0, 0, 2
    for _ in range(_MAX_SEGMENTS):
        if data[at : at + 2] in _SKIPPED_MARKERS:
            at += 2 + max(int.from_bytes(data[at + 2 : at + 4], "big"), 2)
            continue
        match = _MARKER.search(data, at)
        start = match.end() if match else len(data)
        work_px += (start - at) * byte_px
        marker = data[start - 1] if match else _EOI
        if marker == _EOI:
            return orientation or 1, work_px
        at = start + max(int.from_bytes(data[start : start + 2], "big"), 2)
        if marker in (_SOI, _TEM):
            at = start
        elif marker == _APP1 and orientation is None and data[start + 2 : start + 8] == b"Exif\0\0":
            orientation = exif_orientation(data[start + 2 : at])
        elif marker in _FRAMES and not frame:
            frame = bytes([marker]) + data[start + 2 : at]
            _check_frame(frame)
        elif marker == _SOS and frame:
            scan = data[start + 2 : at].ljust(4, b"\0")
            if not byte_px:
                work_px = _plain_px(frame)
                if frame[0] in _SEQUENTIAL and scan[0] == frame[6]:
                    return orientation or 1, work_px + min((len(data) - at) * _BYTE_PX, 12 * work_px)
                byte_px = _BYTE_PX if frame[0] in _SEQUENTIAL else _PROGRESSIVE_BYTE_PX
            work_px += _scan_px(frame, scan)
    raise BadPicture("too_much_work", f"the JPEG has more than {_MAX_SEGMENTS:,} scans and other segments")


def _check_frame(frame: bytes) -> None:
    """Refuses the kinds of JPEG that simplejpeg cannot read (ITU-T T.81, table B.1), by name."""
    kind = _UNSUPPORTED_FRAMES.get(frame[0], "12-bit JPEG" if frame[1:2] == b"\x0c" else None)
    if kind is not None:
        raise BadPicture("unsupported", f"a {kind}; only sequential and progressive JPEGs of 8 bits are supported")


def _plain_px(frame: bytes) -> int:
    """The work of a plain picture: its pixels; four times that for CMYK, which Pillow decodes a second time, slowly."""
    height, width = int.from_bytes(frame[2:4], "big"), int.from_bytes(frame[4:6], "big")
    return width * height * (4 if frame[6] == 4 else 1)


def _scan_px(frame: bytes, scan: bytes) -> int:
    """The work of one scan, without that of its entropy-coded bytes."""
    height, width, components = struct.unpack_from(">HHB", frame, 2)
    factors = {frame[at]: (frame[at + 1] >> 4, frame[at + 1] & 15) for at in range(7, 7 + 3 * components, 3)}
    across, down = (8 * max([1, *(factor[side] for factor in factors.values())]) for side in (0, 1))
    number = scan[0]
    first, last, bits = scan[1 + 2 * number : 4 + 2 * number].ljust(3, b"\0")
    # Blocks fill whole MCUs, the units that hold blocks of all components.
    blocks = (
        -(-width // across)
        * -(-height // down)
        * sum(math.prod(factors.get(component, (4, 4))) for component in scan[1 : 1 + 2 * number : 2])
    )
    block_px = _BLOCK_PX
    if first and bits >> 4:
        block_px += max(last - first, 0) // _COEFFICIENTS_PER_PX + 1
    return _SCAN_PX + blocks * block_px * (_ARITHMETIC_FACTOR if frame[0] > 0xC8 else 1)
