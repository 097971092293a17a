"""Reads WebP, GIF and BMP with Pillow, each through its plugin's class so that no other plugin can run."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from library.errors import BadPicture
from library.imaging.codec.header import Format, Header, exif_orientation, header_of, upright


def pil_format(
    name: str,
    open_image: Callable[[io.BytesIO], ImageFile],
    *,
    px_ns: float,
    work_px: Callable[[bytes, ImageFile], int] | None = None,
    check: Callable[[bytes], None] | None = None,
) -> Format:
    """The readers of a format that one of Pillow's plugins decodes.

    Args:
        name: the format's name in headers.
        open_image: the plugin's class.
        px_ns: see `Header`.
        work_px: computes `Header.work_px` from the bytes and the opened picture; None for width x height.
        check: raises BadPicture for bytes that must not reach the plugin.
    """

    def header(data: bytes) -> Header:
        if check is not None:
            check(data)
        image = open_image(io.BytesIO(data))
        channels = len(Image.new(_target_mode(image), (1, 1)).getbands())
        return header_of(
            name,
            *image.size,
            channels,
            orientation=exif_orientation(image.info.get("exif", b"")),
            work_px=None if work_px is None else work_px(data, image),
            px_ns=px_ns,
        )

    def pixels(data: bytes, header: Header) -> NDArray[Any]:
        image = open_image(io.BytesIO(data))
        return upright(np.asarray(image.convert(_target_mode(image))), header.orientation)

    return Format(header, pixels)


def _target_mode(image: Image.Image) -> str:
    """The Pillow mode to convert to, so that the array has the channels that the codec returns."""
    if image.mode in ("1", "L", "LA", "RGB", "RGBA"):
        return "L" if image.mode == "1" else image.mode
    return "RGBA" if "transparency" in image.info or image.mode in ("PA", "RGBa") else "RGB"


# -- the cost of decoding ---------------------------------------------------------------------------------------------

_MAX_GIF_BLOCKS = 100_000  # before the first frame: 25 MB of profiles and comments
_RLE_PX, _RLE_BYTE_PX = 15, 30


def check_gif(data: bytes) -> None:
    """Refuses a GIF with too many blocks before its first frame: Pillow reads them one by one."""
    at, in_extension = 13 + (3 * 2 << (data[10] & 7) if data[10] & 128 else 0), False
    for _ in range(_MAX_GIF_BLOCKS):
        if at >= len(data) or (not in_extension and data[at] in b",;"):
            return
        if in_extension:
            in_extension, at = data[at] > 0, at + 1 + data[at]
        else:
            in_extension = data[at] == ord("!")
            at += 2 if in_extension else 1
    raise BadPicture("too_much_work", f"the GIF has more than {_MAX_GIF_BLOCKS:,} blocks before its picture")


def gif_work_px(data: bytes, image: ImageFile) -> int:
    """Counts the frame, its colour conversion, and every byte, since many LZW codes may yield no pixel."""
    return 2 * image.width * image.height + len(data)


def bmp_work_px(data: bytes, image: ImageFile) -> int:
    """Counts run-length data as expensive: Pillow unpacks it in Python, and a run may yield one pixel or none."""
    pixels = image.width * image.height
    rle = any(tile.codec_name == "bmp_rle" for tile in image.tile)
    return _RLE_PX * pixels + _RLE_BYTE_PX * len(data) if rle else pixels + 2 * image.height
