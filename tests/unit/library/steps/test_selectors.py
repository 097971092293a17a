import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.errors import BadPicture, StepError
from library.imaging.codec.formats import Header
from library.imaging.picture import Picture
from library.steps import REGISTRY
from tests.step_examples import DTYPES, SELECTORS, WHITE, flat, picture, step

HEADER_ONLY = SELECTORS[: SELECTORS.index("not_blank")]


def undecodable(
    width: int = 30, height: int = 20, key: str = "k", label: str | None = "cat", size: int = 100, **header: object
) -> Picture:
    """A picture with a valid header and bytes that cannot be decoded."""
    head = Header(**{"format": "jpeg", "width": width, "height": height, "channels": 3, **header})
    predicted = {"top_classes": ["cat", "dog"], "top_probabilities": [0.95, 0.04]}
    return Picture(key, label, head, lambda: b"x" * size, predicted)


def decoded(pixels: np.ndarray) -> Picture:
    example = undecodable()
    example.replace(pixels)
    return example


def reason(text: str, example: Picture) -> str | None:
    return step(text).reason(example)


def test_every_registered_selector_has_an_example() -> None:
    selectors = {name for name, cls in REGISTRY.items() if cls.kind == "selector"}
    assert selectors == {step(text).name for text in SELECTORS}


@pytest.mark.parametrize("text", HEADER_ONLY)
def test_a_header_selector_decodes_nothing_and_changes_nothing(text: str) -> None:
    example = undecodable()
    assert reason(text, example) in (None, "not_sampled")
    assert not example.changed
    assert example.decode_seconds == 0


@pytest.mark.parametrize(
    ("text", "header", "expected"),
    [
        ("min_size(short_side=20)", {}, None),
        ("min_size(short_side=21)", {}, "below_min_size"),
        ("min_size(long_side=31)", {}, "below_min_size"),
        ("min_size(20, 30)", {"width": 20, "height": 30}, None),
        ("max_size(short_side=19)", {}, "above_max_size"),
        ("max_size(long_side=30)", {}, None),
        ("max_size(long_side=29)", {}, "above_max_size"),
        ("aspect_ratio_between(1.5, 1.5)", {}, None),
        ("aspect_ratio_between(low=1.6)", {}, "too_narrow"),
        ("aspect_ratio_between(high=1)", {}, "too_wide"),
        ("keep_labels(['dog', 'cat'])", {}, None),
        ("keep_labels(['dog'])", {}, "other_label"),
        ("keep_labels(['dog'])", {"label": None}, "other_label"),
        ("drop_labels(['cat'])", {}, "dropped_label"),
        ("drop_labels(['cat'])", {"label": None}, None),
        ("keep_formats(['png', 'jpeg'])", {}, None),
        ("keep_formats(['png'])", {}, "other_format"),
        ("keep_channels([1, 3])", {}, None),
        ("keep_channels([1, 3])", {"channels": 4}, "other_channels"),
        ("score_at_least('cat', 0.95)", {}, None),
        ("score_at_least('cat', 0.96)", {}, "score_below"),
        ("score_at_least('dog', 0.04)", {}, None),
        ("score_at_least('dog', 0.05)", {}, "score_below"),
        ("score_at_least('bird', 0)", {}, "score_below"),
        ("file_size_between(100, 100)", {}, None),
        ("file_size_between(min_bytes=101)", {}, "too_few_bytes"),
        ("file_size_between(max_bytes=99)", {}, "too_many_bytes"),
    ],
)
def test_a_header_selector_keeps_or_drops_with_its_reason(text: str, header: dict, expected: str | None) -> None:
    assert reason(text, undecodable(**header)) == expected


def test_a_size_selector_sees_the_size_after_a_filter() -> None:
    example = undecodable(width=300, height=300)
    example.replace(picture(height=10, width=10))
    assert reason("min_size(short_side=20)", example) == "below_min_size"


def test_a_score_is_compared_as_the_stored_float32() -> None:
    stored = float(np.float32(0.9))
    assert stored < 0.9
    header = Header("jpeg", 30, 20, 3)
    example = Picture("k", None, header, bytes, {"top_classes": ["cat"], "top_probabilities": [stored]})
    assert reason("score_at_least('cat', 0.9)", example) is None
    unscored = Picture("k", None, header, bytes, {"top_classes": None, "top_probabilities": None})
    assert reason("score_at_least('cat', 0)", unscored) == "score_below"


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6, unique=True),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_higher_score_keeps_a_subset_of_a_lower_one(shares: list[float], one: float, other: float) -> None:
    names = [f"class {number}" for number in range(len(shares))]
    columns = {"top_classes": names, "top_probabilities": sorted(shares, reverse=True)}
    example = Picture("k", None, Header("jpeg", 30, 20, 3), bytes, columns)
    low, high = sorted((one, other))
    for name, share in zip(names, columns["top_probabilities"], strict=True):
        at_low, at_high = (reason(f"score_at_least('{name}', {least!r})", example) for least in (low, high))
        assert at_high is not None or at_low is None
        assert (at_low is None) == (np.float32(share) >= np.float32(low))


def test_without_predictions_the_error_names_striate_predict() -> None:
    bare = Picture("some/key", None, Header("jpeg", 30, 20, 3), bytes, {})
    with pytest.raises(StepError, match=r"'some/key'.*no column 'top_classes'; run `striate predict BUNDLE DATASET"):
        reason("score_at_least('cat', 0.9)", bare)


def kept_keys(text: str, keys: int = 4000) -> set[int]:
    chosen = step(text)
    return {key for key in range(keys) if chosen.reason(undecodable(key=f"img/{key}.jpg")) is None}


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.9])
def test_a_sample_keeps_about_its_fraction(fraction: float) -> None:
    deviation = math.sqrt(fraction * (1 - fraction) / 4000)
    assert len(kept_keys(f"sample({fraction})")) / 4000 == pytest.approx(fraction, abs=4 * deviation)


def test_a_sample_depends_on_key_and_seed_and_grows_with_the_fraction() -> None:
    assert kept_keys("sample(0.2)") == kept_keys("sample(0.2, seed=0)")
    assert kept_keys("sample(0.2)") < kept_keys("sample(0.4)")
    both = kept_keys("sample(0.5)") & kept_keys("sample(0.5, seed=1)")
    assert len(both) / 4000 == pytest.approx(0.25, abs=0.04)


def test_a_sample_never_changes_between_releases() -> None:
    assert sorted(kept_keys("sample(0.1)", 60)) == PINNED_SAMPLE


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_blank_picture_is_dropped_whatever_its_colour(dtype: str) -> None:
    red = np.zeros((10, 10, 3), dtype)
    red[:, :, 0] = WHITE[dtype]
    assert reason("not_blank", decoded(red)) == "blank"
    assert reason("not_blank", decoded(flat(0.3, dtype, channels=6))) == "blank"
    assert reason("not_blank", decoded(picture(dtype, channels=6))) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_sharpness_is_measured_alike_in_every_dtype(dtype: str) -> None:
    sharp = picture(dtype, height=40, width=40)
    grey = step("grayscale")(picture("uint8", height=40, width=40)).astype(np.float64)[:, :, 0]
    padded = np.pad(grey, 1, mode="reflect")
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * grey
    assert reason(f"sharp_at_least({laplacian.var() * 0.97})", decoded(sharp)) is None
    assert reason(f"sharp_at_least({laplacian.var() * 1.03})", decoded(sharp)) == "not_sharp"
    assert reason("sharp_at_least", decoded(step("gaussian_blur(5)")(sharp))) == "not_sharp"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_brightness_and_contrast_are_fractions_of_white(channels: int, dtype: str) -> None:
    grey = decoded(flat(0.5, dtype, channels))
    assert reason("brightness_between(0.48, 0.52)", grey) is None
    assert reason("brightness_between(low=0.52)", grey) == "too_dark"
    assert reason("brightness_between(high=0.48)", grey) == "too_bright"
    halves = flat(0, dtype, channels, height=10, width=10).copy()
    halves[:5] = WHITE[dtype]
    assert reason("contrast_at_least(0.49)", decoded(halves)) is None
    assert reason("contrast_at_least(0.51)", decoded(halves)) == "low_contrast"


@pytest.mark.parametrize("text", ["not_blank", "sharp_at_least", "brightness_between(0.1)", "contrast_at_least(0.1)"])
def test_selectors_of_pixels_refuse_a_picture_with_nan(text: str) -> None:
    pixels = picture("float32").copy()
    pixels[2, 2, 1] = np.nan
    with pytest.raises(BadPicture, match="not_finite"):
        reason(text, decoded(pixels))


PINNED_SAMPLE = [14, 17, 29, 45, 55, 59]
