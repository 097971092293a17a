"""Every augmentation on a whole batch is the augmentation of each picture, within the step's stated tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from library.errors import BadPicture
from library.pipeline import Pipeline
from library.randomness import generator
from library.steps.base import REGISTRY, augmented
from library.training.augmenting.draft import Draft
from library.training.augmenting.execution import execute
from library.training.augmenting.forms import FORMS, Form, draw_steps, form_of, steps_without_form
from library.training.augmenting.operations import RaggedPictures
from library.training.augmenting.streams import RandomStreams
from tests.step_examples import AUGMENTATIONS

SHAPES = ((32, 32, 3), (24, 37, 3), (21, 16, 1), (40, 33, 4), (32, 32, 2), (12, 18, 6))
MORE = (
    "random_crop(10, padding=4)",
    'random_crop([8, 12], padding=3, fill="wrap")',
    'random_crop(11, padding=5, fill="edge")',
    "random_resized_crop(16)",
    "random_resized_crop([40, 9], scale=[0.01, 0.2])",
    "random_resized_crop(6, ratio=[3, 5])",
    "random_erase(1, fill=0.3)",
    "random_erase(0.5, scale=[0.6, 1])",
    'flip(direction="both")',
    "rotate(180)",
    'rotate(90, fill="wrap")',
    'zoom([0.5, 2], fill="reflect")',
    'shear(40, axis="both", fill=0.5)',
    'shift(x=0.9, y=1, fill="reflect")',
    "random_blur([0.1, 8])",
    "hue(0.5)",
    "brightness([0, 5])",
    "saturation([0, 90])",
    "channel_shift(1)",
    "gaussian_noise(sigma=0.5)",
    "randaugment(num_ops=1, magnitude=30)",
    'trivial_augment(fill="edge")',
    "sometimes(0.5, random_crop(8) | flip | gaussian_noise(sigma=0.1)) | flip | sometimes(0.3, invert)",
    "random_crop(12, padding=4) | flip | shift | random_erase(0.7) | rotate(10) | brightness(0.3)",
    'flip | center_crop(9) | resize([20, 5], mode="exact") | gaussian_blur(sigma=1)',
    "flip | resize(7) | crop(top=1, left=2, height=6, width=4)",
    "random_crop(8) | invert | crop(top=0, left=2, height=9, width=4)",
    "gaussian_blur(sigma=9) | flip",
    "grayscale | gaussian_noise(sigma=0.05)",
    "sometimes(0.5, grayscale(background=0.3) | rgb | shift)",
    "rgb(background=[0, 0.5, 1]) | hue(0.2)",
    "channels([1, 0]) | gaussian_noise(sigma=0.05)",
    "channels([0, 0, 0, 0, 0])",
    "sometimes(0.5, rotate90) | rotate90(turns=3) | gaussian_noise(sigma=0.02)",
    "flip | rotate90(turns=2)",
    "pad_square(fill=0.5) | random_crop(20)",
    'pad_square(border="reflect") | pad_square',
    'crop(top=0, left=0, height=12, width=1) | pad_square(border="reflect_101")',
    'pad_square(border="replicate")',
    "gamma(2.2) | flip",
    'binarize(method="fixed", threshold=0.4)',
    "equalize | flip",
    "contrast_stretch",
    "contrast_stretch(low_percentile=0, high_percentile=60)",
    "box_blur(size=5)",
    'box_blur(size=9, border="zeros")',
    "sharpen(amount=0.7)",
    "sharpen(amount=100, sigma=3)",
    "laplacian_sharpen(amount=0.3, neighbors=8)",
    'laplacian_sharpen(border="replicate")',
    "convolve([[0, 1, 0], [1, 2, 1]], normalize=True)",
    'convolve([[1, -2], [3, 0.5]], dilation=3, border="reflect")',
    'convolve([[0.1, 0.2, 0.3]], border="zeros")',
)


def pictures(shape: tuple[int, int, int], count: int = 24) -> list[NDArray[np.uint8]]:
    """Noise, slopes and flat pictures in turn."""
    rng = np.random.default_rng(sum(shape))
    y, x = np.mgrid[: shape[0], : shape[1]]
    slopes = np.stack([(3 * y + (5 + band) * x) % 256 for band in range(shape[2])], axis=2).astype(np.uint8)
    noise = [rng.integers(0, 256, shape, np.uint8) for _ in range(count)]
    return [(noise[n], slopes + np.uint8(n), np.full(shape, n, np.uint8))[n % 3] for n in range(count)]


def in_batches(
    text: str, batch: Sequence[NDArray[np.uint8]], sizes: Sequence[int] | None = None
) -> tuple[list[Any], Any]:
    """The batched results, or why a picture cannot be used; and the generators' states."""
    keys = [f"picture/{number}" for number in range(len(batch))]
    results: list[Any] = []
    states: list[Any] = []
    first = 0
    for size in sizes or [len(batch)]:
        part = batch[first : first + size]
        packed = RaggedPictures.pack(part)
        draft = Draft(RandomStreams.of_pictures(7, 3, keys[first : first + size]), packed.shapes)
        draw_steps(Pipeline.parse(text).steps, draft, draft.rows)
        drawn = draft.drawn()
        kept = packed.samples.copy()
        done = [each.numpy() for each in execute(torch.from_numpy(packed.samples), packed.starts, packed.shapes, drawn)]
        np.testing.assert_array_equal(packed.flat, kept)
        results += [drawn.rejected.get(number, each) for number, each in enumerate(done)]
        states += draft.streams.states()
        first += size
    return results, states


def one_by_one(text: str, batch: Sequence[NDArray[np.uint8]]) -> tuple[list[Any], Any]:
    results: list[Any] = []
    states: list[Any] = []
    for number, pixels in enumerate(batch):
        rng = generator(7, 3, f"picture/{number}")
        try:
            for step in Pipeline.parse(text).steps:
                pixels = augmented(step, pixels, rng)
            results.append(pixels)
        except BadPicture as bad:
            results.append(bad)
        states.append(rng.bit_generator.state)
    return results, states


def comparable(state: Any) -> Any:
    """What decides the next numbers of a generator."""
    words = state["buffer"][state["buffer_pos"] :].tolist()
    half = state["uinteger"] if state["has_uint32"] else None
    return state["state"]["counter"].tolist(), state["state"]["key"].tolist(), words, half


def texts() -> list[str]:
    return [text for text in (*AUGMENTATIONS, *MORE) if not steps_without_form(Pipeline.parse(text).steps)]


def tolerance(text: str) -> Form:
    forms = [form_of(step) for step in Pipeline.parse(text).steps]
    return max(
        (form for form in forms if form is not None), key=lambda form: (form.difference.most, form.difference.mean)
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("text", texts())
def test_a_batch_gives_each_picture_what_it_gets_alone(text: str, shape: tuple[int, int, int]) -> None:
    batch = pictures(shape)
    (expected, alone), (results, together) = one_by_one(text, batch), in_batches(text, batch)
    difference = tolerance(text).difference
    for want, got in zip(expected, results, strict=True):
        if isinstance(want, BadPicture):
            assert (got.reason, got.detail) == (want.reason, want.detail)
            continue
        assert got.shape == want.shape
        levels = np.abs(got.astype(int) - want)
        assert levels.max() <= difference.most
        assert levels.mean() <= difference.mean
    assert list(map(comparable, together)) == list(map(comparable, alone))


@pytest.mark.parametrize("text", texts())
def test_a_picture_does_not_depend_on_the_others_of_its_batch(text: str) -> None:
    batch = [picture for shape in SHAPES for picture in pictures(shape, 5)]
    order = np.random.default_rng(1).permutation(len(batch)).tolist()
    batch = [batch[number] for number in order]
    (whole, _), (parts, _), (single, _) = (
        in_batches(text, batch, sizes) for sizes in (None, [7, 1, 13, 9], [1] * len(batch))
    )
    for one, other, alone in zip(whole, parts, single, strict=True):
        if isinstance(one, BadPicture):
            assert (one.reason, one.detail) == (other.reason, other.detail) == (alone.reason, alone.detail)
        else:
            np.testing.assert_array_equal(one, other)
            np.testing.assert_array_equal(one, alone)


def test_every_augmentation_but_jpeg_quality_has_a_batched_form() -> None:
    missing = {
        step.name
        for text in AUGMENTATIONS
        for step in steps_without_form(Pipeline.parse(text).steps)
        if step.kind == "augmentation"
    }
    assert missing == {"jpeg_quality"}
    tested = {step.name for text in AUGMENTATIONS for step in Pipeline.parse(text).steps}
    assert tested == {name for name, step in REGISTRY.items() if step.kind == "augmentation"}


def test_filters_that_have_a_batched_form_are_tested() -> None:
    inside = " ".join(MORE)
    assert all(name in inside for name, step in REGISTRY.items() if step in FORMS and step.kind == "filter")
