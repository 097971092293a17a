import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from library.errors import BadPicture
from library.steps import Close, Dilate, Erode, Open
from library.steps.morphology import Shape, window
from tests.step_examples import DTYPES, WHITE, frozen, picture, step

SHAPES: tuple[Shape, ...] = ("square", "disk", "cross")
sizes, shapes = st.sampled_from([3, 5, 9]), st.sampled_from(SHAPES)
pictures = st.builds(
    picture,
    st.sampled_from(DTYPES),
    st.sampled_from([1, 3, 130]),
    st.integers(1, 14),
    st.integers(1, 14),
    st.integers(0, 99),
)


@given(pictures, sizes, shapes)
@settings(deadline=None, max_examples=60)
def test_erosion_darkens_dilation_lightens_and_opening_lies_between(
    pixels: np.ndarray, size: int, shape: Shape
) -> None:
    eroded, opened, closed, dilated = (kind(size, shape)(pixels) for kind in (Erode, Open, Close, Dilate))
    for darker, lighter in ((eroded, opened), (opened, pixels), (pixels, closed), (closed, dilated)):
        assert (darker <= lighter).all()


@given(pictures, sizes, shapes)
@settings(deadline=None, max_examples=60)
def test_opening_and_closing_twice_is_opening_and_closing_once(pixels: np.ndarray, size: int, shape: Shape) -> None:
    for again in (Open(size, shape), Close(size, shape)):
        once = again(pixels)
        np.testing.assert_array_equal(again(once), once)


@given(pictures, sizes, shapes)
@settings(deadline=None, max_examples=60)
def test_the_negative_of_an_erosion_is_the_dilated_negative(pixels: np.ndarray, size: int, shape: Shape) -> None:
    for one, other in ((Erode, Dilate), (Open, Close)):
        top = WHITE[str(pixels.dtype)]
        negative = (top - pixels).astype(pixels.dtype)
        expected = (top - one(size, shape)(pixels)).astype(pixels.dtype)
        np.testing.assert_allclose(other(size, shape)(negative), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_erosion_and_dilation_equal_scipys_in_the_picture(shape: Shape, dtype: str) -> None:
    pixels = picture(dtype, channels=2)
    footprint = window(5, shape)[:, :, None]
    eroded = ndimage.minimum_filter(pixels, footprint=footprint, mode="constant", cval=WHITE[dtype])
    dilated = ndimage.maximum_filter(pixels, footprint=footprint, mode="constant", cval=0)
    np.testing.assert_array_equal(step(f'erode(5, "{shape}")')(pixels), eroded)
    np.testing.assert_array_equal(step(f'dilate(5, "{shape}")')(pixels), dilated)


def test_a_disk_is_round_and_a_cross_is_two_lines() -> None:
    assert window(3, "cross").tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    disk = window(9, "disk")
    assert disk.sum() == pytest.approx(np.pi * 4.5**2, rel=0.1)
    np.testing.assert_array_equal(disk, np.rot90(disk))
    assert disk[0, 0] == 0
    assert disk[0, 4] == disk[4, 0] == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_opening_removes_a_light_speck_and_keeps_a_light_square(dtype: str) -> None:
    drawn = np.zeros((20, 20, 1), dtype)
    drawn[4:12, 4:12] = WHITE[dtype]
    clean = drawn.copy()
    drawn[15, 15:17] = WHITE[dtype]
    np.testing.assert_array_equal(step("open")(frozen(drawn)), clean)
    negative = (WHITE[dtype] - drawn).astype(dtype)
    np.testing.assert_array_equal(step("close")(negative), (WHITE[dtype] - clean).astype(dtype))


def test_a_picture_of_one_bit_stays_one() -> None:
    bits = cv2.threshold(picture(channels=1)[:, :, 0], 60, 255, cv2.THRESH_BINARY)[1][:, :, None]
    for text in ("erode", "dilate", "open(5)", "close(5)"):
        assert set(np.unique(step(text)(bits)).tolist()) <= {0, 255}


@pytest.mark.parametrize("text", ["erode", "dilate", "open", "close", "gabor(4)"])
def test_nan_is_refused_by_morphology_and_gabor(text: str) -> None:
    pixels = picture("float32").copy()
    pixels[0, 0, 0] = np.nan
    with pytest.raises(BadPicture, match="not_finite"):
        step(text)(pixels)
