"""Contact sheets: any picture as 8-bit RGB, and tiles in a grid."""

from __future__ import annotations

import numpy as np
import pytest

from library.imaging import codec
from library.imaging.contact_sheet import Tile, draw_sheet, thumbnail, visible
from tests.picture_examples import scene


@pytest.mark.parametrize("dtype", codec.DTYPES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize(("height", "width"), [(24, 32), (300, 200), (1, 500), (500, 1), (1, 1)])
def test_any_picture_fits_into_the_square_as_8_bit_rgb(height: int, width: int, channels: int, dtype: str) -> None:
    small = thumbnail(scene(height, width, channels, dtype), 100)
    assert (small.dtype, small.shape[2]) == (np.uint8, 3)
    assert 50 < max(small.shape) <= 100
    assert min(small.shape) >= 1
    shape = small.shape[0] / small.shape[1]
    if min(height, width) > 1:
        assert shape == pytest.approx(height / width, rel=0.05)


def test_a_small_picture_is_enlarged_by_a_whole_factor() -> None:
    pixels = scene(6, 9)
    assert np.array_equal(thumbnail(pixels, 40), np.kron(pixels, np.ones((4, 4, 1), np.uint8)))
    assert np.array_equal(thumbnail(pixels, 10), pixels)


def test_8_bit_rgb_is_unchanged_and_grey_is_repeated() -> None:
    assert np.array_equal(visible(scene()), scene())
    grey = scene(channels=1)
    assert np.array_equal(visible(grey), np.repeat(grey, 3, 2))


def test_transparent_pixels_are_drawn_white() -> None:
    rgba = np.dstack([np.zeros((2, 2, 3), np.uint8), np.array([[0, 255], [51, 204]], np.uint8)])
    assert visible(rgba)[:, :, 0].tolist() == [[255, 0], [204, 51]]
    grey = np.dstack([np.full((1, 2), 100, np.uint8), np.array([[0, 255]], np.uint8)])
    assert visible(grey).tolist() == [[[255] * 3, [100] * 3]]


@pytest.mark.parametrize("side", [10, 64, 300], ids=["smaller", "as it is", "larger"])
@pytest.mark.parametrize("channels", [5, 7])
def test_many_bands_are_drawn_as_the_first_three_without_alpha(channels: int, side: int) -> None:
    bands = np.zeros((64, 64, channels), np.uint8)
    bands[:, :, :3] = 10, 20, 30
    drawn = thumbnail(bands, side)
    assert np.unique(drawn.reshape(-1, 3), axis=0).tolist() == [[10, 20, 30]]


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_16_bit_and_float_values_are_stretched_to_the_full_range(dtype: str) -> None:
    values = np.linspace(300, 700, 12).reshape(2, 2, 3).astype(dtype)
    shown = visible(values)
    assert (shown.min(), shown.max()) == (0, 255)
    assert shown.ravel().tolist() == sorted(shown.ravel().tolist())
    assert not visible(np.full((2, 2, 3), 9, dtype)).any()


def test_nan_is_drawn_as_black() -> None:
    values = np.array([[0.0, np.nan, 1.0]], np.float32)[:, :, None]
    assert visible(values)[0, :, 0].tolist() == [0, 0, 255]


def test_tiles_are_drawn_in_rows_and_columns() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    red, green, blue = (Tile(np.full((50, 50, 3), colour, np.uint8)) for colour in colours)
    sheet = draw_sheet([[red, green], [blue]], tile_px=50)
    pixels_of = {colour: np.argwhere((sheet == colour).all(2)) for colour in colours}
    boxes = {colour: (*places.min(0), *(places.max(0) + 1)) for colour, places in pixels_of.items()}
    assert all(len(places) == 2500 for places in pixels_of.values())
    assert boxes[colours[0]][0] == boxes[colours[1]][0] < boxes[colours[2]][0]
    assert boxes[colours[0]][1] == boxes[colours[2]][1] < boxes[colours[1]][1]
    assert (sheet[-1] == 255).all()


def test_headings_captions_and_notes_are_written() -> None:
    plain = draw_sheet([[Tile(None)]], tile_px=100)
    for tile in (Tile(None, "caption"), Tile(None, "", "note")):
        sheet = draw_sheet([[tile]], tile_px=100)
        assert sheet.shape == plain.shape
        assert (sheet != plain).any()
    assert draw_sheet([[Tile(None)]], tile_px=100, headings=["before"]).shape[0] > plain.shape[0]


@pytest.mark.parametrize(
    "text",
    ["two\nlines", "x" * 5000, "日本\U0001f600\u202e", "\0\t\r", ""],
    ids=["lines", "long", "scripts", "controls", "none"],
)
def test_any_text_stays_within_its_tile(text: str) -> None:
    """Text is cut to the width of its tile, so the next tile and the margin stay empty."""
    tile = Tile(None, text, text)
    sheet = draw_sheet([[tile, Tile(np.full((60, 60, 3), 255, np.uint8))]], tile_px=60, headings=[text, ""])
    assert sheet.shape == draw_sheet([[Tile(None), Tile(None)]], tile_px=60, headings=["a", "b"]).shape
    assert (sheet[:, 72:] == 255).all()
