"""The formats that Pillow reads, each by its plugin's class so that no other plugin is reached."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from library.codec.header import ORIENTATION_TAG, Format, Header, header_of, upright


def pil_format(name: str, open_image: Callable[[io.BytesIO], ImageFile]) -> Format:
    def header(data: bytes) -> Header:
        image = open_image(io.BytesIO(data))
        channels = len(Image.new(_target_mode(image), (1, 1)).getbands())
        return header_of(name, *image.size, channels, orientation=_orientation(image))

    def pixels(data: bytes, header: Header) -> NDArray[Any]:
        return pil_pixels(open_image(io.BytesIO(data)), header.orientation)

    return Format(header, pixels)


def _orientation(image: Image.Image) -> int:
    return int(image.getexif().get(ORIENTATION_TAG, 1))


def _target_mode(image: Image.Image) -> str:
    """The Pillow mode whose array is what we hand out."""
    if image.mode in ("1", "L", "LA", "RGB", "RGBA"):
        return "L" if image.mode == "1" else image.mode
    return "RGBA" if "transparency" in image.info or image.mode in ("PA", "RGBa") else "RGB"


def pil_pixels(image: ImageFile, orientation: int) -> NDArray[Any]:
    if image.mode.startswith("I"):  # 16-bit grey
        pixels = np.asarray(image).astype(np.uint16)
    else:
        pixels = np.asarray(image.convert(_target_mode(image)))
    return upright(pixels, orientation)
