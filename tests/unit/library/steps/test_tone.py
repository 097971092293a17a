import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.errors import BadPicture
from tests.step_examples import DTYPES, WHITE, assert_close, flat, frozen, picture, step


@pytest.mark.parametrize("dtype", DTYPES)
def test_inverting_twice_is_the_identity(dtype: str) -> None:
    pixels = picture(dtype, channels=5)
    invert = step("invert")
    assert_close(invert(invert(pixels)), pixels, steps=0, rtol=1e-6)
    assert invert(flat(0, dtype)).max() == WHITE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", ["binarize", "binarize('fixed')", "binarize('adaptive', size=7)"])
def test_binarize_gives_only_zero_and_white(text: str, dtype: str) -> None:
    result = step(text)(picture(dtype))
    assert set(np.unique(result).tolist()) == {0, WHITE[dtype]}


@pytest.mark.parametrize("dtype", DTYPES)
def test_otsu_separates_the_box_from_the_noise(dtype: str) -> None:
    pixels = picture(dtype, channels=1, height=40, width=40)
    result = step("binarize")(pixels)[:, :, 0] > 0
    assert result[10:30, 10:30].all()
    assert result.sum() == 20 * 20


def test_otsu_finds_the_same_threshold_as_an_exhaustive_search() -> None:
    values = frozen(np.random.default_rng(1).gamma(3, 20, (30, 30, 1)).clip(0, 255).astype(np.uint8))

    def between(threshold: int) -> float:
        low, high = values[values <= threshold], values[values > threshold]
        return low.size * high.size * (low.mean() - high.mean()) ** 2 if low.size and high.size else 0.0

    best = max(range(256), key=between)
    np.testing.assert_array_equal(step("binarize")(values) > 0, values > best)


@pytest.mark.parametrize("dtype", DTYPES)
def test_otsu_turns_a_flat_channel_into_zero(dtype: str) -> None:
    assert step("binarize")(flat(0.5, dtype)).max() == 0


def test_a_fixed_threshold_is_a_fraction_of_white() -> None:
    ramp = frozen(np.arange(256, dtype=np.uint8).reshape(16, 16, 1))
    np.testing.assert_array_equal(step("binarize('fixed', 0.25)")(ramp) > 0, ramp > 0.25 * 255)
    wide = frozen(ramp.astype(np.uint16) * 257)
    np.testing.assert_array_equal(step("binarize('fixed', 0.25)")(wide) > 0, wide > 0.25 * 65535)


def test_an_adaptive_threshold_finds_text_under_uneven_light() -> None:
    light = np.linspace(60, 250, 80)[None, :, None] * np.ones((40, 1, 1))
    ink = np.zeros((40, 80, 1), bool)
    ink[10:30:5, 5:75:5] = True
    page = frozen(np.where(ink, light * 0.6, light).astype(np.uint8))
    np.testing.assert_array_equal(step("binarize('adaptive', size=9, offset=0.02)")(page) == 0, ink)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equalize_flattens_the_histogram(dtype: str) -> None:
    dark = np.random.default_rng(2).random((120, 120, 2)) ** 2
    result = step("equalize")(frozen((dark * WHITE[dtype]).astype(dtype)))
    for share in np.linspace(0.2, 1, 9):
        under = (result[:, :, 0] <= share * WHITE[dtype]).mean()
        assert under == pytest.approx(share, abs=0.07 if dtype == "uint8" else 0.01)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["equalize", "gamma(2.2)", "contrast_stretch", "gamma(0.4)"]))
@settings(deadline=None, max_examples=30)
def test_tone_curves_never_swap_the_order_of_values(seed: int, text: str) -> None:
    for dtype in DTYPES:
        values = picture(dtype, channels=1, seed=seed)
        result = step(text)(values).ravel()[values.ravel().argsort(kind="stable")]
        assert (np.diff(result.astype(np.float64)) >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gamma_keeps_black_and_white_and_follows_its_formula(dtype: str) -> None:
    pixels = picture(dtype)
    white = WHITE[dtype]
    expected = white * (pixels.astype(np.float64) / white) ** 2.2
    assert np.abs(step("gamma(2.2)")(pixels) - expected).max() <= (0.5 if white > 1 else 1e-6)
    for end in (0, 1):
        np.testing.assert_array_equal(step("gamma(2.2)")(flat(end, dtype)), flat(end, dtype))


def test_gamma_treats_negative_floats_as_zero() -> None:
    assert step("gamma(0.5)")(flat(-3, "float32")).max() == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_contrast_stretch_spans_zero_to_white_in_each_channel(dtype: str) -> None:
    pixels = picture(dtype).copy()
    pixels[:, :, 1] = pixels[:, :, 1] / 2
    result = step("contrast_stretch(1, 99)")(pixels)
    assert (result.min(axis=(0, 1)) == 0).all()
    assert (result.max(axis=(0, 1)) == WHITE[dtype]).all()


def test_contrast_stretch_uses_numpys_percentiles() -> None:
    pixels = picture("uint16", channels=1)
    low, high = np.percentile(pixels, [5, 90], method="inverted_cdf")
    expected = np.rint(np.clip((pixels - np.float64(low)) / (high - low), 0, 1) * 65535).astype(np.uint16)
    np.testing.assert_array_equal(step("contrast_stretch(5, 90)")(pixels), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clahe_increases_the_contrast_of_a_faint_picture(dtype: str) -> None:
    faint = frozen((picture("float32", height=64, width=64) * 0.1 * WHITE[dtype]).astype(dtype))
    result = step("clahe(clip_limit=10, tiles=2)")(faint)
    if dtype == "float32":  # it stays in its own range
        assert result.max() <= faint.max() * (1 + 1e-6)
    else:
        assert result.std() > 1.5 * faint.std()


@pytest.mark.parametrize("text", ["equalize", "clahe", "contrast_stretch", "binarize", "binarize('adaptive')"])
def test_filters_of_the_value_range_refuse_nan(text: str) -> None:
    pixels = picture("float32").copy()
    pixels[0, 0, 0] = np.nan
    with pytest.raises(BadPicture, match="not_finite"):
        step(text)(pixels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_contrast_stretch_of_everything_takes_minimum_and_maximum(dtype: str) -> None:
    # 100 / 100 of 888 pixels is above 888 in floating-point numbers.
    pixels = np.linspace(20, 200, 888).reshape(24, 37, 1).astype(dtype)
    result = step("contrast_stretch(0, 100)")(pixels)
    assert (result.min(), result.max()) == (0, WHITE[dtype])
    np.testing.assert_array_equal(step("contrast_stretch(0, 100)")(np.full_like(pixels, 20)), 20)
