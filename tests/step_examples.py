"""Generated pictures, and at least one text for every registered step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.pipeline import Pipeline

DTYPES = ("uint8", "uint16", "float32")
WHITE = {"uint8": 255, "uint16": 65535, "float32": 1.0}

# Channels are processed independently; height, width, channels and dtype do not change.
PER_CHANNEL = (
    "invert",
    "binarize",
    'binarize(method="fixed", threshold=0.4)',
    'binarize(method="adaptive", size=9, offset=0.02)',
    "equalize",
    "clahe(clip_limit=3, tiles=4)",
    "gamma(2.2)",
    "gamma(gamma=0.5)",
    "contrast_stretch",
    "contrast_stretch(low_percentile=0, high_percentile=100)",
    "box_blur(size=5)",
    'gaussian_blur(sigma=1.5, border="replicate")',
    "median_blur",
    "median_blur(size=7)",
    "sharpen(amount=0.7)",
    "laplacian_sharpen(amount=0.3, neighbors=8)",
    "edges",
    'edges(direction="vertical", operator="prewitt")',
    'edges(direction="horizontal", operator="scharr", gain=2)',
    'edges(operator="laplacian")',
    "canny(low=0.05, high=0.1)",
    "gabor(wavelength=4)",
    "gabor(wavelength=5, angle=90, phase=90, aspect=1)",
    "erode",
    'dilate(size=5, shape="disk")',
    'open(size=3, shape="cross")',
    "close(size=5)",
    "convolve([[0, 1, 0], [1, 2, 1]], normalize=True)",
    "convolve([[-1, 0, 1], [-1, 0, 1]], offset=0.5)",
)

# Channels are processed independently; the size changes.
RESIZING = (
    "convolve([[1, 0, -1]], stride=2, padding=1)",
    'convolve([[1, 2], [3, 4]], padding="valid", dilation=2, normalize=True)',
    "max_pool(2)",
    "avg_pool(size=3, stride=2)",
    "resize(10)",
    'resize([40, 9], mode="exact", interpolation="cubic")',
    'resize(11, mode="fit", interpolation="nearest")',
    "resize(64, enlarge=False)",
    "center_crop([6, 8])",
    "crop(top=1, left=2, height=5, width=4)",
    "pad_square(fill=0.5)",
    'pad_square(border="reflect")',
    "rotate90",
    "rotate90(turns=2)",
)

# Channels are mixed, or their number changes.
ACROSS_CHANNELS = (
    "grayscale",
    "rgb(background=[0, 0.5, 1])",
    "channels([0, 0])",
    "bilateral(sigma_space=1)",
    "denoise(patch_size=3, search_size=5)",
    "blur_background(sigma=3)",
    "with_channels(invert | equalize)",
)

FILTERS = PER_CHANNEL + RESIZING + ACROSS_CHANNELS

SELECTORS = (
    "min_size(short_side=10)",
    "max_size(long_side=4000)",
    "aspect_ratio_between(low=0.5, high=2)",
    'keep_labels(["cat", "dog"])',
    'drop_labels(["it\'s \\"odd\\""])',
    'keep_formats(["jpeg", "png"])',
    "keep_channels([1, 3])",
    "file_size_between(min_bytes=100)",
    "sample(0.1, seed=7)",
    'score_at_least("cat", 0.9)',
    "not_blank",
    "not_blurry",
    "not_dark(lights=0.3)",
    "not_bright",
    "min_entropy(3)",
    "colourfulness_between(low=5, high=90)",
    "sharp_at_least(variance=50)",
    "brightness_between(low=0.1, high=0.9)",
    "contrast_at_least(0.05)",
)

AUGMENTATIONS = (
    "rotate(15)",
    'rotate([-90, 20.5], p=0.5, fill="edge")',
    "flip",
    'flip(p=1, direction="both")',
    "shift(x=0.2, y=0.1)",
    'shift(x=1, y=0.5, fill="wrap")',
    "shear(20, fill=0.5)",
    'shear(10, axis="both", fill="reflect")',
    "zoom(0.3)",
    'zoom([0.5, 2], fill="edge")',
    "brightness(0.4)",
    "contrast([0.5, 1.5])",
    "saturation(0.6)",
    "hue(0.3)",
    "hue([-0.1, 0.2])",
    "channel_shift(0.2)",
    "random_crop(8)",
    'random_crop([20, 26], padding=4, fill="reflect")',
    "random_resized_crop(9)",
    "random_resized_crop([6, 40], scale=[0.5, 1], ratio=[1, 1])",
    "random_erase(p=1)",
    "random_erase(p=1, fill=0.5)",
    "gaussian_noise(sigma=0.05)",
    "random_blur",
    "jpeg_quality(low=10, high=60)",
    "randaugment",
    'randaugment(num_ops=3, magnitude=30, fill="edge")',
    "trivial_augment",
    "sometimes(0.5, gaussian_blur(sigma=1) | rotate(10))",
)


def step(text: str) -> Any:
    """The single step of a text."""
    (only,) = Pipeline.parse(text).steps
    return only


def picture(dtype: str = "uint8", channels: int = 3, height: int = 20, width: int = 26, seed: int = 0) -> NDArray[Any]:
    """Noise with a bright box in the middle, read-only."""
    values = np.random.default_rng(seed).random((height, width, channels)) * 0.3
    values[height // 4 : height - height // 4, width // 4 : width - width // 4] += 0.6
    return frozen((values * WHITE[dtype]).astype(dtype))


def flat(value: float, dtype: str = "uint8", channels: int = 3, height: int = 12, width: int = 15) -> NDArray[Any]:
    """A picture of one value, a fraction of white; read-only."""
    return frozen(np.full((height, width, channels), value * WHITE[dtype]).astype(dtype))


def frozen(pixels: NDArray[Any]) -> NDArray[Any]:
    pixels.flags.writeable = False
    return pixels


def assert_close(got: NDArray[Any], expected: NDArray[Any], steps: float = 1, rtol: float = 1e-5) -> None:
    """Asserts equal shape and dtype, integers within `steps` (SIMD rounds ties differently), floats within `rtol`."""
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    if got.dtype == np.float32:
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol)
    else:
        assert np.abs(got.astype(np.int64) - expected).max(initial=0) <= steps
