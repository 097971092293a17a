"""Decoding into memory, and batches from memory: for any number of workers, resumed, and augmented ahead."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from library.dataset.record import ImageRecord, dataset_schema, table_of
from library.errors import StriateError
from library.imaging import codec
from library.imaging.picture import Pixels
from library.pipeline import Pipeline
from library.pipeline.augmentation import Augmenter
from library.pipeline.inputs import InputPipeline
from library.steps.base import Kind
from library.training.in_memory import MemoryLoader, PackedPictures, decode_rows
from library.training.rows import Rows

_PNG = codec.Encoding("png")
INPUTS = InputPipeline(Pipeline(), Pipeline(), (4, 4), 1)
PICTURES, BATCH = 40, 8
STEPS = PICTURES // BATCH
AUGMENTED = threading.Semaphore(0)


@dataclass(frozen=True)
class CountedTurn:
    """Flips a picture and counts it; not registered, because other tests go through all registered steps."""

    kind: ClassVar[Kind] = "augmentation"
    name: ClassVar[str] = "counted_turn"

    def columns(self) -> tuple[str, ...]:
        return ()

    def may_drop(self) -> bool:
        return False

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        AUGMENTED.release()
        return np.ascontiguousarray(pixels[::-1])


def loader(*, rank: int = 0, world_size: int = 1, augmented: bool = False) -> MemoryLoader:
    pictures = [np.full((4, 4, 1), number, np.uint8) for number in range(PICTURES)]
    data = PackedPictures.pack(
        pictures, [0, 1] * (PICTURES // 2), [str(number) for number in range(PICTURES)], Counter()
    )
    augmenter = Augmenter(Pipeline((CountedTurn(),)), 0) if augmented else None
    options: dict[str, Any] = {"batch_size": BATCH, "seed": 3, "balanced": False, "threads": 2}
    return MemoryLoader(data, data, INPUTS, augmenter, rank=rank, world_size=world_size, **options)


def keys(loaded: MemoryLoader) -> list[list[str]]:
    return [list(batch.keys) for batch in loaded.training()]


def test_every_epoch_has_each_picture_once_in_a_new_order() -> None:
    for augmented in (False, True):
        loaded = loader(augmented=augmented)
        loaded.start(0, 0, 2 * STEPS)
        first, second = keys(loaded), keys(loaded)
        assert first != second
        for keys_of_epoch in (first, second):
            assert sorted(int(key) for batch in keys_of_epoch for key in batch) == list(range(PICTURES))


def test_a_resumed_training_takes_the_remaining_batches() -> None:
    for augmented in (False, True):
        whole, resumed = loader(augmented=augmented), loader(augmented=augmented)
        whole.start(0, 0, 2 * STEPS)
        resumed.start(1, 2, STEPS - 2 - 1)
        assert keys(resumed) == (keys(whole), keys(whole))[1][2:-1]


def test_two_workers_take_the_halves_of_one_workers_batches() -> None:
    one, *two = loader(), loader(rank=0, world_size=2), loader(rank=1, world_size=2)
    for loaded in (one, *two):
        loaded.start(0, 0, STEPS)
    assert [left + right for left, right in zip(*map(keys, two), strict=True)] == keys(one)
    parts = [list(batch.keys) for loaded in two for batch in loaded.validation(7)]
    assert [key for part in parts for key in part] == [str(number) for number in range(PICTURES)]


def test_the_next_epoch_is_augmented_while_this_one_ends() -> None:
    while AUGMENTED.acquire(blocking=False):
        pass
    loaded = loader(augmented=True)
    loaded.start(0, 0, 2 * STEPS)
    keys(loaded)
    # More pictures than the epoch has, though no batch of the next epoch was requested.
    assert all(AUGMENTED.acquire(timeout=60) for _ in range(PICTURES + BATCH))


def rows_of(folder: Path, records: list[ImageRecord]) -> Rows:
    """The rows of a dataset of one shard whose pictures have masks."""
    schema = dataset_schema([pa.field("mask", pa.binary())])
    pq.write_table(table_of(records, schema), folder / "part-0.parquet")
    counts = Counter(str(record.label) for record in records)
    classes = tuple(sorted(counts))
    sizes = np.asarray([len(records)])
    return Rows(str(folder), ("part-0.parquet",), sizes, classes, {name: counts[name] for name in classes})


def record(key: str, label: str, data: bytes, mask: bytes = b"") -> ImageRecord:
    return ImageRecord(key, data, None, label, codec.Header("png", 16, 16, 1), {"mask": mask})


def inputs(steps: str) -> InputPipeline:
    return InputPipeline(Pipeline.parse(steps), Pipeline.parse('resize([16, 16], mode="exact")'), (16, 16), 1)


def test_a_step_gets_the_column_that_it_needs(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 1), np.uint8)
    everything = codec.encode(np.full((16, 16, 1), 255, np.uint8), _PNG)[0]
    rows = rows_of(tmp_path, [record("a", "x", codec.encode(pixels, _PNG)[0], everything)])
    pipeline = inputs('grayscale | blur_background(sigma=3, mask_column="mask")')
    assert pipeline.columns == ("mask",)
    assert np.array_equal(decode_rows(rows, (0, 0, 1), pipeline, fitted=True)[0], pixels)


def test_a_class_with_only_damaged_pictures_is_named(tmp_path: Path) -> None:
    good = codec.encode(np.zeros((16, 16, 1), np.uint8), _PNG)[0]
    rows = rows_of(tmp_path, [record("a", "fine", good), record("b", "gone", good[:40])])
    decoded = decode_rows(rows, (0, 0, 2), inputs("grayscale"), fitted=True)
    with pytest.raises(StriateError, match=r"no picture can be used of: gone; rejected in all: \w+ 1"):
        decoded.check_classes(rows.dataset, rows.classes)
    decoded.check_classes(rows.dataset, rows.classes[:1])
