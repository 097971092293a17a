"""The reader of TIFF, by tifffile; a module of its own, as few workers ever need tifffile."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import tifffile
from numpy.typing import NDArray

from library.codec.header import ORIENTATION_TAG, Header, header_of, upright
from library.errors import BadPicture

_T = TypeVar("_T")


def _damage_is_no_defect(read: Callable[[bytes], _T]) -> Callable[[bytes], _T]:
    """tifffile trips over damaged tags with AttributeError as well, which elsewhere means a defect of ours."""

    @functools.wraps(read)
    def guarded(data: bytes) -> _T:
        try:
            return read(data)
        except AttributeError as error:
            raise BadPicture("damaged", str(error)) from error

    return guarded


@_damage_is_no_defect
def tiff_header(data: bytes) -> Header:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = _page(file)
        height, width, channels = _shape(page)
        dtype = _dtype(page)
        return header_of("tiff", width, height, channels, dtype, _orientation(page))


def _page(file: tifffile.TiffFile) -> tifffile.TiffPage:
    page = file.pages[0]
    if not isinstance(page, tifffile.TiffPage) or page.dtype is None:
        raise BadPicture("unsupported", "the TIFF's sample format is not one tifffile reads")
    # tifffile turns YCbCr into RGB where the JPEG codec does, and hands out the rest as it is stored.
    if page.photometric in _COLOUR_SPACES and page.compression not in _JPEG_IN_TIFF:
        raise BadPicture("unsupported", f"a TIFF whose colours are {tifffile.PHOTOMETRIC(page.photometric).name}")
    return page


_COLOUR_SPACES = (6, 8, 9, 10, 32844, 32845)  # YCbCr, L*a*b* in three codings, LogL, LogLuv
_JPEG_IN_TIFF = (6, 7)
_CMYK_STRIP_PX = 2**16
_MAX_TILE_PX = 2**24  # tiles are padded to their whole size, however small the picture


def _shape(page: tifffile.TiffPage) -> tuple[int, int, int]:
    if page.imagedepth != 1:
        raise BadPicture("unsupported", "a TIFF volume (several depths in one page)")
    # A damaged tag may hold a list where a number belongs.
    height, width, samples = int(page.imagelength), int(page.imagewidth), int(page.samplesperpixel)
    if page.is_tiled and int(page.tilewidth) * int(page.tilelength) > max(_MAX_TILE_PX, 4 * width * height):
        raise BadPicture("too_large", f"a TIFF of {width}x{height} in tiles of {page.tilewidth}x{page.tilelength}")
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        if samples != 1:
            raise BadPicture("unsupported", f"a TIFF with a palette and {samples} samples a pixel")
        return height, width, 3
    if page.photometric == tifffile.PHOTOMETRIC.SEPARATED:
        with_alpha = samples == 5 and tuple(page.extrasamples) == (tifffile.EXTRASAMPLE.UNASSALPHA,)
        if samples != 4 and not with_alpha:
            raise BadPicture(
                "unsupported", f"a TIFF of inks with {samples} samples a pixel, not CMYK or CMYK and alpha"
            )
        return height, width, samples - 1
    return height, width, samples


def _dtype(page: tifffile.TiffPage) -> str:
    """uint8 and uint16 stay; 1 bit becomes uint8; every other sample type becomes float32."""
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE or page.bitspersample == 1:
        return "uint8"
    name = np.dtype(page.dtype).name
    inks = page.photometric == tifffile.PHOTOMETRIC.SEPARATED
    if np.dtype(page.dtype).kind not in "uif" or (inks and name not in ("uint8", "uint16")):
        raise BadPicture("unsupported", f"TIFF samples of type {name}")
    return name if name in ("uint8", "uint16") else "float32"


def _orientation(page: tifffile.TiffPage) -> int:
    tag = page.tags.get(ORIENTATION_TAG)
    return int(tag.value) if tag is not None else 1


@_damage_is_no_defect
def tiff_pixels(data: bytes) -> NDArray[Any]:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = _page(file)
        shape = _shape(page)
        _check_segments(page, len(data))
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            pixels = page.asrgb()
            pixels = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
        else:
            pixels = page.asarray(maxworkers=1)
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and pixels.ndim == 3:
            pixels = np.moveaxis(pixels, 0, -1)
        if page.bitspersample == 1:
            pixels = pixels.astype(np.uint8) * 255
        elif 1 < page.bitspersample < 8:
            pixels = (pixels.astype(np.uint16) * 255 // (2**page.bitspersample - 1)).astype(np.uint8)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and pixels.dtype.kind == "u":
            pixels = np.iinfo(pixels.dtype).max - pixels
        if page.photometric == tifffile.PHOTOMETRIC.SEPARATED:
            pixels = _cmyk_to_rgb(pixels)
        if pixels.shape != (shape if pixels.ndim == 3 else shape[:2]):
            raise BadPicture("damaged", f"the TIFF's header says {shape}, and its pixels are {pixels.shape}")
        return upright(pixels.astype(_dtype(page), copy=False), _orientation(page))


def _check_segments(page: tifffile.TiffPage, num_bytes: int) -> None:
    """Strips or tiles that are not there: tifffile or a codec would fill up what is missing."""
    wanted, found = math.prod(page.chunked), len(page.dataoffsets)
    if found < wanted:
        raise BadPicture("damaged", f"the TIFF has {found} of {wanted} strips or tiles")
    for start, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        sparse = start == 0 and size == 0  # stored by GDAL for a tile that is all zero
        if start + size > num_bytes or (size == 0 and not sparse):
            raise BadPicture("truncated", f"a strip or tile of {size:,} bytes at {start:,}; the file has {num_bytes:,}")


def _cmyk_to_rgb(pixels: NDArray[Any]) -> NDArray[Any]:
    """CMYK (and alpha, which stays as it is) to RGB."""
    white = np.iinfo(pixels.dtype).max
    rgb = pixels[:, :, 1:].copy()
    # In strips: the whole picture as floats would take eight times its size.
    rows = max(_CMYK_STRIP_PX // pixels.shape[1], 1)
    for top in range(0, len(pixels), rows):
        paper = 1 - pixels[top : top + rows].astype(np.float64) / white
        rgb[top : top + rows, :, :3] = np.rint(paper[:, :, :3] * paper[:, :, 3:4] * white)
    return rgb
