import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from library.errors import BadPicture
from tests.step_examples import DTYPES, WHITE, assert_close, flat, frozen, picture, step

sides = st.integers(1, 60)


@given(sides, sides, st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_the_short_side_becomes_size_and_the_aspect_ratio_is_kept(height: int, width: int, size: int) -> None:
    result = step(f"resize({size})")(picture(height=height, width=width))
    assert min(result.shape[:2]) == size
    assert result.shape[0] == size * height // min(height, width)
    assert result.shape[1] == size * width // min(height, width)


@given(sides, sides, st.integers(1, 40), st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_fit_touches_the_box_and_is_inside_it(height: int, width: int, box_height: int, box_width: int) -> None:
    result = step(f"resize([{box_height}, {box_width}], mode='fit')")(picture(height=height, width=width))
    assert result.shape[0] <= box_height
    assert result.shape[1] <= box_width
    assert result.shape[0] == box_height or result.shape[1] == box_width


@given(sides, sides, sides, sides)
@settings(deadline=None, max_examples=60)
def test_exact_gives_exactly_that_size(height: int, width: int, new_height: int, new_width: int) -> None:
    result = step(f"resize([{new_height}, {new_width}], mode='exact')")(picture(height=height, width=width))
    assert result.shape == (new_height, new_width, 3)


@pytest.mark.parametrize("text", ["resize(20, enlarge=False)", "resize([30, 40], 'fit', enlarge=False)"])
def test_without_enlarge_a_smaller_picture_is_unchanged(text: str) -> None:
    pixels = picture(height=15, width=18)
    np.testing.assert_array_equal(step(text)(pixels), pixels)
    assert step(text)(picture(height=80, width=90)).shape[0] < 80


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interpolation", ["nearest", "linear", "cubic"])
def test_a_picture_resized_to_its_own_size_is_unchanged(interpolation: str, dtype: str) -> None:
    pixels = picture(dtype)
    np.testing.assert_array_equal(step(f"resize(20, interpolation='{interpolation}')")(pixels), pixels)


def test_antialias_averages_the_area_of_each_pixel_like_pillows_box() -> None:
    pixels = picture(height=60, width=84)
    result = step("resize([17, 25], mode='exact')")(pixels)
    expected = np.asarray(Image.fromarray(pixels).resize((25, 17), Image.Resampling.BOX))
    assert result.mean() == pytest.approx(expected.mean(), abs=0.6)
    halved = step("resize(30)")(pixels)
    assert_close(halved, np.asarray(Image.fromarray(pixels).resize((42, 30), Image.Resampling.BOX)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ["[10, 10]", "[10, 90]"])
def test_antialias_turns_fine_stripes_grey_even_if_a_side_grows(size: str, dtype: str) -> None:
    stripes = np.zeros((40, 40, 1), dtype)
    stripes[::2] = WHITE[dtype]
    result = step(f"resize({size}, mode='exact')")(frozen(stripes)) / WHITE[dtype]
    np.testing.assert_allclose(result, 0.5, atol=0.01)
    aliased = step(f"resize({size}, mode='exact', interpolation='nearest')")(stripes)
    assert set(np.unique(aliased).tolist()) <= {0, WHITE[dtype]}


def test_nearest_invents_no_value() -> None:
    pixels = picture(height=33, width=47)
    for size in ("7", "50"):
        result = step(f"resize({size}, interpolation='nearest')")(pixels)
        assert set(np.unique(result)) <= set(np.unique(pixels))


def test_a_resize_to_too_many_pixels_makes_a_bad_picture() -> None:
    with pytest.raises(BadPicture, match="too_large"):
        step("resize(60000)")(picture(height=2, width=8))
    with pytest.raises(BadPicture, match="too_large"):
        step("pad_square")(picture(channels=1, height=1, width=20000))


@given(sides, sides, st.data())
@settings(deadline=None, max_examples=40)
def test_a_crop_equals_the_array_slice(height: int, width: int, data: st.DataObject) -> None:
    pixels = picture(height=height, width=width)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rows, columns = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    result = step(f"crop({top}, {left}, {rows}, {columns})")(pixels)
    np.testing.assert_array_equal(result, pixels[top : top + rows, left : left + columns])
    assert result.flags.c_contiguous


def test_a_center_crop_is_symmetric() -> None:
    pixels = picture(height=20, width=26)
    crop = step("center_crop([10, 16])")
    np.testing.assert_array_equal(crop(pixels)[::-1, ::-1], crop(pixels[::-1, ::-1]))
    np.testing.assert_array_equal(step("center_crop(20)")(pixels), pixels[:, 3:23])


@pytest.mark.parametrize("text", ["crop(0, 20, 5, 10)", "crop(30, 0, 1, 1)", "center_crop(21)", "center_crop([5, 27])"])
def test_a_crop_beyond_the_picture_is_refused(text: str) -> None:
    with pytest.raises(BadPicture, match=r"too_small.*26x20"):
        step(text)(picture(height=20, width=26))


@given(sides, sides, st.sampled_from(DTYPES), st.sampled_from([1, 3, 6]))
@settings(deadline=None, max_examples=40)
def test_pad_square_keeps_the_picture_in_the_middle_of_a_square(
    height: int, width: int, dtype: str, channels: int
) -> None:
    pixels = picture(dtype, channels, height, width)
    side = max(height, width)
    result = step("pad_square(fill=1)")(pixels)
    assert result.shape == (side, side, channels)
    np.testing.assert_array_equal(step(f"center_crop([{height}, {width}])")(result), pixels)
    assert result.astype(np.float64).sum() == pytest.approx(
        pixels.astype(np.float64).sum() + (side**2 - height * width) * channels * WHITE[dtype], rel=1e-6
    )
    repeated = step("pad_square(border='replicate')")(pixels)
    np.testing.assert_array_equal(repeated[0, 0], pixels[0, 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 4, 7])
def test_four_quarter_turns_are_the_identity(channels: int, dtype: str) -> None:
    pixels = picture(dtype, channels)
    turn = step("rotate90")
    np.testing.assert_array_equal(turn(turn(turn(turn(pixels)))), pixels)
    for turns in (1, 2, 3):
        np.testing.assert_array_equal(step(f"rotate90({turns})")(pixels), np.rot90(pixels, turns))


def test_padding_has_the_fill_as_a_fraction_of_white() -> None:
    result = step("pad_square(fill=0.2)")(flat(1, "uint16", height=4, width=8))
    assert result[0, 0, 0] == round(0.2 * 65535)
