import re
from dataclasses import replace

import numpy as np
import pytest
import yaml

from library.choosing.learned_filters.kernel_filters import (
    LearnedKernel,
    filter_list,
    kernel_filters,
    scaled_to_pictures,
    search_space,
)
from library.choosing.learned_filters.learned_page import (
    LearnedFilters,
    draw_kernel,
    draw_kernels,
    drawn_references,
    render_learned,
)
from library.choosing.learned_filters.references import chance, nearest, references
from library.pipeline import Pipeline
from tests.step_examples import picture

PICTURES = [picture(channels=3, seed=seed) for seed in range(3)]


def learned(
    count: int = 3, channels: int = 3, first: str = "", gates: dict[str, float] | None = None
) -> LearnedFilters:
    kernels = np.random.default_rng(0).normal(size=(count, channels, 5, 5))
    scaled = scaled_to_pictures(kernels, [one[:, :, :channels] for one in PICTURES])
    made = [
        LearnedKernel(w, match, *kernel_filters(w, first)) for w, match in zip(scaled, nearest(scaled), strict=True)
    ]
    return LearnedFilters(made, chance(scaled), 26, channels, {"val_top1": 0.5}, gates or {}, {"seed": "<0>"})


@pytest.mark.parametrize(("channels", "first"), [(1, ""), (1, "grayscale"), (3, ""), (3, "rgb")])
def test_a_filters_text_computes_the_kernels_answer_around_grey(channels: int, first: str) -> None:
    one = learned(1, channels, first).kernels[0]
    pixels = PICTURES[0][:, :, :channels] if first != "grayscale" else PICTURES[0]
    result = Pipeline.parse(one.filters).apply(pixels)
    seen = Pipeline.parse("grayscale").apply(pixels) if first == "grayscale" else pixels
    # In the middle, where no border is involved.
    window = seen[8:13, 8:13].astype(np.float64) / 255
    expected = 255 * ((np.moveaxis(window, 2, 0) * one.weights).sum() + 0.5)
    assert result.shape == (*pixels.shape[:2], 1)
    assert result[10, 10, 0] == pytest.approx(np.clip(expected, 0, 255), abs=1)


def test_answers_to_the_pictures_are_almost_never_cut_off() -> None:
    for kernel in learned(4).kernels:
        answers = np.concatenate([Pipeline.parse(kernel.filters).apply(one).ravel() for one in PICTURES])
        cut = ((answers == 0) | (answers == 255)).mean()
        assert cut < 0.01
        assert answers.max() - answers.min() > 100


def test_a_candidate_keeps_the_channels_that_a_recipe_expects() -> None:
    assert Pipeline.parse(learned(1).kernels[0].candidate).apply(PICTURES[0]).shape[2] == 3
    assert Pipeline.parse(learned(1, 1, "grayscale").kernels[0].candidate).apply(PICTURES[0]).shape[2] == 3
    assert Pipeline.parse(learned(1, 1).kernels[0].candidate).apply(PICTURES[0][:, :, :1]).shape[2] == 1


def test_filters_and_space_are_read_back() -> None:
    kernels = learned().kernels
    lines = filter_list(kernels).splitlines()
    assert lines == [kernel.filters for kernel in kernels]
    space = yaml.safe_load(search_space(kernels, "median_blur(size=3)"))
    assert space == {"filters": ["default", *(kernel.candidate for kernel in kernels), "median_blur(size=3)"]}


def test_zero_is_grey_and_the_sign_is_light_or_dark() -> None:
    weights = np.zeros((1, 3, 3))
    weights[0, 0, 0], weights[0, 2, 2] = 2, -2
    drawn = draw_kernel(weights, 30)
    assert drawn.shape == (30, 30, 3)
    assert drawn[5, 5].tolist() == [255] * 3
    assert drawn[25, 25].tolist() == [0] * 3
    assert drawn[15, 15, 0] in (127, 128)


def test_the_picture_has_every_kernel_above_its_nearest_reference() -> None:
    content = learned(9)
    sheet = draw_kernels(content)
    assert sheet.dtype == np.uint8
    names = [one.name for one in drawn_references(content)]
    for name in ("sobel x", "sobel y", "prewitt x", "laplacian 4", "laplacian 8"):
        assert name in names
    assert sum(name.startswith("gabor") for name in names) >= 8
    assert sum(name.startswith("gaussian") for name in names) == 3


def test_every_reference_is_drawn_once_that_a_kernel_resembles_most() -> None:
    content = learned(1)
    known = references(5)
    for reference in known:
        (match,) = nearest(reference.weights[None, None])
        kernels = [replace(content.kernels[0], match=match)] * 2
        names = [one.name for one in drawn_references(replace(content, kernels=kernels))]
        assert match.reference in names
        assert len(names) == len(set(names)) < len(known)


def test_the_page_needs_nothing_from_outside_and_escapes_values() -> None:
    content = learned(gates={"": 0.25, "median_blur(size=3)": 0.75})
    page = render_learned(content, PICTURES[:2])
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "<script" not in page
    assert "&lt;0&gt;" in page
    for text in ("median_blur(size=3)", "75.0%", "50.0%", content.kernels[0].match.reference, "sobel x"):
        assert text in page
    assert page.count("data:image/png") == 2 + 3 * 4 + len(drawn_references(content))


def test_the_heaviest_gate_is_the_pipeline() -> None:
    assert learned().pipeline is None
    assert learned(gates={"": 0.9, "invert": 0.1}).pipeline == ""
    assert learned(gates={"": 0.1, "invert": 0.9}).summary()["pipeline"] == "invert"
