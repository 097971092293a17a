"""Reads AVIF with libavif (from imagecodecs, which returns 10 and 12 bits) and HEIC with libheif (pillow-heif).

Both headers are read from the container's boxes without decoding a pixel. Samples of 10 and 12 bits are stretched over
uint16. The container's rotation and mirroring (irot, imir) are applied; EXIF's orientation is ignored, as the standard
requires and as browsers and phones do. A sequence or a burst gives its primary picture.
"""

from __future__ import annotations

import dataclasses
import io
import re
import struct
from typing import Any

import numpy as np
import pillow_heif
from imagecodecs import avif_decode
from numpy.typing import NDArray
from PIL import AvifImagePlugin

from library.errors import BadPicture
from library.imaging.codec.boxes import PX_NS, brands, heif_work_px
from library.imaging.codec.conversions import divided_by_alpha, full_range
from library.imaging.codec.header import Header, exif_orientation, header_of, upright

_CHANNELS = {"L": 1, "I": 1, "LA": 2, "RGB": 3, "RGBA": 4, "RGBa": 4}  # by pillow-heif's mode without the depth
_MAX_CODED_PX = 2**24  # always allowed, however small the part that is shown
_SIZES = re.compile(rb"ispe\0\0\0\0(.{8})", re.DOTALL)


def heif_format(data: bytes) -> str | None:
    """`avif` or `heic` by the brands of a file's first box, or None."""
    for brand in brands(data):
        if brand in _BRANDS:
            return _BRANDS[brand]
    return "heic" if _HEIF_BRANDS.intersection(brands(data)) else None


_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "avif"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "heic"),
}
_HEIF_BRANDS = {b"mif1", b"mif2", b"msf1"}  # these do not say how the pixels are coded


def _opened(data: bytes) -> pillow_heif.HeifFile:
    try:
        return pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False)
    except (RuntimeError, ValueError, SyntaxError, EOFError, OSError) as error:
        raise _bad(error) from error


def _bad(error: Exception) -> BadPicture:
    text = str(error) or type(error).__name__
    if "nsupported" in text or "not been built in" in text:
        return BadPicture("unsupported", f"libheif cannot read this HEIF file: {text[:250]}")
    if "ecurity limit" in text or "xceeds" in text:
        return BadPicture("too_large", text[:300])
    return BadPicture("damaged", text[:300])


def _mode(image: pillow_heif.HeifFile) -> tuple[str, int]:
    """The channels, by Pillow's name, and the depth in bits."""
    mode, _, bits = image.mode.partition(";")
    return mode, int(bits or 8)


def _coded_px(data: bytes, width: int, height: int) -> int:
    """Pixels of the largest image item: it is decoded whole even if only a part is shown (clap)."""
    sizes = [struct.unpack(">II", size) for size in _SIZES.findall(data)]
    coded = max([width * height, *(across * down for across, down in sizes)])
    if coded > max(_MAX_CODED_PX, 4 * width * height):
        raise BadPicture("too_large", f"a picture of {width}x{height} stored as one of {coded:,} pixels")
    return coded


def heic_header(data: bytes) -> Header:
    image = _opened(data)
    mode, bits = _mode(image)
    dtype = "uint8" if bits <= 8 else "uint16"
    work_px = max(_coded_px(data, *image.size), heif_work_px(data))
    header = header_of("heic", *image.size, _CHANNELS[mode], dtype, work_px=work_px, px_ns=PX_NS)
    return dataclasses.replace(header, has_more_pages=len(image) > 1)


def heic_pixels(data: bytes, header: Header) -> NDArray[Any]:
    image = _opened(data)
    mode, bits = _mode(image)
    try:
        pixels = np.asarray(image)
    except (RuntimeError, ValueError, SyntaxError, EOFError, OSError) as error:
        raise _bad(error) from error
    pixels = full_range(pixels, bits)
    return divided_by_alpha(pixels, 3, 3, np.iinfo(pixels.dtype).max) if mode == "RGBa" else pixels


def avif_header(data: bytes) -> Header:
    image = AvifImagePlugin.AvifImageFile(io.BytesIO(data))
    # Pillow gives the container's rotation as an EXIF orientation, but not the bit depth.
    bits = 8 if image.n_frames > 1 else _mode(_opened(data))[1]
    dtype = "uint8" if bits <= 8 else "uint16"
    orientation = exif_orientation(image.info.get("exif", b""))
    header = header_of(
        "avif",
        *image.size,
        _CHANNELS[image.mode],
        dtype,
        orientation,
        colours=str(bits),
        work_px=heif_work_px(data),
        px_ns=PX_NS,
    )
    return dataclasses.replace(header, has_more_pages=image.n_frames > 1)


def avif_pixels(data: bytes, header: Header) -> NDArray[Any]:
    if header.has_more_pages:
        # imagecodecs decodes all frames, or writes out of bounds if one is chosen; Pillow decodes one, at 8 bits.
        return upright(np.asarray(AvifImagePlugin.AvifImageFile(io.BytesIO(data))), header.orientation)
    pixels = full_range(avif_decode(data), int(header.colours))
    if header.channels == 4 and pixels.ndim == 3 and pixels.shape[2] == 2:
        pixels = pixels[:, :, [0, 0, 0, 1]]  # for grey with alpha, Pillow's header says RGBA
    return upright(pixels, header.orientation)
