import numpy as np
import pytest

from library.errors import BadPicture
from library.steps.base import leaves_in_place
from tests.step_examples import DTYPES, WHITE, assert_close, flat, frozen, picture, step


@pytest.mark.parametrize("dtype", DTYPES)
def test_grayscale_is_the_luma_of_bt601(dtype: str) -> None:
    pixels = picture(dtype)
    expected = pixels.astype(np.float64) @ [0.299, 0.587, 0.114]
    result = step("grayscale")(pixels)
    assert result.shape == (*pixels.shape[:2], 1)
    assert np.abs(result[:, :, 0] - expected).max() <= (1 if WHITE[dtype] > 1 else 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_grayscale_of_many_bands_is_their_mean(dtype: str) -> None:
    pixels = picture(dtype, channels=7)
    expected = pixels.astype(np.float64).mean(axis=2, keepdims=True)
    assert np.abs(step("grayscale")(pixels) - expected).max() <= (0.5 if WHITE[dtype] > 1 else 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_rgb_and_grayscale_are_the_identity_on_their_own_results(channels: int, dtype: str) -> None:
    for text in ("rgb", "grayscale"):
        once = step(text)(picture(dtype, channels))
        np.testing.assert_array_equal(step(text)(once), once)


@pytest.mark.parametrize("dtype", DTYPES)
def test_grey_to_rgb_and_back_keeps_the_picture(dtype: str) -> None:
    grey = picture(dtype, channels=1)
    assert_close(step("grayscale")(step("rgb")(grey)), grey, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [2, 4])
def test_opaque_pixels_keep_their_colour_clear_ones_get_the_background(channels: int, dtype: str) -> None:
    pixels = picture(dtype, channels).copy()
    pixels[:, :, -1] = WHITE[dtype]
    pixels[:5, :, -1] = 0
    result = step("rgb(background=[0, 1, 0])")(frozen(pixels))
    green = np.asarray([0, WHITE[dtype], 0], dtype)
    np.testing.assert_array_equal(result[:5], np.broadcast_to(green, result[:5].shape))
    np.testing.assert_array_equal(result[5:], np.broadcast_to(pixels[5:, :, :-1], result[5:].shape))


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_transparent_pixels_are_halfway_to_the_background(dtype: str) -> None:
    pixels = flat(0.5, dtype, channels=4).copy()
    result = step("rgb(background=[1, 1, 1])")(pixels)
    alpha = float(pixels[0, 0, 3]) / WHITE[dtype]
    expected = float(pixels[0, 0, 0]) * alpha + WHITE[dtype] * (1 - alpha)
    np.testing.assert_allclose(result, expected, atol=0.51 if WHITE[dtype] > 1 else 1e-6)


def test_rgb_refuses_more_than_four_channels() -> None:
    with pytest.raises(BadPicture, match=r"wrong_channels.*5 channels"):
        step("rgb")(picture(channels=5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_channels_picks_repeats_and_reorders(dtype: str) -> None:
    bands = picture(dtype, channels=6)
    result = step("channels([3, 2, 1, 3])")(bands)
    np.testing.assert_array_equal(result, bands[:, :, [3, 2, 1, 3]])
    assert result.flags.c_contiguous


def test_channels_refuses_a_picture_without_the_band() -> None:
    with pytest.raises(BadPicture, match="wrong_channels: band 3 does not exist; the picture has 3 channels"):
        step("channels([0, 3])")(picture(channels=3))


@pytest.mark.parametrize(
    ("text", "in_place"),
    [
        ("invert", True),
        ("convolve([[1, 2], [3, 4]])", True),
        ("convolve([[[1]], [[2]], [[3]]], offset=0.5)", True),
        ("convolve([[1, 0, 1]], padding=1)", False),
        ("convolve([[1, 0, 1]], stride=2)", False),
        ('convolve([[1, 0, 1]], padding="valid")', False),
        ("resize(58)", False),
        ("center_crop(33)", False),
        ("crop(top=0, left=0, height=97, width=61)", False),
        ("rotate90(turns=2)", False),
        ("pad_square", False),
        ("flip", False),
    ],
)
def test_a_step_leaves_everything_in_place_by_its_parameters(text: str, in_place: bool) -> None:
    assert leaves_in_place(step(text)) == in_place


def test_a_kernels_answer_can_be_an_added_channel() -> None:
    pixels = picture()
    text = "convolve([[[0.2]], [[0.5]], [[0.3]]])"
    result = step(f"with_channels({text})")(pixels)
    assert result.shape == (*pixels.shape[:2], 4)
    np.testing.assert_array_equal(result[:, :, 3:], step(text)(pixels))
