"""Loaders that leave augmentation to the device give the batches of those that augment picture by picture."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from library.errors import StriateError
from library.imaging import codec
from library.models.build import create
from library.pipeline import Pipeline
from library.pipeline.augmentation import Augmenter
from library.pipeline.inputs import InputPipeline
from library.recipe import Recipe
from library.training.augmenting.choice import AugmentPlace, choose_place
from library.training.augmenting.drawing import BatchDrawer
from library.training.augmenting.execution import augmented_arrays
from library.training.augmenting.operations import RaggedPictures, UndonePictures
from library.training.batches import Batch
from library.training.in_memory import MemoryLoader, PackedPictures
from library.training.learner import Learner
from library.training.rows import Rows
from library.training.stream_decoding import MAX_CHUNK_BYTES, ChunkDecoder, DecodedChunk, rebatch

SIDE, BATCH = 12, 8
INPUTS = InputPipeline.parse("", f'resize([{SIDE}, {SIDE}], mode="exact")', (SIDE, SIDE), 3)
DEVICE = AugmentPlace("device", "for the test")
AUGMENTATIONS = (
    "random_crop(12, padding=2) | flip | random_erase(p=0.7)",
    "random_resized_crop(12) | flip",
    "sometimes(0.5, random_resized_crop(12)) | brightness(0.2)",
    "randaugment",
    "random_crop(20)",
)


def pictures(count: int = 40, *, ragged: bool = False) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    sides = rng.integers(16, 30, (count, 2)) if ragged else np.full((count, 2), 18)
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in sides.tolist()]


def drawer(text: str) -> BatchDrawer:
    return BatchDrawer(Augmenter(Pipeline.parse(text), 5), INPUTS)


def done(batch: Batch) -> NDArray[Any]:
    pictures = batch.pictures
    return augmented_arrays(pictures) if isinstance(pictures, UndonePictures) else np.asarray(pictures)


def loader(
    text: str, place: AugmentPlace | None, *, ragged: bool = True, rank: int = 0, world_size: int = 1
) -> MemoryLoader:
    shown = pictures(ragged=ragged)
    keys = [f"picture/{number}" for number in range(len(shown))]
    data = PackedPictures.pack(shown, [0, 1] * (len(shown) // 2), keys, Counter())
    return MemoryLoader(
        data,
        None,
        INPUTS,
        Augmenter(Pipeline.parse(text), 5),
        augmentation=place,
        batch_size=BATCH,
        seed=3,
        balanced=False,
        rank=rank,
        world_size=world_size,
    )


def assert_equal_batches(first: Batch, second: Batch) -> None:
    assert list(first.keys) == list(second.keys)
    assert first.labels.tolist() == second.labels.tolist()
    assert first.rejected == second.rejected
    assert np.abs(done(first).astype(int) - done(second)).max() <= 4


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("text", AUGMENTATIONS)
def test_pictures_in_memory_become_the_same_batches(text: str, ragged: bool) -> None:
    if text == AUGMENTATIONS[-1] and not ragged:
        started = loader(text, DEVICE, ragged=ragged)
        started.start(0, 0, 1)
        with pytest.raises(StriateError, match="too_small 8; the last one: a crop of 20x20 from a picture of 18x18"):
            next(started.training())
        return
    alone, together = (loader(text, place, ragged=ragged) for place in (None, DEVICE))
    for each in (alone, together):
        each.start(0, 0, 7)
    rejected = 0
    for _ in range(2):
        for first, second in zip(alone.training(), together.training(), strict=True):
            assert isinstance(second.pictures, UndonePictures)
            assert_equal_batches(first, second)
            rejected += second.rejected
    assert bool(rejected) == (text == AUGMENTATIONS[-1])


@pytest.mark.parametrize("text", AUGMENTATIONS[:-1])
def test_workers_and_a_resumed_training_give_the_same_pictures(text: str) -> None:
    whole, resumed, first, second = (
        loader(text, DEVICE, rank=rank, world_size=size) for rank, size in ((0, 1), (0, 1), (0, 2), (1, 2))
    )
    whole.start(1, 0, 5)
    resumed.start(1, 2, 3)
    first.start(1, 0, 5)
    second.start(1, 0, 5)
    batches = list(whole.training())
    for one, other in zip(batches[2:], resumed.training(), strict=True):
        np.testing.assert_array_equal(done(one), done(other))
    for one, *halves in zip(batches, first.training(), second.training(), strict=True):
        np.testing.assert_array_equal(done(one), np.concatenate([done(half) for half in halves]))


@pytest.mark.parametrize("text", AUGMENTATIONS)
def test_a_batch_that_is_packed_for_a_gpu_gives_the_same_pictures(text: str) -> None:
    started = loader(text, DEVICE)
    started.start(0, 0, 1)
    (batch,) = started.training()
    undone = batch.pictures
    assert isinstance(undone, UndonePictures)
    packed = undone.packed()
    assert len(packed.pictures.flat) <= undone.pictures.shapes.prod(axis=1).sum() < len(undone.pictures.flat)
    np.testing.assert_array_equal(augmented_arrays(undone), augmented_arrays(packed))


def records(*, damaged: tuple[int, ...] = (), deep: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    encoded = [codec.encode(picture, codec.Encoding("png"))[0] for picture in pictures(24, ragged=True)]
    for number in deep:
        picture = np.full((20, 20, 3), 300 * number, np.uint16)
        encoded[number] = codec.encode(picture, codec.Encoding("png"))[0]
    data = [each[:40] if number in damaged else each for number, each in enumerate(encoded)]
    return [{"bytes": each, "key": f"{n}", "label": "ab"[n % 2]} for n, each in enumerate(data)]


def chunks(
    text: str, place: AugmentPlace | None, shown: list[dict[str, Any]], max_bytes: int = MAX_CHUNK_BYTES
) -> list[DecodedChunk]:
    augmenter = Augmenter(Pipeline.parse(text), 5)
    decoder = ChunkDecoder(("a", "b"), INPUTS, augmenter, place, max_bytes=max_bytes)
    return [chunk for first in range(0, len(shown), 6) for chunk in decoder.decode(shown[first : first + 6], 2)]


def batches(text: str, decoded: list[DecodedChunk]) -> list[Batch]:
    def finish(chunk: DecodedChunk) -> NDArray[Any]:
        return done(chunk.to_batch(len(chunk), drawer(text), 2))

    rows = Rows("dataset", ("part-000000.parquet",), np.asarray([24]), ("a", "b"), {"a": 12, "b": 12})
    return [part.to_batch(8, drawer(text), 2) for part in rebatch(iter(decoded), rows, 8, 24, finish)]


@pytest.mark.parametrize("text", AUGMENTATIONS)
def test_a_stream_becomes_the_same_batches(text: str) -> None:
    shown = records(damaged=(0, 7, 12, 13, 14, 15, 16, 17))
    alone, together = chunks(text, None, shown), chunks(text, DEVICE, shown)
    for first, second in zip(alone, together, strict=True):
        assert list(first.rejected) == list(second.rejected)
        assert first.replaced.tolist() == second.replaced.tolist()
    for first, second in itertools.zip_longest(batches(text, alone), batches(text, together)):
        assert isinstance(second.pictures, UndonePictures)
        assert_equal_batches(first, second)


@pytest.mark.parametrize("text", AUGMENTATIONS[:2])
def test_a_chunk_that_is_too_large_is_divided_and_still_left_to_the_device(text: str) -> None:
    shown, most = records(damaged=(0, 7, 12, 13, 14, 15, 16, 17)), 3 * 20 * 20 * 3
    alone, together = chunks(text, None, shown), chunks(text, DEVICE, shown, most)
    assert len(together) > len(alone)
    for chunk in together:
        assert isinstance(chunk.pictures, RaggedPictures) or not len(chunk.labels)
        whole = {key: np.prod(shape) for key, shape in zip(chunk.keys, whole_shapes(chunk), strict=True)}
        assert sum(whole.values()) <= most or len(whole) == 1
    for first, second in itertools.zip_longest(batches(text, alone), batches(text, together)):
        assert isinstance(second.pictures, UndonePictures)
        assert second.on_cpu == 0
        assert_equal_batches(first, second)


def whole_shapes(chunk: DecodedChunk) -> list[list[int]]:
    return chunk.pictures.whole.tolist() if isinstance(chunk.pictures, RaggedPictures) else []


def test_a_chunk_with_other_samples_is_augmented_where_it_is_decoded() -> None:
    text = "flip | random_crop(12)"
    shown = records(deep=(9,))
    alone, together = batches(text, chunks(text, None, shown)), batches(text, chunks(text, DEVICE, shown))
    assert [isinstance(batch.pictures, UndonePictures) for batch in together] == [False, False, True]
    assert [batch.on_cpu for batch in together] == [8, 8, 0]
    for first, second in zip(alone, together, strict=True):
        if done(first).dtype == np.uint8:
            assert_equal_batches(first, second)
        else:
            np.testing.assert_allclose(done(first), done(second), atol=1 / 255)


def test_the_device_refuses_other_samples_if_the_recipe_asks_for_it() -> None:
    asked = choose_place(parsed(Path("data"), augment_on="device"), INPUTS, "cuda", in_memory=False)
    assert asked is not None
    with pytest.raises(StriateError, match="picture '9': augment_on: device cannot be used: pictures of uint16 have"):
        chunks(AUGMENTATIONS[0], asked, records(deep=(9,)))


def parsed(dataset: Path, **fields: Any) -> Recipe:
    recipe = {
        "data": {"train": str(dataset)},
        "input": {"size": SIDE},
        "augment": AUGMENTATIONS[0],
        "model": "resnet9(in_chans=3)",
        "optimizer": {"name": "sgd", "lr": 0.1},
        "batch_size": BATCH,
        "epochs": 1,
    }
    return Recipe.parse(yaml.safe_dump({**recipe, **fields}))


def test_a_step_learns_from_what_the_device_has_augmented(tmp_path: Path) -> None:
    losses: list[float] = []
    for place in (None, DEVICE):
        torch.manual_seed(0)
        started = loader(AUGMENTATIONS[0], place)
        started.start(0, 0, 5)
        recipe = parsed(tmp_path, accumulate=2)
        model = create("resnet9(in_chans=3)", num_classes=2)
        counts = {"a": 20, "b": 20}
        cpu = torch.device("cpu")
        learner = Learner(recipe, model, class_counts=counts, total_steps=5, steps_per_epoch=5, device=cpu)
        losses.append(sum(float(learner.step(batch, step)) for step, batch in enumerate(started.training())))
    assert losses[0] == losses[1]
