"""Measures of pictures, and histograms of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from library.dataset.histograms import EDGES, Histograms, measures
from library.errors import StriateError


def photos(count: int, seed: int, side: tuple[int, int] = (60, 80)) -> list[NDArray[np.uint8]]:
    """Smooth random scenes that differ in brightness and contrast, as photos do."""
    random = np.random.default_rng(seed)
    pictures: list[NDArray[np.uint8]] = []
    for _ in range(count):
        light, range_ = random.uniform(60, 190), random.uniform(20, 90)
        noise = random.normal(0, range_ / 3, (*side, 3))
        slope = np.linspace(-range_, range_, side[1])[None, :, None]
        pictures.append(np.clip(light + slope + noise, 0, 255).astype(np.uint8))
    return pictures


def histograms(pictures: list[Any]) -> Histograms:
    counts = Histograms()
    for pixels in pictures:
        counts.add(measures(pixels))
    return counts


# -- measures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "white"), [("uint8", 255), ("uint16", 65535), ("float32", 1.0)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_flat_picture_has_its_brightness_and_nothing_else(dtype: str, white: float, channels: int) -> None:
    half = np.full((20, 30, channels), white / 2, dtype)
    values = measures(half)
    assert values["brightness"] == pytest.approx(0.5, abs=0.01)
    assert (values["contrast"], values["sharpness"]) == pytest.approx((0, 0), abs=1e-6)
    assert (values["width"], values["height"]) == (30, 20)


def test_a_photo_at_two_sizes_differs_only_in_width_and_height() -> None:
    # The same scene at two resolutions, both above the side that is measured.
    large = np.kron(photos(1, 3, (300, 400))[0], np.ones((4, 4, 1), np.uint8))
    small = np.kron(photos(1, 3, (300, 400))[0], np.ones((2, 2, 1), np.uint8))
    at_large, at_small = measures(large), measures(small)
    assert at_large["width"] == 2 * at_small["width"]
    for name in ("brightness", "contrast", "sharpness"):
        assert at_large[name] == pytest.approx(at_small[name], rel=0.1)


def test_blur_lowers_sharpness_and_leaves_brightness() -> None:
    import cv2

    picture = photos(1, 5)[0]
    before, after = measures(picture), measures(np.asarray(cv2.GaussianBlur(picture, (0, 0), 2)))
    assert after["sharpness"] < before["sharpness"] / 10
    assert after["brightness"] == pytest.approx(before["brightness"], abs=0.01)


def test_a_picture_with_nan_has_only_width_and_height() -> None:
    picture = np.ones((4, 6, 1), np.float32)
    picture[1, 1] = np.nan
    assert measures(picture) == {"width": 6.0, "height": 4.0}


# -- histograms -------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), max_size=50), st.lists(st.floats(0, 1), max_size=50))
def test_histograms_of_halves_add_up_to_the_whole_in_any_order(first: list[float], second: list[float]) -> None:
    def counted(values: list[float]) -> Histograms:
        counts = Histograms()
        for value in values:
            counts.add({"brightness": value, "contrast": 1 - value})
            counts.add_class("cat" if value > 0.5 else "dog")
        return counts

    whole = counted(first + second).to_dict()
    assert Histograms.total([counted(first), counted(second)]).to_dict() == whole
    assert Histograms.total([counted(second), counted(first)]).to_dict() == whole


def test_every_value_has_a_bin_and_an_edge_belongs_to_the_one_above() -> None:
    for name, edges in EDGES.items():
        counts = Histograms()
        for value in (-1e9, *edges, 1e9):
            counts.add({name: value})
        assert counts.bins[name] == [1, *([1] * (len(edges) - 1)), 2]


def test_histograms_are_read_back_from_json() -> None:
    counts = histograms(photos(5, 1))
    counts.add_class("ünïcode", 3)
    assert Histograms.from_dict(json.loads(json.dumps(counts.to_dict()))).to_dict() == counts.to_dict()


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"version": 99, "bins": {}},
        {"version": 1, "bins": {"brightness": [1, 2]}},
        {"version": 1, "bins": {"hue": []}},
        {"version": 1, "bins": [1]},
        {"version": 1, "bins": {}, "classes": {"cat": "many"}},
    ],
)
def test_damaged_histograms_and_other_versions_are_refused(data: dict[str, Any]) -> None:
    with pytest.raises(StriateError, match="histograms"):
        Histograms.from_dict(data)


def test_the_median_is_the_bin_of_the_middle_value() -> None:
    counts = Histograms()
    for value in (0.11, 0.52, 0.53, 0.54, 0.9):
        counts.add({"brightness": value})
    assert counts.median("brightness") == (0.5, 0.55)
    assert counts.median("contrast") is None
