"""Properties of every filter, for every dtype and number of channels."""

import contextlib

import cv2
import numpy as np
import pytest

from library.errors import BadPicture
from library.steps import REGISTRY
from tests.step_examples import ACROSS_CHANNELS, DTYPES, FILTERS, PER_CHANNEL, RESIZING, assert_close, picture, step

CHANNELS = (1, 3, 4, 7)


def takes(text: str, channels: int) -> bool:
    return not (text.startswith("rgb") and channels > 4)


CASES = [
    (text, dtype, channels) for text in FILTERS for dtype in DTYPES for channels in CHANNELS if takes(text, channels)
]


def test_every_registered_filter_has_an_example() -> None:
    filters = {name for name, cls in REGISTRY.items() if cls.kind == "filter"}
    assert filters == {step(text).name for text in FILTERS}


@pytest.mark.parametrize(("text", "dtype", "channels"), CASES)
def test_a_filter_keeps_the_dtype_and_does_not_change_its_input(text: str, dtype: str, channels: int) -> None:
    pixels = picture(dtype, channels)
    before = pixels.copy()
    result = step(text)(pixels)
    assert result.ndim == 3
    assert result.dtype == pixels.dtype
    assert np.isfinite(result).all()
    if text in PER_CHANNEL:
        assert result.shape == pixels.shape
    elif text in RESIZING:
        assert result.shape[2] == channels
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("text", FILTERS)
@pytest.mark.parametrize("channels", [1, 4])
def test_a_filter_accepts_any_memory_layout(text: str, channels: int) -> None:
    pixels = picture(channels=channels)
    mirrored_view = np.asfortranarray(pixels[::-1])[::-1]
    np.testing.assert_array_equal(step(text)(mirrored_view), step(text)(pixels))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", PER_CHANNEL + RESIZING)
def test_seven_channels_are_filtered_like_each_one_separately(text: str, dtype: str) -> None:
    pixels = picture(dtype, channels=7)
    together = step(text)(pixels)
    apart = np.concatenate([step(text)(pixels[:, :, [channel]]) for channel in range(7)], axis=2)
    assert_close(together, apart)


@pytest.mark.parametrize("text", PER_CHANNEL + RESIZING)
def test_more_channels_than_opencv_supports_are_processed_in_groups(text: str) -> None:
    pixels = picture(channels=130, height=12, width=14)
    result = step(text)(pixels)
    assert_close(result[:, :, 129:], step(text)(pixels[:, :, 129:]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", FILTERS)
def test_the_result_depends_neither_on_chance_nor_on_threads(text: str, dtype: str) -> None:
    pixels = picture(dtype, height=40, width=50)
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(4)
        cv2.setRNGSeed(99)
        first = step(text)(pixels)
        cv2.setNumThreads(1)
        np.testing.assert_array_equal(step(text)(pixels), first)
    finally:
        cv2.setNumThreads(threads)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (8, 8)])
@pytest.mark.parametrize("text", FILTERS)
def test_a_tiny_picture_is_filtered_or_refused_as_too_small(text: str, shape: tuple[int, int]) -> None:
    for dtype in DTYPES:
        for channels in (1, 3):
            reason, result = None, None
            try:
                result = step(text)(picture(dtype, channels, *shape))
            except BadPicture as error:
                reason = error.reason
            if result is None:
                assert reason == "too_small"
            else:
                assert (result.ndim, result.dtype) == (3, dtype)
                assert min(result.shape) >= 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("text", FILTERS)
def test_nan_and_infinity_are_passed_on_or_refused(text: str, value: float) -> None:
    pixels = picture("float32").copy()
    pixels[7, 8, 0] = value
    with contextlib.suppress(BadPicture):
        assert step(text)(pixels).dtype == np.float32


@pytest.mark.parametrize("text", [text for text in FILTERS if text not in ACROSS_CHANNELS])
def test_float_pictures_may_hold_any_values(text: str) -> None:
    pixels = picture("float32") * np.float32(2000) - np.float32(500)
    assert np.isfinite(step(text)(pixels)).all()


@pytest.mark.parametrize("text", ["gaussian_blur(2)", "box_blur", "sharpen", "convolve([[1, 2, 1]])", "avg_pool(2)"])
def test_a_linear_filter_does_not_clip_floats(text: str) -> None:
    pixels = picture("float32")
    scaled = step(text)(pixels * np.float32(1000))
    np.testing.assert_allclose(scaled, step(text)(pixels) * 1000, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", [text for text in PER_CHANNEL if text.split("(")[0] not in ("convolve", "clahe")])
def test_a_symmetric_filter_commutes_with_a_flip(text: str, dtype: str) -> None:
    pixels = picture(dtype)
    assert_close(step(text)(pixels[:, ::-1]), step(text)(pixels)[:, ::-1])
    assert_close(step(text)(pixels[::-1]), step(text)(pixels)[::-1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "text",
    [
        "box_blur(7)",
        "gaussian_blur(3)",
        "median_blur",
        "median_blur(9)",
        "bilateral",
        "denoise",
        "open(5)",
        'close(7, "disk")',
        "sharpen(2)",
        "laplacian_sharpen(3)",
        "avg_pool(3)",
        "max_pool(2)",
        "resize(5)",
        'resize(31, interpolation="cubic")',
        "equalize",
        "contrast_stretch",
        "convolve([[1, 2], [0, 4]], normalize=True)",
    ],
)
def test_a_flat_picture_stays_flat(text: str, dtype: str) -> None:
    value = picture(dtype)[10, 10]
    result = step(text)(np.broadcast_to(value, (12, 15, 3)))
    assert_close(result, np.broadcast_to(value, result.shape).copy(), steps=0)
