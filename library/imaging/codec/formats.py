"""The supported formats, with their magic bytes and readers."""

from __future__ import annotations

import io
import re
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, GifImagePlugin, WebPImagePlugin

from library.errors import BadPicture
from library.imaging.codec.header import Format, Header, header_of
from library.imaging.codec.heif import avif_header, avif_pixels, heic_header, heic_pixels, heif_format
from library.imaging.codec.jpeg import jpeg_header, jpeg_pixels
from library.imaging.codec.jpeg2000 import CODESTREAM_MAGIC, JP2_MAGIC, jpeg2000_header, jpeg2000_pixels
from library.imaging.codec.pillow_formats import bmp_work_px, check_gif, gif_work_px, pil_format
from library.imaging.codec.png import png_header, png_pixels


def sniff(data: bytes) -> str | None:
    """The format by its magic bytes (never by its name), or None."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return heif_format(data)


def unsupported_format(data: bytes) -> str | None:
    """The name of a known but unsupported format, recognised by its magic bytes, or None."""
    for magic, name in _UNSUPPORTED:
        if data.startswith(magic):
            return name
    if data[4:8] == b"ftyp":
        return "a Canon raw file (CR3)" if data[8:11] == b"crx" else "a video (MP4, QuickTime)"
    if data[:4] == b"RIFF" and data[8:11] == b"AVI":
        return "a video (AVI)"
    if data[128:132] == b"DICM":
        return "DICOM"
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"<svg") or (start.startswith((b"<?xml", b"<!--", b"<!DOCTYPE svg")) and b"<svg" in start):
        return "SVG, a vector drawing"
    return "a Netpbm bitmap (PBM, PGM, PPM)" if _NETPBM.match(data) else None


def _tiff_header(data: bytes) -> Header:
    from library.imaging.codec.tiff import tiff_header

    return tiff_header(data)


def _tiff_pixels(data: bytes, header: Header) -> NDArray[Any]:
    from library.imaging.codec.tiff import tiff_pixels

    return tiff_pixels(data)


def _npy_header(data: bytes) -> Header:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise BadPicture("unsupported", f"NPY version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(file)
    except (MemoryError, RecursionError, SyntaxError, TokenError):  # Python's parser raises any of these
        raise BadPicture("damaged", "the NPY header is not a plain dictionary") from None
    shape = tuple(map(int, shape))
    if len(shape) not in (2, 3) or dtype.name not in ("uint8", "uint16", "float32"):
        supported = "2-D and 3-D arrays of uint8, uint16 and float32 are supported"
        raise BadPicture("unsupported", f"an array of {dtype.name} with shape {shape}; {supported}")
    if len(data) - file.tell() < int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
        raise BadPicture("truncated", f"an array of shape {shape} needs more bytes than the file has")
    return header_of("npy", shape[1], shape[0], shape[2] if len(shape) == 3 else 1, dtype.name, px_ns=20.0)


def _npy_pixels(data: bytes, header: Header) -> NDArray[Any]:
    pixels = np.load(io.BytesIO(data), allow_pickle=False)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


_NETPBM = re.compile(rb"P[1-7fF][\r\n\t ]+[#0-9W]")
_UNSUPPORTED = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"%PDF-", "PDF"),
    (b"8BPS", "a Photoshop file (PSD)"),
    (b"gimp xcf", "a GIMP file (XCF)"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"BPG\xfb", "BPG"),
    (b"SIMPLE  =", "FITS"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"IIRO", "an Olympus raw file (ORF)"),
    (b"IIRS", "an Olympus raw file (ORF)"),
    (b"MMOR", "an Olympus raw file (ORF)"),
    (b"IIU\0", "a Panasonic raw file (RW2)"),
    (b"FUJIFILMCCD-RAW", "a Fujifilm raw file (RAF)"),
    (b"FOVb", "a Sigma raw file (X3F)"),
    (b"\x1aE\xdf\xa3", "a video (Matroska, WebM)"),
)

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
    (JP2_MAGIC, "jp2"),
    (CODESTREAM_MAGIC, "jp2"),
)

FORMATS = {
    "jpeg": Format(jpeg_header, jpeg_pixels),
    "png": Format(png_header, png_pixels),
    "webp": pil_format("webp", WebPImagePlugin.WebPImageFile, px_ns=75.0),
    "gif": pil_format("gif", GifImagePlugin.GifImageFile, px_ns=7.0, work_px=gif_work_px, check=check_gif),
    "bmp": pil_format("bmp", BmpImagePlugin.BmpImageFile, px_ns=10.0, work_px=bmp_work_px),
    "tiff": Format(_tiff_header, _tiff_pixels),
    "avif": Format(avif_header, avif_pixels),
    "heic": Format(heic_header, heic_pixels),
    "jp2": Format(jpeg2000_header, jpeg2000_pixels),
    "npy": Format(_npy_header, _npy_pixels),
}
