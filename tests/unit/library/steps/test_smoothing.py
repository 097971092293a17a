import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from library.errors import BadPicture
from tests.step_examples import DTYPES, WHITE, assert_close, flat, frozen, picture, step


def impulse(dtype: str, channels: int = 1) -> np.ndarray:
    pixels = np.zeros((21, 21, channels), dtype)
    pixels[10, 10] = WHITE[dtype]
    return frozen(pixels)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gaussian_blur_equals_opencvs(dtype: str) -> None:
    pixels = picture(dtype)
    np.testing.assert_array_equal(step("gaussian_blur(2)")(pixels), cv2.GaussianBlur(pixels, (0, 0), 2))


def test_gaussian_blur_of_an_impulse_is_the_bell_curve() -> None:
    result = step("gaussian_blur(1.5)")(impulse("float32"))[10, :, 0]
    bell = np.exp(-(np.arange(-10, 11) ** 2) / (2 * 1.5**2))
    np.testing.assert_allclose(result / result.max(), np.where(np.abs(np.arange(-10, 11)) <= 6, bell, 0), atol=1e-4)


@given(st.integers(1, 5), st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_box_blur_is_the_mean_of_its_window(half: int, seed: int) -> None:
    pixels = picture("float32", channels=1, seed=seed)
    size = 2 * half + 1
    expected = ndimage.uniform_filter(pixels[:, :, 0].astype(np.float64), size, mode="mirror")
    np.testing.assert_allclose(step(f"box_blur({size})")(pixels)[:, :, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", ["gaussian_blur(2)", "box_blur(5)", "median_blur", "bilateral", "denoise(1)"])
def test_smoothing_reduces_noise_and_keeps_the_mean(text: str, dtype: str) -> None:
    noise = np.random.default_rng(0).normal(0.5, 0.05, (40, 40, 3))
    noisy = frozen((noise * WHITE[dtype]).astype(dtype))
    result = step(text)(noisy)
    assert result.std() < 0.8 * noisy.std()
    assert result.mean() == pytest.approx(noisy.mean(), rel=0.02)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 5, 7])
def test_the_median_removes_salt_and_pepper(size: int, dtype: str) -> None:
    expected = flat(0.5, dtype, channels=2, height=30, width=30)
    salted = expected.copy()
    salted[3::6, 3::6] = WHITE[dtype]
    salted[5::6, 2::6] = 0
    np.testing.assert_array_equal(step(f"median_blur({size})")(frozen(salted)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 5, 9])
def test_the_median_equals_scipys(size: int, dtype: str) -> None:
    pixels = picture(dtype, channels=4)
    expected = ndimage.median_filter(pixels, (size, size, 1), mode="nearest")
    np.testing.assert_array_equal(step(f"median_blur({size})")(pixels), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", ["bilateral(sigma_space=2, sigma_color=0.1)", "denoise(strength=0.05)"])
def test_edge_preserving_filters_keep_an_edge_a_gaussian_blurs(text: str, dtype: str) -> None:
    clean = np.zeros((30, 30, 1))
    clean[:, 15:] = 0.7
    noisy = clean + 0.1 + np.random.default_rng(0).normal(0, 0.02, clean.shape)
    pixels = frozen((noisy * WHITE[dtype]).astype(dtype))
    result = step(text)(pixels) / WHITE[dtype]
    assert np.abs(np.diff(result, axis=1)[:, 14]).min() > 0.6
    assert result[:, :13].std() < 0.7 * noisy[:, :13].std()


@pytest.mark.parametrize("text", ["bilateral", "denoise(patch_size=3, search_size=5)"])
@pytest.mark.parametrize("channels", [2, 4, 7])
def test_channels_other_than_rgb_are_denoised_one_by_one(text: str, channels: int) -> None:
    for dtype in DTYPES:
        pixels = picture(dtype, channels)
        apart = [step(text)(pixels[:, :, [channel]]) for channel in range(channels)]
        assert_close(step(text)(pixels), np.concatenate(apart, axis=2))


@pytest.mark.parametrize("text", ["box_blur", "median_blur", "bilateral", "denoise"])
def test_nan_is_refused_where_it_would_spread(text: str) -> None:
    pixels = picture("float32").copy()
    pixels[0, 0, 0] = np.nan
    with pytest.raises(BadPicture, match="not_finite"):
        step(text)(pixels)


@pytest.mark.parametrize("border", ["reflect_101", "reflect", "replicate", "zeros"])
def test_border_says_what_is_outside_the_picture(border: str) -> None:
    row = np.asarray([[1, 2, 4, 8]], np.float32)[:, :, None].repeat(3, axis=0)
    first = step(f'box_blur(3, border="{border}")')(frozen(row))[1, 0, 0]
    left = {"reflect_101": 2, "reflect": 1, "replicate": 1, "zeros": 0}[border]
    assert first == pytest.approx((left + 1 + 2) / 3 * (2 / 2 if border != "zeros" else 1))
