"""Masks: pictures whose values are classes, so that no value may be mixed with another.

A PNG with a palette (as of PASCAL VOC) is read as its numbers, which are the classes, and keeps its palette.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, PngImagePlugin

from library.errors import BadPicture
from library.imaging import codec
from library.imaging.picture import Pixels

_IHDR_COLOUR_TYPE, _PALETTE = 25, 3  # where a PNG's header says that its values are numbers of a palette


@dataclass(frozen=True)
class Mask:
    """A decoded mask.

    Attributes:
        pixels: height x width x channels.
        palette: the colours of a PNG whose pixels are numbers of colours: red, green, blue of 0, of 1, ...
    """

    pixels: Pixels
    palette: bytes = b""


def decode_mask(data: bytes, limits: codec.Limits = codec.DEFAULT_LIMITS) -> Mask:
    """Decodes a mask; raises BadPicture as `codec.decode`."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[_IHDR_COLOUR_TYPE : _IHDR_COLOUR_TYPE + 1] != bytes([_PALETTE]):
        return Mask(codec.decode(data, limits))
    colours = codec.decode(data, limits)  # checks its size and every chunk that makes pixels
    image = PngImagePlugin.PngImageFile(io.BytesIO(data))
    numbers = np.asarray(image)
    if image.mode != "P" or numbers.shape != colours.shape[:2]:
        return Mask(colours)
    return Mask(numbers[:, :, None].copy(), bytes(image.getpalette() or ()))


def encode_mask(mask: Mask) -> bytes:
    """Encodes a mask without loss: as PNG, or where that cannot hold it (float32, many bands) as TIFF.

    Raises:
        BadPicture: neither can hold it.
    """
    if not mask.palette:
        return codec.encode(mask.pixels, codec.KEEP)[0]
    image = Image.fromarray(mask.pixels[:, :, 0], "P")
    image.putpalette(mask.palette)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def require_size(mask: Mask, height: int, width: int, column: str) -> None:
    """Raises BadPicture `mask_size` unless the mask has the size of its picture."""
    if mask.pixels.shape[:2] != (height, width):
        size = f"{mask.pixels.shape[1]}x{mask.pixels.shape[0]}"
        raise BadPicture("mask_size", f"the mask in '{column}' is {size}, but its picture is {width}x{height}")
