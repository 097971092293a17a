"""The formats that Pillow reads, each by its plugin's class so that no other plugin is reached."""

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
    """A format that one of Pillow's plugins reads.

    Args:
        name: of the format.
        open_image: the plugin's class.
        px_ns: as of a header.
        work_px: as of a header, from the bytes and the opened picture; None: its pixels.
        check: raises BadPicture for bytes that the plugin should not get to see.
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
    """The Pillow mode whose array is what we hand out."""
    if image.mode in ("1", "L", "LA", "RGB", "RGBA"):
        return "L" if image.mode == "1" else image.mode
    return "RGBA" if "transparency" in image.info or image.mode in ("PA", "RGBa") else "RGB"


# -- what is dear in them ---------------------------------------------------------------------------------------------

_MAX_GIF_BLOCKS = 100_000  # before the first frame; 25 MB of profiles and comments
_RLE_PX, _RLE_BYTE_PX = 15, 30


def check_gif(data: bytes) -> None:
    """Pillow reads what is before the first frame block by block, of which there may be one for each byte."""
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
    """The frame, its colours, and the codes: there may be many that make no pixel."""
    return 2 * image.width * image.height + len(data)


def bmp_work_px(data: bytes, image: ImageFile) -> int:
    """Run lengths are unpacked by Pillow's Python, in which a run may be one pixel, or none."""
    pixels = image.width * image.height
    rle = any(tile.codec_name == "bmp_rle" for tile in image.tile)
    return _RLE_PX * pixels + _RLE_BYTE_PX * len(data) if rle else pixels + 2 * image.height
