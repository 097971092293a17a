"""Features of pictures without a trained network: how much of many small whitened patches each quarter contains.

The method is that of Coates and Ng, "The Importance of Encoding Versus Training with Sparse Coding and Vector
Quantization" (ICML 2011): filters are patches cut from the pictures themselves, whitened; each position is encoded by
a soft threshold, and the codes are summed over the four quarters of the picture. A linear classifier on them is good
for digits and fair for small photos; a pretrained network is better wherever there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from library.imaging.picture import Pixels
from library.pipeline.inputs import InputPipeline

#: Changes when the features of the same picture may change.
VERSION = 2
#: Side of the pictures that are encoded, and of a patch, in pixels.
SIDE_PX, PATCH_PX = 32, 6
FILTERS = 192
#: Pictures from which filters are learned, and patches of each.
SAMPLE_PICTURES, _PATCHES_EACH = 512, 40
# Of the paper, for pixels from 0 to 255: regularises the contrast of a patch, and the whitening.
_CONTRAST, _WHITENING, _THRESHOLD = 10.0, 0.1, 0.25


def patch_inputs(channels: int) -> InputPipeline:
    """Returns the input pipeline of the features, for grey (1) or colour (3) pictures."""
    fit = f'resize([{SIDE_PX}, {SIDE_PX}], mode="exact")'
    return InputPipeline.parse("grayscale" if channels == 1 else "rgb", fit, (SIDE_PX, SIDE_PX), channels)


@dataclass(frozen=True)
class PatchFilters:
    """Filters and the whitening that patches go through before them.

    Attributes:
        mean: of contrast-normalised patches, D values.
        filters: D x F, whitening included: the product with a contrast-normalised patch is its code.
    """

    mean: NDArray[np.float32]
    filters: NDArray[np.float32]

    @classmethod
    def learn(cls, pictures: Sequence[NDArray[np.uint8]], *, filters: int = FILTERS, seed: int = 0) -> PatchFilters:
        """Cuts filters from pictures.

        Args:
            pictures: 32 x 32 x channels each, at least one.
            filters: how many.
            seed: decides which patches.
        """
        rng = np.random.default_rng(seed)
        patches = np.concatenate([rng.permutation(_patches(picture))[:_PATCHES_EACH] for picture in pictures])
        patches = _normalised(patches.astype(np.float32))
        mean = patches.mean(0)
        values, vectors = np.linalg.eigh(np.cov((patches - mean).T))
        whitening = (vectors / np.sqrt(np.maximum(values, 0) + _WHITENING)) @ vectors.T
        chosen = (patches[rng.integers(0, len(patches), filters)] - mean) @ whitening
        chosen /= np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-6)
        return cls(mean, (whitening @ chosen.T).astype(np.float32))

    @property
    def dimensions(self) -> int:
        """Length of a feature vector: two signs in four quarters for each filter."""
        return 8 * self.filters.shape[1]

    def encode(self, picture: Pixels) -> NDArray[np.float32]:
        """Returns the features of a picture.

        Args:
            picture: 32 x 32 x channels, from 0 to 255 whatever its dtype, as the filters are made for this scale.

        Returns:
            `dimensions` values from 0.
        """
        across = SIDE_PX - PATCH_PX + 1
        codes = (_normalised(_patches(picture).astype(np.float32)) - self.mean) @ self.filters
        codes = codes.reshape(across, across, -1)
        half = across // 2
        quarters = [codes[rows, columns] for rows in _halves(half) for columns in _halves(half)]
        parts = [np.maximum(sign * quarter - _THRESHOLD, 0).mean((0, 1)) for quarter in quarters for sign in (1, -1)]
        return np.concatenate(parts)


def _halves(half: int) -> tuple[slice, slice]:
    return slice(0, half), slice(half, None)


def _patches(picture: Pixels) -> Pixels:
    """Returns every patch of a picture as a row."""
    windows = np.lib.stride_tricks.sliding_window_view(picture, (PATCH_PX, PATCH_PX), (0, 1))
    return windows.reshape(windows.shape[0] * windows.shape[1], -1)


def _normalised(patches: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns patches of mean 0 and standard deviation near 1."""
    centred = patches - patches.mean(1, keepdims=True)
    return centred / np.sqrt(centred.var(1, keepdims=True) + np.float32(_CONTRAST))
