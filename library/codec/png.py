"""PNG: 16-bit colour through OpenCV (Pillow cuts it to 8 bits), the rest through Pillow."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import PngImagePlugin

from library.codec.header import Header, exif_orientation, header_of, upright
from library.codec.pillow_formats import pil_pixels
from library.errors import BadPicture

_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type


def png_header(data: bytes) -> Header:
    width, height, depth, colour = _ihdr(data)
    channels = 4 if colour == 3 and _has_transparency(data) else _CHANNELS.get(colour, 0)
    return header_of("png", width, height, channels, "uint16" if depth == 16 else "uint8", _orientation(data))


def _ihdr(data: bytes) -> tuple[int, int, int, int]:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise BadPicture("truncated", "the PNG ends before its header")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    return width, height, depth, colour


def _has_transparency(data: bytes) -> bool:
    return 0 <= data.find(b"tRNS") < max(data.find(b"IDAT"), 0)


def png_pixels(data: bytes, header: Header) -> NDArray[Any]:
    _check_chunks(data)
    _, _, depth, colour = _ihdr(data)
    if depth == 16 and colour != 0:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise BadPicture("damaged", "OpenCV cannot decode this 16-bit PNG")
        order = {2: [2, 1, 0], 4: [0, 3], 6: [2, 1, 0, 3]}[colour]
        return upright(pixels[:, :, order], header.orientation)
    return pil_pixels(PngImagePlugin.PngImageFile(io.BytesIO(data)), header.orientation)


def _orientation(data: bytes) -> int:
    """Walk the chunks to the EXIF one; asked for it, Pillow decodes the whole picture first."""
    at = 8
    # Searched for once: a picture may have thousands of chunks.
    last = data.rfind(b"eXIf")
    while at < last:
        following = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"eXIf":
            return exif_orientation(b"Exif\0\0" + data[at + 8 : following - 4])
        at = following
    return 1


def _check_chunks(data: bytes) -> None:
    """Pillow passes over the checksums of the pixel data; a flipped bit there must not go unseen."""
    at = 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 12 + length
        if end > len(data):
            raise BadPicture("truncated", f"the PNG ends in the chunk that starts at byte {at}")
        kind = data[at + 4 : at + 8]
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise BadPicture("damaged", f"bad checksum in the {kind.decode('latin-1')} chunk at byte {at}")
        if kind == b"IEND":
            return
        at = end
    raise BadPicture("truncated", "the PNG has no IEND chunk")
