"""Encodes pictures as JPEG, PNG, WebP, TIFF or NPY."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from library.errors import BadPicture, UsageError

_JPEG_DEFAULT, _WEBP_DEFAULT = 95, 90


@dataclass(frozen=True)
class Encoding:
    """How changed pictures are stored: `keep`, `jpeg:95`, `png`, `webp:90`, `tiff` or `npy`.

    `keep` stores a changed picture in its source's format (JPEG at quality 95, WebP at 90). If that format cannot hold
    the result (16 bits or 5 bands in a JPEG) or cannot be written (AVIF, HEIC, JPEG 2000, GIF, BMP), it uses PNG, or
    TIFF if PNG cannot hold it either.
    """

    format: str
    quality: int | None = None

    @classmethod
    def parse(cls, text: str) -> Encoding:
        """Reads text such as `jpeg:90`; raises UsageError, which lists the choices."""
        match = re.fullmatch(r"([a-z]+)(?::(\d{1,3}))?", text.strip())
        name, number = match.groups() if match else ("", None)
        if name not in ("keep", *_ENCODERS):
            raise UsageError(f"unknown encoding '{text}'; use keep, jpeg:95, png, webp:90, tiff or npy")
        if number is None:
            return cls(name, {"jpeg": _JPEG_DEFAULT, "webp": _WEBP_DEFAULT}.get(name))
        if name not in ("jpeg", "webp") or not 1 <= int(number) <= 100:
            raise UsageError(f"encoding '{text}': only jpeg and webp take a quality, from 1 to 100, e.g. jpeg:95")
        return cls(name, int(number))

    def __str__(self) -> str:
        return self.format if self.quality is None else f"{self.format}:{self.quality}"


KEEP = Encoding("keep")


def encode(pixels: NDArray[Any], encoding: Encoding = KEEP, source_format: str = "png") -> tuple[bytes, str]:
    """Encodes a picture; the same pixels give the same bytes.

    Args:
        pixels: height x width x channels, uint8, uint16 or float32.
        encoding: format and quality to write.
        source_format: the format that `keep` uses.

    Returns:
        The bytes and the name of their format.

    Raises:
        BadPicture: `cannot_encode` if the format of `encoding` (other than `keep`) cannot hold the picture.
    """
    if encoding.format != "keep":
        problem = _misfit(pixels, encoding.format)
        if problem is not None:
            raise BadPicture("cannot_encode", problem)
        return _ENCODERS[encoding.format](pixels, encoding.quality), encoding.format
    preferred = source_format if source_format in _ENCODERS else "png"
    name = next(name for name in (preferred, "png", "tiff") if _misfit(pixels, name) is None)
    return _ENCODERS[name](pixels, {"jpeg": _JPEG_DEFAULT, "webp": _WEBP_DEFAULT}.get(name)), name


_HOLDS = {  # format: dtypes, channels, longest side
    "jpeg": (("uint8",), (1, 3), 65_500),
    "png": (("uint8", "uint16"), (1, 3, 4), 1_000_000),
    "webp": (("uint8",), (3, 4), 16_383),
}


def _misfit(pixels: NDArray[Any], name: str) -> str | None:
    """Why `name` cannot hold these pixels, or None. TIFF and NPY hold everything."""
    if name not in _HOLDS:
        return None
    dtypes, channels, longest = _HOLDS[name]
    if pixels.dtype.name not in dtypes:
        return f"{name} holds {' or '.join(dtypes)}, not {pixels.dtype.name}; encode as tiff or npy"
    if pixels.shape[2] not in channels:
        choices = " or ".join(map(str, channels))
        return f"{name} holds {choices} channels, not {pixels.shape[2]}; add the step 'rgb', or encode as tiff or npy"
    if max(pixels.shape[:2]) > longest:
        return f"{name} holds at most {longest} pixels a side, not {max(pixels.shape[:2])}"
    return None


def _encode_jpeg(pixels: NDArray[Any], quality: int | None) -> bytes:
    grey = pixels.shape[2] == 1
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality or _JPEG_DEFAULT, "GRAY" if grey else "RGB", "Gray" if grey else "420"
    )


def _encode_png(pixels: NDArray[Any], quality: int | None) -> bytes:
    # OpenCV writes a photo 7 times as fast as Pillow, 6% larger; and Pillow has no 16-bit colour.
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[2]]
    return cv2.imencode(".png", np.ascontiguousarray(pixels[:, :, order]))[1].tobytes()


def _encode_webp(pixels: NDArray[Any], quality: int | None) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "webp", quality=quality or _WEBP_DEFAULT, exact=True)
    return out.getvalue()


def _encode_tiff(pixels: NDArray[Any], quality: int | None) -> bytes:
    import tifffile  # few workers need it, and importing it is slow

    out = io.BytesIO()
    colour = pixels.shape[2] in (3, 4) and pixels.dtype != np.float32
    tifffile.imwrite(
        out,
        pixels if pixels.shape[2] > 1 else pixels[:, :, 0],
        photometric="rgb" if colour else "minisblack",
        planarconfig="contig" if pixels.shape[2] > 1 else None,
        compression="zlib",
        metadata=None,
        software=False,
    )
    return out.getvalue()


def _encode_npy(pixels: NDArray[Any], quality: int | None) -> bytes:
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(pixels), allow_pickle=False)
    return out.getvalue()


_ENCODERS: dict[str, Callable[[NDArray[Any], int | None], bytes]] = {
    "jpeg": _encode_jpeg,
    "png": _encode_png,
    "webp": _encode_webp,
    "tiff": _encode_tiff,
    "npy": _encode_npy,
}
