"""Every format that is read: its magic bytes, and its reader."""

from __future__ import annotations

import io
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, GifImagePlugin, WebPImagePlugin

from library.codec.header import Format, Header, header_of
from library.codec.jpeg import jpeg_header, jpeg_pixels
from library.codec.pillow_formats import bmp_work_px, check_gif, gif_work_px, pil_format
from library.codec.png import png_header, png_pixels
from library.errors import BadPicture


def sniff(data: bytes) -> str | None:
    """The format by its magic bytes (never by its name), or None."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _tiff_header(data: bytes) -> Header:
    from library.codec.tiff import tiff_header

    return tiff_header(data)


def _tiff_pixels(data: bytes, header: Header) -> NDArray[Any]:
    from library.codec.tiff import tiff_pixels

    return tiff_pixels(data)


def _npy_header(data: bytes) -> Header:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise BadPicture("unsupported", f"version {version} of NPY")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(file)
    except (MemoryError, RecursionError, SyntaxError, TokenError):  # from Python's parser, by version and nesting
        raise BadPicture("damaged", "the NPY header is no plain dictionary") from None
    shape = tuple(map(int, shape))
    if len(shape) not in (2, 3) or dtype.name not in ("uint8", "uint16", "float32"):
        raise BadPicture("unsupported", f"an array of {dtype.name} {shape}; 2-D or 3-D uint8, uint16, float32 is read")
    if len(data) - file.tell() < int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
        raise BadPicture("truncated", f"the array {shape} needs more bytes than there are")
    return header_of("npy", shape[1], shape[0], shape[2] if len(shape) == 3 else 1, dtype.name)


def _npy_pixels(data: bytes, header: Header) -> NDArray[Any]:
    pixels = np.load(io.BytesIO(data), allow_pickle=False)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


_MAGIC = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"\x93NUMPY", "npy"),
)

FORMATS = {
    "jpeg": Format(jpeg_header, jpeg_pixels),
    "png": Format(png_header, png_pixels),
    "webp": pil_format("webp", WebPImagePlugin.WebPImageFile, px_ns=40.0),
    "gif": pil_format("gif", GifImagePlugin.GifImageFile, px_ns=7.0, work_px=gif_work_px, check=check_gif),
    "bmp": pil_format("bmp", BmpImagePlugin.BmpImageFile, px_ns=10.0, work_px=bmp_work_px),
    "tiff": Format(_tiff_header, _tiff_pixels),
    "npy": Format(_npy_header, _npy_pixels),
}
