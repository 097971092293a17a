"""Decodes pictures: checks the size limits first, refuses damage, applies the orientation."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from library.errors import BadPicture
from library.imaging.codec.formats import FORMATS, sniff, unsupported_format
from library.imaging.codec.header import Header

# These libraries log problems without naming the file. What matters is raised as BadPicture, which is reported with it.
for _name in ("tifffile", "imagecodecs", "PIL"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)

DTYPES = ("uint8", "uint16", "float32")


@dataclass(frozen=True)
class Limits:
    """How large a picture may be and how much decoding may cost; checked before any pixel is decoded.

    Attributes:
        max_bytes: encoded size in bytes.
        max_pixels: width x height. The default admits a Sentinel-2 tile (10,980 x 10,980).
        max_decoded_bytes: width x height x channels x bytes per sample.
        max_side_px: width and height, each. Every row has a fixed cost, however short it is.
    """

    max_bytes: int = 512 * 2**20
    max_pixels: int = 2**27
    max_decoded_bytes: int = 2**30
    max_side_px: int = 10**6

    @property
    def max_work_px(self) -> int:
        """The largest `Header.work_px` allowed: eight times that of the largest plain picture.

        A progressive photo in twenty scans costs up to five times a plain one. The minimum of 2**20 pixels leaves small
        pictures room for fixed costs: scans, strips, tiles.
        """
        return 8 * max(self.max_pixels, 2**20)


DEFAULT_LIMITS = Limits()


def probe(data: bytes, limits: Limits | None = DEFAULT_LIMITS) -> Header:
    """Reads a picture's header without decoding a pixel.

    Raises:
        BadPicture: `empty`, `not_an_image`, `damaged`, `truncated`, `unsupported`, `zero_size`, `too_large` or
            `too_much_work`.
    """
    if not data:
        raise BadPicture("empty", "the file has no bytes")
    name = _format_of(data)
    if limits is not None and len(data) > limits.max_bytes:
        raise BadPicture("too_large", f"{len(data):,} bytes; the limit is {limits.max_bytes:,}")
    header = _guarded(FORMATS[name].header, data)
    if min(header.width, header.height, header.channels) < 1:
        raise BadPicture("zero_size", f"the header says {header.width}x{header.height}x{header.channels}")
    if limits is not None:
        _check_size(header, limits)
    return header


def decode(data: bytes, limits: Limits | None = DEFAULT_LIMITS, header: Header | None = None) -> NDArray[Any]:
    """Decodes a picture strictly: damage is an error, never invented pixels.

    Args:
        data: the encoded picture.
        limits: checked from the header first; None for bytes that Striate encoded itself.
        header: result of `probe` for the same bytes and limits, to avoid reading and checking them twice.

    Returns:
        Height x width x channels, uint8, uint16 or float32, upright, C-contiguous.

    Raises:
        BadPicture: the same reasons as `probe`.
    """
    header = header or probe(data, limits)
    pixels = _guarded(FORMATS[header.format].pixels, data, header)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    expected = (header.height, header.width, header.channels)
    if pixels.shape != expected or pixels.dtype.name != header.dtype:
        raise BadPicture(
            "damaged", f"the header says {expected} of {header.dtype}, the pixels are {pixels.shape} of {pixels.dtype}"
        )
    return np.ascontiguousarray(pixels)


def _format_of(data: bytes) -> str:
    name = sniff(data)
    if name is None:
        known = unsupported_format(data)
        if known is not None:
            raise BadPicture("unsupported", f"this is {known}; supported formats are {', '.join(FORMATS)}")
        raise BadPicture("not_an_image", f"starts with {data[:12]!r}, which is not one of {', '.join(FORMATS)}")
    return name


def _check_size(header: Header, limits: Limits) -> None:
    pixels = header.width * header.height
    if pixels > limits.max_pixels:
        raise BadPicture(
            "too_large", f"{header.width}x{header.height} is {pixels:,} pixels; the limit is {limits.max_pixels:,}"
        )
    if max(header.width, header.height) > limits.max_side_px:
        raise BadPicture(
            "too_large", f"{header.width}x{header.height}; the limit is {limits.max_side_px:,} pixels a side"
        )
    size = pixels * header.channels * np.dtype(header.dtype).itemsize
    if size > limits.max_decoded_bytes:
        raise BadPicture("too_large", f"{size:,} bytes when decoded; the limit is {limits.max_decoded_bytes:,}")
    if header.work_px > limits.max_work_px:
        raise BadPicture(
            "too_much_work",
            f"decoding its {header.width}x{header.height} pixels would cost as much as {header.work_px:,} plain pixels "
            f"because of how the file stores them; the limit is {limits.max_work_px:,}",
        )


def _guarded(read: Any, *arguments: Any) -> Any:
    """Calls a format's reader and turns the exceptions that damaged bytes cause into BadPicture.

    The libraries raise about twenty types for damage (tifffile alone struct.error, KeyError, IndexError and
    ZeroDivisionError), so every exception is converted except those that a picture can never cause.
    """
    try:
        return read(*arguments)
    except (BadPicture, MemoryError, NameError, ImportError, AttributeError):
        raise
    except Image.DecompressionBombError as error:
        raise BadPicture("too_large", str(error)) from error
    except Exception as error:
        text = str(error) or type(error).__name__
        raise BadPicture(_reason(text.lower()), text.strip()[:300]) from error


def _reason(text: str) -> str:
    if "not implemented" in text:  # libjpeg's message about arithmetic coding if built without it
        return "unsupported"
    return "truncated" if any(word in text for word in _TRUNCATED_WORDS) else "damaged"


_TRUNCATED_WORDS = ("truncated", "premature end", "unexpected end", "not enough", "ends early", "eof")
