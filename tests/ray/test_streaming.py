"""The stream of a training: one Ray Data pipeline for all epochs, in an order known before it starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from jobs.train.streaming import Stage, StreamLoader, StreamSource, remaining_stages
from library.dataset.record import ImageRecord, dataset_schema, table_of
from library.errors import StriateError
from library.imaging import codec
from library.pipeline import Pipeline
from library.pipeline.augmentation import Augmenter
from library.pipeline.inputs import InputPipeline
from library.steps import plugins
from library.training.augmenting.choice import AugmentPlace
from library.training.augmenting.execution import augmented_arrays
from library.training.augmenting.operations import UndonePictures
from library.training.rows import Rows, read_part
from library.training.sampling import WorkerShare
from library.training.stream_decoding import MAX_CHUNK_BYTES
from tests.plugins import unloaded_afterwards, write_plugin

SIDE, PICTURES, BATCH = 8, 240, 16
STEPS = PICTURES // BATCH


#: A step that writes a file named after the decoding process.
NOTE_PROCESS = '''
import os
from pathlib import Path

from library.steps import register


@register("filter")
class NoteProcess:
    """Notes the process."""

    folder: str

    def __call__(self, pixels):
        (Path(self.folder) / str(os.getpid())).touch()
        return pixels
'''


def dataset(folder: Path, counts: list[int], *, damaged: bool = False) -> Rows:
    """Shards of small pictures; the key of each is its number."""
    names: list[str] = []
    header = codec.Header("png", SIDE, SIDE, 1)
    for shard, count in enumerate(counts):
        records: list[ImageRecord] = []
        for number in range(sum(counts[:shard]), sum(counts[:shard]) + count):
            data, _ = codec.encode(np.full((SIDE, SIDE, 1), number % 256, np.uint8), codec.Encoding("png"))
            label = "ab"[number % 2]
            records.append(ImageRecord(str(number), data[:30] if damaged else data, None, label, header))
        names.append(f"part-{shard:06d}.parquet")
        pq.write_table(table_of(records, dataset_schema()), folder / names[-1], row_group_size=50)
    total = sum(counts)
    return Rows(str(folder), tuple(names), np.asarray(counts), ("a", "b"), {"a": total - total // 2, "b": total // 2})


def loader(rows: Rows, steps: Pipeline, *, val: Rows | None = None, tables: Sequence[Any] = ()) -> StreamLoader:
    inputs = InputPipeline(steps, Pipeline.parse(f'resize([{SIDE}, {SIDE}], mode="exact")'), (SIDE, SIDE), 1)
    source = StreamSource(WorkerShare(rows, BATCH, 0, 1), val, inputs, None, 3, train_tables=tables)
    return StreamLoader(source, decoders=2, decoder_cpus=0.5)


def augmented(rows: Rows, place: AugmentPlace | None) -> StreamLoader:
    inputs = InputPipeline(Pipeline(), Pipeline.parse(f'resize([{SIDE}, {SIDE}], mode="exact")'), (SIDE, SIDE), 1)
    augmenter = Augmenter(Pipeline.parse(f"random_resized_crop({SIDE}) | random_erase(p=0.5)"), 3)
    source = StreamSource(WorkerShare(rows, BATCH, 0, 1), None, inputs, augmenter, 3, augmentation=place)
    return StreamLoader(source, decoders=2, decoder_cpus=0.5)


def epoch(source: StreamLoader) -> list[list[str]]:
    """The keys of each remaining batch of the current epoch."""
    return [list(batch.keys) for batch in source.training()]


@pytest.fixture
def note_process(tmp_path: Path) -> Iterator[Path]:
    """The folder in which the step `note_process` leaves its files."""
    with unloaded_afterwards():
        plugins.load([write_plugin(tmp_path, NOTE_PROCESS)])
        (tmp_path / "processes").mkdir()
        yield tmp_path / "processes"


def test_decoders_share_one_shard_and_live_as_long_as_the_training(tmp_path: Path, note_process: Path) -> None:
    processes, rows = note_process, dataset(tmp_path, [PICTURES])
    source = loader(rows, Pipeline.parse(f'note_process("{processes}")'), val=rows)
    epochs = 200
    source.start(0, 0, epochs * STEPS)
    streamed: list[list[list[str]]] = []
    # One decoder may start before the other; in the end both must have decoded, and no third one.
    while len(streamed) < 3 or (len(list(processes.iterdir())) < 2 and len(streamed) < epochs):
        streamed.append(epoch(source))
        assert sorted(int(key) for keys in streamed[-1] for key in keys) == list(range(PICTURES))
        assert [key for batch in source.validation(100) for key in batch.keys] == [str(n) for n in range(PICTURES)]
    assert len(list(processes.iterdir())) == 2
    assert streamed[0] != streamed[1] != streamed[2]


@dataclass(frozen=True)
class Undisturbed:
    """A dataset of three shards, and the keys of each batch of its first two epochs."""

    rows: Rows
    first: list[list[str]]
    second: list[list[str]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    rows = dataset(tmp_path_factory.mktemp("streamed"), [100, 10, 130])
    whole = loader(rows, Pipeline.parse("grayscale"))
    whole.start(0, 0, 2 * STEPS)
    return Undisturbed(rows, epoch(whole), epoch(whole))


def test_a_resumed_stream_continues_as_an_uninterrupted_one(undisturbed: Undisturbed) -> None:
    resumed = loader(undisturbed.rows, Pipeline.parse("grayscale"))
    resumed.start(1, 4, STEPS - 4 - 2)
    assert epoch(resumed) == undisturbed.second[4:-2]


def test_pictures_held_encoded_are_streamed_in_the_same_order(undisturbed: Undisturbed) -> None:
    rows = undisturbed.rows
    tables = [ray.put(read_part(rows, (shard, 0, count))) for shard, count in enumerate(rows.counts.tolist())]
    resident = loader(replace(rows, dataset="/nowhere"), Pipeline.parse("grayscale"), tables=tables)
    resident.start(0, 0, STEPS)
    assert epoch(resident) == undisturbed.first


def test_a_stream_that_the_device_augments_has_the_same_pictures(undisturbed: Undisturbed) -> None:
    alone, together = (augmented(undisturbed.rows, place) for place in (None, AugmentPlace("device", "for the test")))
    for source in (alone, together):
        source.start(1, STEPS - 3, 3)
    for one, other in zip(alone.training(), together.training(), strict=True):
        assert isinstance(other.pictures, UndonePictures)
        pictures = augmented_arrays(other.pictures)
        assert list(one.keys) == list(other.keys)
        assert np.abs(np.asarray(one.pictures).astype(int) - pictures).max() <= 1


def test_an_unusable_dataset_ends_the_stream_with_one_sentence(tmp_path: Path) -> None:
    source = loader(dataset(tmp_path, [20], damaged=True), Pipeline.parse("grayscale"))
    source.start(0, 0, 1)
    with pytest.raises(StriateError, match=r"^\S+: none of 16 pictures can be used: truncated 16$"):
        epoch(source)


@pytest.mark.parametrize(
    ("batch_size", "picture_bytes", "chunk_rows"),
    [(64, 1e5, 64), (256, 1e5, 86), (10, 1e5, 30), (1, 1e5, 32), (120, 1e5, 60), (64, 4e6, 4), (64, 1e8, 1)],
)
def test_a_chunk_is_an_even_part_of_a_batch_or_a_few_batches(
    batch_size: int, picture_bytes: float, chunk_rows: int
) -> None:
    counts = {"a": 500, "b": 500}
    rows = Rows("nowhere", ("part-000000.parquet",), np.asarray([1000]), ("a", "b"), counts, picture_bytes)
    inputs = InputPipeline(Pipeline(), Pipeline(), (224, 224), 3)
    assert StreamSource(WorkerShare(rows, batch_size, 0, 1), None, inputs, None, 0).chunk_rows == chunk_rows


@pytest.mark.parametrize(("decoded_bytes", "chunk_rows"), [(1e4, 86), (610e3, 64), (36e6, 1), (1e9, 1)])
def test_a_chunk_that_the_device_augments_fits_as_decoded(decoded_bytes: float, chunk_rows: int) -> None:
    rows = Rows("nowhere", ("part-000000.parquet",), np.asarray([1000]), ("a", "b"), {"a": 500, "b": 500}, 1e5)
    inputs = InputPipeline.parse("", 'resize([224, 224], mode="exact")', (224, 224), 3)
    augmenter = Augmenter(Pipeline.parse("flip"), 3)
    source = StreamSource(WorkerShare(rows, 256, 0, 1), None, inputs, augmenter, 0)
    source = replace(source, augmentation=AugmentPlace("device", "for the test"), decoded_bytes=decoded_bytes)
    assert source.chunk_rows == chunk_rows
    assert chunk_rows * decoded_bytes < MAX_CHUNK_BYTES or chunk_rows == 1


def test_the_remaining_stages_are_known_at_the_start() -> None:
    assert remaining_stages(10, 2, 7, 15, validated=True) == [
        Stage(True, 2, 7, 10),
        Stage(False, 2, 0, 0),
        Stage(True, 3, 0, 10),
        Stage(False, 3, 0, 0),
        Stage(True, 4, 0, 2),
        Stage(False, 4, 0, 0),
    ]
    assert remaining_stages(10, 0, 0, 10, validated=False) == [Stage(True, 0, 0, 10)]
