"""Encoded bytes to pixels: limits first, strictly, upright."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from library.errors import BadPicture
from library.imaging.codec.formats import FORMATS, sniff, unread_format
from library.imaging.codec.header import Header

# What the libraries log about a picture does not name its file; what matters becomes a BadPicture, which does.
for _name in ("tifffile", "imagecodecs", "PIL"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)

DTYPES = ("uint8", "uint16", "float32")


@dataclass(frozen=True)
class Limits:
    """How large a picture may be, and how much work to decode; checked from its header and markers.

    Attributes:
        max_bytes: encoded size in bytes.
        max_pixels: width x height. The default takes a Sentinel-2 tile (10,980 x 10,980).
        max_decoded_bytes: width x height x channels x bytes per sample.
        max_side_px: width, and height. Each row costs by itself, however short it is.
    """

    max_bytes: int = 512 * 2**20
    max_pixels: int = 2**27
    max_decoded_bytes: int = 2**30
    max_side_px: int = 10**6

    @property
    def max_work_px(self) -> int:
        """`Header.work_px` of a picture, at most: eight times that of the largest plain one.

        A progressive photo in twenty scans takes up to five. Small pictures have room for what costs the same whatever
        the size: scans, strips, tiles.
        """
        return 8 * max(self.max_pixels, 2**20)


DEFAULT_LIMITS = Limits()


def probe(data: bytes, limits: Limits | None = DEFAULT_LIMITS) -> Header:
    """Read a picture's header; no pixel is decoded.

    Raises:
        BadPicture: `empty`, `not_an_image`, `damaged`, `truncated`, `unsupported`, `zero_size`, `too_large` or
            `too_much_work`.
    """
    if not data:
        raise BadPicture("empty", "the file has no bytes")
    name = _format_of(data)
    if limits is not None and len(data) > limits.max_bytes:
        raise BadPicture("too_large", f"{len(data):,} bytes; at most {limits.max_bytes:,} are read")
    header = _guarded(FORMATS[name].header, data)
    if min(header.width, header.height, header.channels) < 1:
        raise BadPicture("zero_size", f"the header says {header.width}x{header.height}x{header.channels}")
    if limits is not None:
        _check_size(header, limits)
    return header


def decode(data: bytes, limits: Limits | None = DEFAULT_LIMITS, header: Header | None = None) -> NDArray[Any]:
    """Decode a picture, strictly: damage is an error, never invented pixels.

    Args:
        data: the encoded picture.
        limits: checked from the header first; None for bytes that were encoded here.
        header: what `probe` gave for these bytes and limits, so that nothing is read or checked twice.

    Returns:
        Height x width x channels, uint8, uint16 or float32, upright, C-contiguous.

    Raises:
        BadPicture: as `probe`.
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
        known = unread_format(data)
        if known is not None:
            raise BadPicture("unsupported", f"this is {known}; {', '.join(FORMATS)} are read")
        raise BadPicture("not_an_image", f"starts with {data[:12]!r}, which is none of {', '.join(FORMATS)}")
    return name


def _check_size(header: Header, limits: Limits) -> None:
    pixels = header.width * header.height
    if pixels > limits.max_pixels:
        raise BadPicture(
            "too_large", f"{header.width}x{header.height} is {pixels:,} pixels; at most {limits.max_pixels:,} are read"
        )
    if max(header.width, header.height) > limits.max_side_px:
        raise BadPicture(
            "too_large", f"{header.width}x{header.height}; a side of at most {limits.max_side_px:,} pixels is read"
        )
    size = pixels * header.channels * np.dtype(header.dtype).itemsize
    if size > limits.max_decoded_bytes:
        raise BadPicture("too_large", f"{size:,} bytes when decoded; at most {limits.max_decoded_bytes:,} are read")
    if header.work_px > limits.max_work_px:
        raise BadPicture(
            "too_much_work",
            f"decoding its {header.width}x{header.height} pixels would cost as much as {header.work_px:,} pixels, "
            f"because of how the file stores them; at most {limits.max_work_px:,} are spent on one picture",
        )


def _guarded(read: Any, *arguments: Any) -> Any:
    """Call a format's reader; whatever its library raises about damaged bytes becomes a BadPicture.

    The libraries raise a score of types for damage (tifffile alone has struct.error, KeyError, IndexError,
    ZeroDivisionError), so only what can never be the picture's fault passes through.
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
    if "not implemented" in text:  # as libjpeg says of arithmetic coding, where it is built without
        return "unsupported"
    return "truncated" if any(word in text for word in _TRUNCATED_WORDS) else "damaged"


_TRUNCATED_WORDS = ("truncated", "premature end", "unexpected end", "not enough", "ends early", "eof")
