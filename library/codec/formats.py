"""One reader per format: what its header says, and its pixels.

JPEG goes through simplejpeg (strict, and the fastest), TIFF through tifffile, 16-bit colour PNG through OpenCV
(Pillow cuts it to 8 bits), the rest through Pillow's own plugins, called by class so that no other plugin is reached.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from library.codec.header import ORIENTATION_TAG, Header, header_of, upright
from library.errors import BadPicture


@dataclass(frozen=True)
class Format:
    """How to read one format: its header (no pixel decoded), and with that its pixels (upright)."""

    header: Callable[[bytes], Header]
    pixels: Callable[[bytes, Header], NDArray[Any]]


def sniff(data: bytes) -> str | None:
    """The format by its magic bytes (never by its name), or None."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


# -- JPEG -------------------------------------------------------------------------------------------------------------


def _jpeg_header(data: bytes) -> Header:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    channels = 1 if colours == "Gray" else 3
    return header_of("jpeg", int(width), int(height), channels, orientation=_jpeg_orientation(data), colours=colours)


def _jpeg_pixels(data: bytes, header: Header) -> NDArray[Any]:
    if header.colours in ("CMYK", "YCCK"):
        simplejpeg.decode_jpeg(data, "CMYK")  # for its strictness only: Pillow knows Adobe's inverted inks
        pixels = np.asarray(JpegImagePlugin.JpegImageFile(io.BytesIO(data)).convert("RGB"))
    else:
        pixels = simplejpeg.decode_jpeg(data, "GRAY" if header.colours == "Gray" else "RGB")
    return upright(pixels, header.orientation)


def _jpeg_orientation(data: bytes) -> int:
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
                return _exif_orientation(data[at + 4 : at + 2 + size])
            at += 2 + max(size, 2)
    return 1


def _exif_orientation(segment: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(segment)
        return int(exif.get(ORIENTATION_TAG, 1))
    except (SyntaxError, ValueError, TypeError, struct.error, OSError, KeyError, IndexError, OverflowError):
        return 1  # a damaged tag says nothing; the pixels may still be whole


# -- PNG --------------------------------------------------------------------------------------------------------------

_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type


def _png_header(data: bytes) -> Header:
    width, height, depth, colour = _png_ihdr(data)
    channels = 4 if colour == 3 and _png_has_transparency(data) else _PNG_CHANNELS.get(colour, 0)
    return header_of("png", width, height, channels, "uint16" if depth == 16 else "uint8", _png_orientation(data))


def _png_ihdr(data: bytes) -> tuple[int, int, int, int]:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise BadPicture("truncated", "the PNG ends before its header")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    return width, height, depth, colour


def _png_has_transparency(data: bytes) -> bool:
    return 0 <= data.find(b"tRNS") < max(data.find(b"IDAT"), 0)


def _png_pixels(data: bytes, header: Header) -> NDArray[Any]:
    _check_png_chunks(data)
    _, _, depth, colour = _png_ihdr(data)
    if depth == 16 and colour != 0:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise BadPicture("damaged", "OpenCV cannot decode this 16-bit PNG")
        order = {2: [2, 1, 0], 4: [0, 3], 6: [2, 1, 0, 3]}[colour]
        return upright(pixels[:, :, order], header.orientation)
    return _pil_pixels(PngImagePlugin.PngImageFile(io.BytesIO(data)), header.orientation)


def _png_orientation(data: bytes) -> int:
    """Walk the chunks to the EXIF one; asked for it, Pillow decodes the whole picture first."""
    at = 8
    # Searched for once: a picture may have thousands of chunks.
    last = data.rfind(b"eXIf")
    while at < last:
        following = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"eXIf":
            return _exif_orientation(b"Exif\0\0" + data[at + 8 : following - 4])
        at = following
    return 1


def _check_png_chunks(data: bytes) -> None:
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


# -- Pillow's formats -------------------------------------------------------------------------------------------------


def _pil_format(name: str, open_image: Callable[[io.BytesIO], ImageFile]) -> Format:
    def header(data: bytes) -> Header:
        image = open_image(io.BytesIO(data))
        channels = len(Image.new(_target_mode(image), (1, 1)).getbands())
        return header_of(name, *image.size, channels, orientation=_pil_orientation(image))

    def pixels(data: bytes, header: Header) -> NDArray[Any]:
        return _pil_pixels(open_image(io.BytesIO(data)), header.orientation)

    return Format(header, pixels)


def _pil_orientation(image: Image.Image) -> int:
    return int(image.getexif().get(ORIENTATION_TAG, 1))


def _target_mode(image: Image.Image) -> str:
    """The Pillow mode whose array is what we hand out."""
    if image.mode in ("1", "L", "LA", "RGB", "RGBA"):
        return "L" if image.mode == "1" else image.mode
    return "RGBA" if "transparency" in image.info or image.mode in ("PA", "RGBa") else "RGB"


def _pil_pixels(image: ImageFile, orientation: int) -> NDArray[Any]:
    if image.mode.startswith("I"):  # 16-bit grey
        pixels = np.asarray(image).astype(np.uint16)
    else:
        pixels = np.asarray(image.convert(_target_mode(image)))
    return upright(pixels, orientation)


# -- TIFF -------------------------------------------------------------------------------------------------------------


def _tiff_header(data: bytes) -> Header:
    from library.codec.tiff import tiff_header

    return tiff_header(data)


def _tiff_pixels(data: bytes, header: Header) -> NDArray[Any]:
    from library.codec.tiff import tiff_pixels

    return tiff_pixels(data)


# -- NPY --------------------------------------------------------------------------------------------------------------


def _npy_header(data: bytes) -> Header:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise BadPicture("unsupported", f"version {version} of NPY")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(file)
    except MemoryError:  # from Python's parser, for a header nested too deeply
        raise BadPicture("damaged", "the NPY header is no plain dictionary") from None
    shape = tuple(map(int, shape))
    if len(shape) not in (2, 3) or dtype.name not in ("uint8", "uint16", "float32"):
        raise BadPicture("unsupported", f"an array of {dtype.name} {shape}; 2-D or 3-D uint8, uint16, float32 is read")
    if len(data) - file.tell() < int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
        raise BadPicture("truncated", f"the array {shape} needs more bytes than there are")
    return Header("npy", shape[1], shape[0], shape[2] if len(shape) == 3 else 1, dtype.name)


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
    "jpeg": Format(_jpeg_header, _jpeg_pixels),
    "png": Format(_png_header, _png_pixels),
    "webp": _pil_format("webp", WebPImagePlugin.WebPImageFile),
    "gif": _pil_format("gif", GifImagePlugin.GifImageFile),
    "bmp": _pil_format("bmp", BmpImagePlugin.BmpImageFile),
    "tiff": Format(_tiff_header, _tiff_pixels),
    "npy": Format(_npy_header, _npy_pixels),
}
