"""JPEG, through simplejpeg: it is strict, and the fastest."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import JpegImagePlugin

from library.codec.header import Header, exif_orientation, header_of, upright


def jpeg_header(data: bytes) -> Header:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    channels = 1 if colours == "Gray" else 3
    return header_of("jpeg", int(width), int(height), channels, orientation=_orientation(data), colours=colours)


def jpeg_pixels(data: bytes, header: Header) -> NDArray[Any]:
    if header.colours in ("CMYK", "YCCK"):
        simplejpeg.decode_jpeg(data, "CMYK")  # for its strictness only: Pillow knows Adobe's inverted inks
        pixels = np.asarray(JpegImagePlugin.JpegImageFile(io.BytesIO(data)).convert("RGB"))
    else:
        pixels = simplejpeg.decode_jpeg(data, "GRAY" if header.colours == "Gray" else "RGB")
    return upright(pixels, header.orientation)


def _orientation(data: bytes) -> int:
    """Walk the segments before the scan to the EXIF one; Pillow's parser alone would cost 3% of a filter job."""
    at = 2
    while data[at : at + 1] == b"\xff":
        marker = data[at + 1]
        if marker == 0xFF:  # padding before a marker
            at += 1
        elif marker == 0xDA:
            break
        else:
            size = int.from_bytes(data[at + 2 : at + 4], "big")
            if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
                return exif_orientation(data[at + 4 : at + 2 + size])
            at += 2 + max(size, 2)
    return 1
