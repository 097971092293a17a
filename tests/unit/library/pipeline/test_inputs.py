"""Preparing a model's input from pictures."""

from __future__ import annotations

import numpy as np
import pytest

from library.errors import BadPicture, UsageError
from library.imaging import codec
from library.pipeline import Pipeline
from library.pipeline.inputs import InputPipeline, stack


def pipeline(steps: str, fit: str = 'resize([8, 8], mode="exact")', channels: int = 1) -> InputPipeline:
    return InputPipeline(Pipeline.parse(steps), Pipeline.parse(fit), (8, 8), channels)


def png(pixels: np.ndarray) -> bytes:
    return codec.encode(pixels, codec.Encoding("png"))[0]


COLOUR = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def test_bytes_and_decoded_pixels_give_the_same_input() -> None:
    inputs = pipeline("grayscale")
    assert np.array_equal(inputs.prepare(png(COLOUR)), inputs.prepare_pixels(COLOUR))
    assert inputs.prepare(png(COLOUR)).shape == (8, 8, 1)


def test_a_picture_of_the_models_size_is_not_fitted_again() -> None:
    inputs = pipeline("grayscale", fit="resize(16) | center_crop(8)")
    small = np.random.default_rng(1).integers(0, 256, (8, 8, 1), np.uint8)
    assert np.array_equal(inputs.prepare_pixels(small), small)


@pytest.mark.parametrize(
    ("steps", "fit", "whole"),
    [
        ("grayscale", "resize(8)", "grayscale | resize(8)"),
        ("grayscale | resize(8)", "resize(8)", "grayscale | resize(8)"),
        ("resize(9) | center_crop(8)", "resize(9) | center_crop(8)", "resize(9) | center_crop(8)"),
        ("resize(8) | grayscale", "resize(8)", "resize(8) | grayscale | resize(8)"),
    ],
)
def test_the_whole_pipeline_does_not_repeat_its_last_steps(steps: str, fit: str, whole: str) -> None:
    assert pipeline(steps, fit).whole == Pipeline.parse(whole)


def test_a_picture_dropped_by_the_models_selector_has_that_reason() -> None:
    with pytest.raises(BadPicture) as caught:
        pipeline("min_size(100) | grayscale").prepare(png(COLOUR))
    assert caught.value.reason.startswith("dropped:")


def test_a_wrong_number_of_channels_is_explained() -> None:
    with pytest.raises(BadPicture, match=r"takes 1 channel \(grey\) .* returns 3 channels \(RGB\); add grayscale to"):
        pipeline("invert").prepare(png(COLOUR))
    with pytest.raises(BadPicture, match=r"returns 1 channel \(grey\); add rgb to the recipe's .* with in_chans=1;"):
        pipeline("grayscale", channels=3).prepare(png(COLOUR))


def test_a_wrong_size_is_explained() -> None:
    with pytest.raises(BadPicture, match=r"takes 8x8 pixels but input.fit returns 10x15; .* resize\(\[8, 8\]"):
        pipeline("grayscale", fit="resize(10)").prepare(png(COLOUR))


def test_a_dataset_with_only_wrong_channels_is_refused_by_its_manifest() -> None:
    inputs = pipeline("not_blank | invert", channels=3)
    with pytest.raises(UsageError, match=r"^out/grey has no picture .* \(20 with 1 channel \(grey\)\): .* add rgb to"):
        inputs.check_channels("out/grey", {"1": 20})
    with pytest.raises(UsageError, match=r"20 with 1 channel \(grey\), 3 with 4 channels \(RGB and alpha\)"):
        pipeline("invert", channels=3).check_channels("out/grey", {"1": 20, "4": 3})


@pytest.mark.parametrize(
    ("steps", "channels", "counts"),
    [
        ("rgb", 3, {"1": 20, "4": 3}),
        ("", 3, {"1": 20, "3": 1}),
        ("channels([5, 1, 2])", 3, {"7": 4}),
        ("center_crop(999)", 3, {"1": 20}),
        ("", 3, {}),
    ],
)
def test_a_dataset_whose_pictures_may_fit_is_accepted(steps: str, channels: int, counts: dict[str, int]) -> None:
    parsed = InputPipeline.parse(steps, "", (8, 8), channels)
    parsed.check_channels("out/some", counts)


def test_a_damaged_picture_keeps_its_reason() -> None:
    with pytest.raises(BadPicture) as caught:
        pipeline("grayscale").prepare(png(COLOUR)[:100])
    assert caught.value.reason == "truncated"


def test_a_batch_of_several_dtypes_is_scaled_to_0_to_1() -> None:
    white = [np.full((2, 2, 1), top, dtype) for dtype, top in ((np.uint8, 255), (np.uint16, 65535), (np.float32, 1))]
    assert stack(white).dtype == np.float32
    assert np.all(stack(white) == 1)
    assert stack(white[:1]).dtype == np.uint8
