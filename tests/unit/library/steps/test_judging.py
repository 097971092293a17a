"""Selectors that read a measured score or compute it: the same answer either way."""

from __future__ import annotations

from typing import Any, cast

import cv2
import numpy as np
import pytest

from library.imaging import codec
from library.imaging.picture import Picture, Pixels
from library.pipeline import Pipeline
from library.steps import scores
from library.steps.base import Selector, Step
from tests.picture_examples import scene

# Each with limits on both sides of what the pictures below have.
JUDGES = (
    "not_blank(0.2)",
    "not_blurry(500)",
    "not_dark(0.5)",
    "not_bright(0.2)",
    "min_entropy(5)",
    "colourfulness_between(low=20, high=60)",
    "brightness_between(0.2, 0.6)",
    "contrast_at_least(0.15)",
)


def pictures() -> list[Pixels]:
    rng = np.random.default_rng(5)
    noise = [rng.integers(0, 256, (40, 60, 3), np.uint8), rng.integers(0, 3, (40, 60, 3), np.uint8)]
    soft = [np.asarray(cv2.GaussianBlur(noise[0], (0, 0), sigma)) for sigma in (1, 2, 4)]
    shades = [(scene(50, 40) * factor).astype(np.uint8) for factor in (0.05, 0.3, 0.8)]
    light = [255 - shade for shade in shades]
    return [*noise, *soft, *shades, *light, np.full((9, 9, 1), 255, np.uint8)]


def picture_of(pixels: Pixels, measured: dict[str, float] | None = None, data: bytes | None = None) -> Picture:
    encoded = codec.encode(pixels, codec.Encoding("png"))[0] if data is None else data
    header = codec.Header("png", pixels.shape[1], pixels.shape[0], pixels.shape[2])
    return Picture("key", None, header, lambda: encoded, {}, measured=measured)


def step_of(text: str) -> Step:
    return Pipeline.parse(text).steps[0]


def reason(text: str, picture: Picture) -> str | None:
    return cast(Selector, step_of(text)).reason(picture)


@pytest.mark.parametrize("text", JUDGES)
def test_a_measured_score_gives_the_answer_of_the_pixels(text: str) -> None:
    answers = set[str | None]()
    for pixels in pictures():
        measured = {name: scores.score(name, pixels) for name in step_of(text).scores()}
        assert measured
        unreadable = picture_of(pixels, measured, data=b"cannot be decoded")
        assert reason(text, unreadable) == reason(text, picture_of(pixels))
        answers.add(reason(text, unreadable))
    assert len(answers) > 1


@pytest.mark.parametrize("text", JUDGES)
def test_a_limit_itself_is_kept_with_a_score_and_with_pixels(text: str) -> None:
    (name,) = step_of(text).scores()
    field = next(iter(step_of(text).__dataclass_fields__))
    for pixels in pictures():
        value = scores.score(name, pixels)
        limit: Any = repr(value)
        try:
            exact = Pipeline.parse(f"{step_of(text).name}({field}={limit})").steps[0]
        except Exception:  # 0 is not allowed as a limit
            continue
        kept = cast(Selector, exact)
        assert kept.reason(picture_of(pixels)) is None
        assert kept.reason(picture_of(pixels, {name: value}, data=b"")) is None


def test_a_score_of_the_stored_picture_is_not_used_after_a_filter() -> None:
    pixels = np.full((20, 20, 1), 20, np.uint8)
    picture = picture_of(pixels, {"brightness_p99": 20 / 255})
    assert reason("not_dark(0.5)", picture) == "dark"
    picture.replace(255 - pixels)
    assert picture.measured("brightness_p99") is None
    assert reason("not_dark(0.5)", picture) is None


def test_dark_bright_and_empty_pictures_are_dropped_and_others_kept() -> None:
    night = np.zeros((50, 50, 3), np.uint8)
    assert reason("not_dark", picture_of(night)) == "dark"
    night[:5, :10] = 230  # a few lights
    assert reason("not_dark", picture_of(night)) is None
    paper = np.full((50, 50, 3), 254, np.uint8)
    assert reason("not_bright", picture_of(paper)) == "bright"
    paper[10:20, 10:30] = 0
    assert reason("not_bright", picture_of(paper)) is None
    assert reason("min_entropy(3)", picture_of(paper)) == "low_entropy"
    rng = np.random.default_rng(0)
    assert reason("min_entropy(3)", picture_of(rng.integers(0, 256, (50, 50, 3), np.uint8))) is None
