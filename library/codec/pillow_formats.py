"""The formats that Pillow reads, each by its plugin's class so that no other plugin is reached."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from library.codec.header import Format, Header, exif_orientation, header_of, upright


def pil_format(name: str, open_image: Callable[[io.BytesIO], ImageFile]) -> Format:
    def header(data: bytes) -> Header:
        image = open_image(io.BytesIO(data))
        channels = len(Image.new(_target_mode(image), (1, 1)).getbands())
        return header_of(name, *image.size, channels, orientation=exif_orientation(image.info.get("exif", b"")))

    def pixels(data: bytes, header: Header) -> NDArray[Any]:
        image = open_image(io.BytesIO(data))
        return upright(np.asarray(image.convert(_target_mode(image))), header.orientation)

    return Format(header, pixels)


def _target_mode(image: Image.Image) -> str:
    """The Pillow mode whose array is what we hand out."""
    if image.mode in ("1", "L", "LA", "RGB", "RGBA"):
        return "L" if image.mode == "1" else image.mode
    return "RGBA" if "transparency" in image.info or image.mode in ("PA", "RGBa") else "RGB"
