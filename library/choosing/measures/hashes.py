"""Perceptual hashes of 64 bits: pictures that look alike have hashes that differ in few bits.

`dhash` compares neighbours (the difference hash of http://www.hackerfactor.com/blog/?/archives/529-Kind-of-Like-That.html)
and `phash` compares low frequencies with their median
(https://www.hackerfactor.com/blog/index.php?/archives/432-Looks-Like-It.html). Both have the bits of the imagehash
package in its order, so they can be compared with `int(str(imagehash.phash(image)), 16)`. A few bits differ from that
package's (in 500 photos at most 5 of 64, and none in 3 of 4), as a large picture is first reduced by the mean of whole
blocks of pixels, which is several times as fast, and as transparent pixels are white. Only whole numbers are compared,
so the bits do not depend on the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from library.imaging.picture import Pixels
from library.steps.arrays import white
from library.steps.colour import Grayscale

#: Changes when a hash of the same picture may change.
VERSION = 1
BITS = 64
_PHASH_PX, _DHASH_SIZE = 32, (9, 8)
_LOW = 8  # frequencies of each axis that phash keeps
# A picture is reduced by whole blocks to at least this many times phash's side, as in Pillow's `reducing_gap`.
_GAP = 3
# The cosines are whole numbers of this scale: sums of products stay below 2**53, where float64 is exact.
_SCALE = 2**16
_GREY = Grayscale()

Small: TypeAlias = NDArray[np.uint8]


def dhash(pixels: Pixels, *, flipped: bool = False) -> int:
    """Returns the difference hash of a picture: bit 63 compares the first two cells of the top row of 9 x 8.

    Args:
        pixels: height x width x channels; uint8, uint16 or float32.
        flipped: of the picture mirrored from left to right.
    """
    return int(dhashes([pixels], flipped=flipped)[0])


def phash(pixels: Pixels, *, flipped: bool = False) -> int:
    """Returns the DCT hash of a picture: bit 63 is its mean, bit 62 the lowest horizontal frequency.

    Args:
        pixels: height x width x channels; uint8, uint16 or float32.
        flipped: of the picture mirrored from left to right.
    """
    return int(phashes([pixels], flipped=flipped)[0])


def dhashes(pictures: Iterable[Pixels], *, flipped: bool = False) -> NDArray[np.uint64]:
    """Returns `dhash` of each picture."""
    return dhash_bits(_stack(pictures, dhash_cells), flipped=flipped)


def phashes(pictures: Iterable[Pixels], *, flipped: bool = False) -> NDArray[np.uint64]:
    """Returns `phash` of each picture."""
    return phash_bits(_stack(pictures, phash_cells), flipped=flipped)


@dataclass(frozen=True)
class Reduced:
    """A small grey version of a picture.

    Attributes:
        image: whole blocks of pixels, each reduced to its mean; the last ones may be narrower.
        width: of the picture in blocks, with the fraction of the last one.
        height: as `width`.
    """

    image: Image.Image
    width: float
    height: float

    def cells(self, size: tuple[int, int]) -> Small:
        """Returns a grey picture of that width and height, by Pillow's Lanczos filter."""
        return np.asarray(self.image.resize(size, Image.Resampling.LANCZOS, box=(0, 0, self.width, self.height)))


def reduced(pixels: Pixels) -> Reduced:
    """Returns the small grey version from which both hashes are made; values that are not finite count as black."""
    grey = _GREY(pixels)[:, :, 0]
    if grey.dtype != np.uint8:
        grey = np.nan_to_num(grey.astype(np.float32) * np.float32(255 / white(grey.dtype)), posinf=0, neginf=0)
        grey = np.rint(np.clip(grey, 0, 255)).astype(np.uint8)
    height, width = grey.shape
    across, down = (max(1, side // (_PHASH_PX * _GAP)) for side in (width, height))
    image = Image.fromarray(np.ascontiguousarray(grey)).reduce((across, down))
    return Reduced(image, width / across, height / down)


def phash_cells(picture: Reduced) -> Small:
    """Returns the 32 x 32 grey values from which `phash_bits` computes a hash."""
    return picture.cells((_PHASH_PX, _PHASH_PX))


def dhash_cells(picture: Reduced) -> Small:
    """Returns the 8 rows of 9 grey values from which `dhash_bits` computes a hash."""
    return picture.cells(_DHASH_SIZE)


def dhash_bits(cells: Small, *, flipped: bool = False) -> NDArray[np.uint64]:
    """Returns the difference hashes of N x 8 x 9 grey values."""
    cells = cells[:, :, ::-1] if flipped else cells
    return _packed(cells[:, :, 1:] > cells[:, :, :-1])


def phash_bits(cells: Small, *, flipped: bool = False) -> NDArray[np.uint64]:
    """Returns the DCT hashes of N x 32 x 32 grey values."""
    cells = cells[:, :, ::-1] if flipped else cells
    cosines = _cosines()
    low = cosines @ cells.astype(np.float64) @ cosines.T
    return _packed(low > np.median(low, axis=(1, 2), keepdims=True))


def distance(one: int, other: int) -> int:
    """Returns in how many bits two hashes differ."""
    return (int(one) ^ int(other)).bit_count()


def _stack(pictures: Iterable[Pixels], cells: Callable[[Reduced], Small]) -> Small:
    return np.stack([cells(reduced(pixels)) for pixels in pictures])


def _packed(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Returns N x 8 x 8 bits as N numbers, the first bit as the most significant."""
    packed = np.packbits(bits.reshape(len(bits), BITS), axis=1)
    return packed.view(">u8").astype(np.uint64).reshape(len(bits))


@cache
def _cosines() -> NDArray[np.float64]:
    """Returns the first 8 rows of the DCT-II of 32 values, as whole numbers."""
    angles = np.outer(np.arange(_LOW), 2 * np.arange(_PHASH_PX) + 1) * np.pi / (2 * _PHASH_PX)
    return np.rint(np.cos(angles) * _SCALE)
