"""Reads TIFF with tifffile; the codec imports this module on first use, because few workers need it.

The decoded dtype depends on the type of the stored samples and on their depth in bits:

| stored | decoded |
|---|---|
| unsigned, 1 to 8 bits | uint8 over the full range: round(value x 255 / (2^bits - 1)) |
| unsigned, 9 to 16 bits | uint16 over the full range: round(value x 65535 / (2^bits - 1)) |
| unsigned of more than 16 bits, signed, float | float32, the same value |

Unsigned samples whose 0 is white (MinIsWhite) are inverted first: 2^bits - 1 - value. Colours that are premultiplied by
their alpha are divided by it. Colour maps, CMYK and the YCbCr of JPEG become RGB.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, WebPImagePlugin
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, PLANARCONFIG

from library.errors import BadPicture
from library.imaging.codec.conversions import cmyk_to_rgb, divided_by_alpha, full_range
from library.imaging.codec.header import ORIENTATION_TAG, Header, header_of, upright
from library.imaging.codec.jpeg import jpeg_work_px
from library.imaging.codec.jpeg2000 import PX_NS as JPEG2000_PX_NS
from library.imaging.codec.jpeg2000 import jpeg2000_work_px
from library.imaging.codec.png import png_header

_T = TypeVar("_T")


def _tag_damage_refused(read: Callable[[bytes], _T]) -> Callable[[bytes], _T]:
    """Turns AttributeError, which tifffile raises for some damaged tags, into BadPicture; elsewhere it means a bug."""

    @functools.wraps(read)
    def guarded(data: bytes) -> _T:
        try:
            return read(data)
        except AttributeError as error:
            raise BadPicture("damaged", str(error)) from error

    return guarded


# -- the header -------------------------------------------------------------------------------------------------------

_COLOURS = {  # number of colour samples, by photometric; extra samples follow them
    PHOTOMETRIC.MINISWHITE: 1,
    PHOTOMETRIC.MINISBLACK: 1,
    PHOTOMETRIC.MASK: 1,
    PHOTOMETRIC.PALETTE: 1,
    PHOTOMETRIC.RGB: 3,
    PHOTOMETRIC.YCBCR: 3,
    PHOTOMETRIC.SEPARATED: 4,
}
_SENSOR_COLOURS = (PHOTOMETRIC.CFA, PHOTOMETRIC.LINEAR_RAW)
_JPEG = (COMPRESSION.OJPEG, COMPRESSION.JPEG)
_SUB_IFDS_TAG, _DNG_VERSION_TAG = 330, 50706
_MAX_DIRECTORIES = 32  # that are read; a pyramid has about ten
_MAX_TILE_PX = 2**24  # tiles are padded to their whole size, however small the picture
_RAW = "a camera raw file; develop it to JPEG or TIFF first"


@_tag_damage_refused
def tiff_header(data: bytes) -> Header:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        pages = _pages(file)
        page = next(pages)
        _check(page, data)
        height, width, channels = _shape(page)
        work_px, px_ns = _work(page, data)
        header = header_of(
            "tiff", width, height, channels, _dtype(page), _orientation(page), work_px=work_px, px_ns=px_ns
        )
        return dataclasses.replace(header, has_more_pages=next(pages, None) is not None)


def _pages(file: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    """Yields the pages that are not a thumbnail, a pyramid level or a mask; the first page if there are none."""
    first, has_picture = file.pages[0], False
    for number in range(_MAX_DIRECTORIES):
        try:
            page = file.pages[number]
        except Exception:  # no more pages, or a damaged one; that must not cost the first page
            break
        if isinstance(page, tifffile.TiffPage) and not page.is_reduced and not page.is_mask:
            has_picture = True
            yield page
    if not has_picture:
        if not isinstance(first, tifffile.TiffPage) or _SUB_IFDS_TAG in first.tags:
            raise BadPicture("unsupported", _RAW)
        yield first


def _check(page: tifffile.TiffPage, data: bytes) -> None:
    """Refuses what tifffile would decode wrongly or not at all."""
    if _DNG_VERSION_TAG in page.tags or data[8:10] == b"CR" or page.photometric in _SENSOR_COLOURS:
        raise BadPicture("unsupported", _RAW)
    dtype, bits, photometric = page.dtype, page.bitspersample, page.photometric
    if dtype is None or dtype.kind not in "buif" or np.ndim(bits):  # a tuple if samples differ in depth
        raise BadPicture(
            "unsupported", f"a TIFF whose samples have {bits} bits and the type {_name(page.sampleformat)}"
        )
    if photometric not in _COLOURS:
        raise BadPicture("unsupported", f"a TIFF whose colours are {_name(photometric)}")
    planes = page.planarconfig == PLANARCONFIG.SEPARATE
    # tifffile returns RGB for YCbCr coded as JPEG, and other YCbCr as it is stored.
    if photometric == PHOTOMETRIC.YCBCR and (page.compression not in _JPEG or (planes and page.subsampling != (1, 1))):
        raise BadPicture(
            "unsupported", "a TIFF whose colours are YCBCR but not coded as JPEG, or in planes of two sizes"
        )
    if photometric == PHOTOMETRIC.MINISWHITE and dtype.kind in "if":
        raise BadPicture("unsupported", f"a TIFF of {dtype} where 0 is white (MinIsWhite) has no value for black")
    if int(page.compression) not in tifffile.TIFF.DECOMPRESSORS:  # a damaged tag may hold a list
        raise BadPicture("unsupported", f"a TIFF compressed as {_name(page.compression)}")
    if page.imagedepth != 1:
        raise BadPicture("unsupported", "a TIFF volume (several depth slices in one page)")
    if dtype.kind == "i" and _premultiplied(page):
        raise BadPicture("unsupported", f"a TIFF of {dtype} whose colours are premultiplied by alpha")
    if photometric in (PHOTOMETRIC.PALETTE, PHOTOMETRIC.SEPARATED) and (dtype.kind not in "bu" or bits > 16):
        raise BadPicture("unsupported", f"a TIFF whose {_name(photometric)} samples are {dtype}")


def _name(value: Any) -> str:
    return str(getattr(value, "name", value))


def _shape(page: tifffile.TiffPage) -> tuple[int, int, int]:
    """Height, width and channels, as stored."""
    height, width, samples = int(page.imagelength), int(page.imagewidth), int(page.samplesperpixel)
    if page.is_tiled and int(page.tilewidth) * int(page.tilelength) > max(_MAX_TILE_PX, 4 * width * height):
        raise BadPicture("too_large", f"a TIFF of {width}x{height} in tiles of {page.tilewidth}x{page.tilelength}")
    if page.photometric not in (PHOTOMETRIC.PALETTE, PHOTOMETRIC.SEPARATED):
        return height, width, samples
    colours = _COLOURS[page.photometric]
    with_alpha = samples == colours + 1 and tuple(page.extrasamples) == (EXTRASAMPLE.UNASSALPHA,)
    if samples != colours and not with_alpha:
        kind = "a palette" if colours == 1 else "inks"
        raise BadPicture("unsupported", f"a TIFF of {kind} with {samples} samples a pixel, the last not straight alpha")
    return height, width, 3 + with_alpha


def _dtype(page: tifffile.TiffPage) -> str:
    """The type of the decoded samples; see the module's table."""
    bits, kind = page.bitspersample, np.dtype(page.dtype).kind
    if page.photometric == PHOTOMETRIC.PALETTE or (kind in "bu" and bits <= 8):
        return "uint8"
    return "uint16" if kind == "u" and bits <= 16 else "float32"


def _orientation(page: tifffile.TiffPage) -> int:
    tag = page.tags.get(ORIENTATION_TAG)
    return int(tag.value) if tag is not None else 1


def _premultiplied(page: tifffile.TiffPage) -> bool:
    return EXTRASAMPLE.ASSOCALPHA in page.extrasamples


# -- the work ---------------------------------------------------------------------------------------------------------

_SEGMENT_PX = 5000  # fixed cost of a strip or tile
_MAX_SEGMENTS = 200_000
_MAX_OVERLAP = 2
_PX_NS = 12.0
#: Work per pixel of the codecs whose output cannot be larger than the strip or tile.
_CODECS = {
    COMPRESSION.NONE: 1,
    COMPRESSION.PACKBITS: 1,
    COMPRESSION.ZSTD: 1,
    34926: 1,
    COMPRESSION.LERC: 2,
    COMPRESSION.LZW: 2,
    COMPRESSION.ADOBE_DEFLATE: 2,
    COMPRESSION.DEFLATE: 2,
    COMPRESSION.PIXTIFF: 2,
    COMPRESSION.CCITTRLE: 4,
    COMPRESSION.CCITTFAX3: 4,
    COMPRESSION.CCITTFAX4: 4,
    COMPRESSION.LZMA: 5,
}


def _work(page: tifffile.TiffPage, data: bytes) -> tuple[int, float]:
    """`Header.work_px` and `Header.px_ns`.

    Strips and tiles are decoded whole, however little of them the picture needs. Some contain a file of another format,
    whose own header gives the work.
    """
    segments = max([math.prod(page.chunked), *(page.tags[tag].count for tag in _SEGMENT_TAGS if tag in page.tags)])
    if segments > _MAX_SEGMENTS:
        raise BadPicture("too_much_work", f"the TIFF has more than {_MAX_SEGMENTS:,} strips or tiles")
    samples = math.prod(page.chunked) * math.prod(page.chunks) * max(np.dtype(page.dtype).itemsize // 2, 1)
    pixels = max(samples // 3, int(page.imagewidth) * int(page.imagelength))
    compression = int(page.compression)
    if compression in _CODECS:
        return _CODECS[compression] * pixels + _SEGMENT_PX * segments, _PX_NS
    read, px_ns = _EMBEDDED.get(compression, (None, 0.0))
    if read is None:
        raise BadPicture("unsupported", f"a TIFF compressed as {_name(page.compression)}")
    # Equal tiles may share their bytes, which are then read once; other overlaps are limited.
    spans = Counter(span for span in zip(page.dataoffsets, page.databytecounts, strict=False) if span[1])
    if sum(size for _, size in spans) > _MAX_OVERLAP * len(data):
        raise BadPicture("too_much_work", "a TIFF whose strips or tiles share most of their bytes")
    embedded = sum(times * read(data[start : start + size]) for (start, size), times in spans.items())
    return embedded + pixels + _SEGMENT_PX * segments, px_ns


_SEGMENT_TAGS = (273, 279, 324, 325)  # offsets and byte counts of strips and of tiles


def _png_work_px(part: bytes) -> int:
    return png_header(part).work_px


def _webp_work_px(part: bytes) -> int:
    image = WebPImagePlugin.WebPImageFile(io.BytesIO(part))
    return image.width * image.height


_EMBEDDED: dict[int, tuple[Callable[[bytes], int], float]] = {
    **dict.fromkeys((6, 7, 33007, 34892), (jpeg_work_px, _PX_NS)),
    **dict.fromkeys((33003, 33004, 33005, 34712), (jpeg2000_work_px, JPEG2000_PX_NS)),
    COMPRESSION.PNG: (_png_work_px, _PX_NS),
    **dict.fromkeys((34927, 50001), (_webp_work_px, 75.0)),
}


# -- the pixels -------------------------------------------------------------------------------------------------------


@_tag_damage_refused
def tiff_pixels(data: bytes) -> NDArray[Any]:
    # Values beyond float32 become infinite; NumPy's warning would not name the picture.
    with np.errstate(all="ignore"), tifffile.TiffFile(io.BytesIO(data)) as file:
        page = next(_pages(file))
        _check_segments(page, len(data))
        pixels = page.asarray(maxworkers=1)
        if page.planarconfig == PLANARCONFIG.SEPARATE and pixels.ndim == 3:
            pixels = np.moveaxis(pixels, 0, -1)
            if page.photometric == PHOTOMETRIC.YCBCR:
                pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels), "YCbCr").convert("RGB"))
        pixels = (
            _palette_colours(pixels, page) if page.photometric == PHOTOMETRIC.PALETTE else _full_range(pixels, page)
        )
        if page.photometric == PHOTOMETRIC.SEPARATED:
            pixels = cmyk_to_rgb(pixels)
        elif _premultiplied(page):
            pixels = _divided_by_alpha(pixels, page)
        return upright(pixels.astype(_dtype(page), copy=False), _orientation(page))


def _check_segments(page: tifffile.TiffPage, num_bytes: int) -> None:
    """Refuses a TIFF with missing strips or tiles, which tifffile or a codec would fill with invented pixels."""
    expected, present = math.prod(page.chunked), len(page.dataoffsets)
    if present < expected:
        raise BadPicture("damaged", f"the TIFF has {present} of {expected} strips or tiles")
    for start, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        sparse = start == 0 and size == 0  # GDAL's mark for a tile of zeros
        if start + size > num_bytes or (size == 0 and not sparse):
            raise BadPicture("truncated", f"a strip or tile of {size:,} bytes at {start:,}; the file has {num_bytes:,}")


def _full_range(pixels: NDArray[Any], page: tifffile.TiffPage) -> NDArray[Any]:
    """Stretches unsigned samples to the full range of 8 or 16 bits, with 0 as black; other samples are unchanged."""
    bits, white_is_zero = page.bitspersample, page.photometric == PHOTOMETRIC.MINISWHITE
    if pixels.dtype.kind not in "bu":
        return pixels
    if bits > 16:
        return 2**bits - 1 - pixels if white_is_zero else pixels
    return full_range(pixels, bits, inverted=white_is_zero)


def _palette_colours(pixels: NDArray[Any], page: tifffile.TiffPage) -> NDArray[Any]:
    """Replaces palette indices by their colours; alpha beside the indices is kept."""
    palette = np.asarray(page.colormap).reshape(3, -1)
    # Entries have 16 bits, but some writers store 8-bit values in them; libtiff checks this too.
    colours = np.ascontiguousarray((palette if palette.max() < 256 else palette >> 8).astype(np.uint8).T)
    if pixels.ndim == 2:
        return np.take(colours, pixels.astype(np.uint16), axis=0)
    alpha = _full_range(pixels[:, :, 1:], page)
    alpha = alpha if alpha.dtype == np.uint8 else (alpha >> 8).astype(np.uint8)
    return np.concatenate([np.take(colours, pixels[:, :, 0].astype(np.uint16), axis=0), alpha], -1)


def _divided_by_alpha(pixels: NDArray[Any], page: tifffile.TiffPage) -> NDArray[Any]:
    colours = _COLOURS[PHOTOMETRIC(page.photometric)]
    alpha = colours + tuple(page.extrasamples).index(EXTRASAMPLE.ASSOCALPHA)
    if pixels.dtype.kind != "u":
        opaque = 1
    elif page.bitspersample > 16:  # not stretched
        opaque = 2**page.bitspersample - 1
    else:
        opaque = np.iinfo(pixels.dtype).max
    return divided_by_alpha(pixels, colours, alpha, opaque)
