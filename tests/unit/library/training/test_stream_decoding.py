"""The windows of a stream: their order, how they become batches, and the stand-ins for damaged pictures."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from library.dataset.record import ImageRecord, dataset_schema, table_of
from library.errors import StriateError, UsageError
from library.imaging import codec
from library.pipeline import Pipeline
from library.pipeline.inputs import InputPipeline
from library.training.batches import UnusablePictures
from library.training.rows import Rows, check_columns, read_part, read_pictures
from library.training.sampling import Window, stored_order_groups
from library.training.stream_decoding import (
    ChunkDecoder,
    DecodedChunk,
    WindowReader,
    cut_table,
    rebatch,
)

SIDE = 8
PNG = codec.Encoding("png")


def picture(value: int) -> bytes:
    return codec.encode(np.full((SIDE, SIDE, 1), value, np.uint8), PNG)[0]


def dataset(folder: Path, pictures: list[bytes], labels: str) -> Rows:
    """One shard with row groups of 3 rows; the picture of row n has the value n, unless it is damaged."""
    header = codec.Header("png", SIDE, SIDE, 1)
    records = [
        ImageRecord(str(number), data, None, label, header, {"mask": picture(255)})
        for number, (data, label) in enumerate(zip(pictures, labels, strict=True))
    ]
    table = table_of(records, dataset_schema([pa.field("mask", pa.binary())]))
    pq.write_table(table, folder / "part-000000.parquet", row_group_size=3, write_page_checksum=True)
    classes = tuple(sorted(set(labels)))
    counts = {name: labels.count(name) for name in classes}
    return Rows(str(folder), ("part-000000.parquet",), np.asarray([len(records)]), classes, counts)


def inputs(steps: str = "grayscale") -> InputPipeline:
    fit = Pipeline.parse(f'resize([{SIDE}, {SIDE}], mode="exact")')
    return InputPipeline(Pipeline.parse(steps), fit, (SIDE, SIDE), 1)


def keys(rows: Rows, window: Window) -> list[int]:
    return [
        int(key)
        for key in WindowReader(rows, functools.partial(read_part, rows), 3, 0).window(window, 0)["key"].to_pylist()
    ]


def decoded(rows: Rows, steps: str = "grayscale") -> DecodedChunk:
    records = read_pictures(rows, (0, 0, len(rows)), inputs(steps).columns)
    (chunk,) = ChunkDecoder(rows.classes, inputs(steps), None).decode(records, 0)
    return chunk


def test_rows_in_the_middle_of_a_shard_are_read_without_the_rest(tmp_path: Path) -> None:
    rows = dataset(tmp_path, [picture(number) for number in range(10)], "ab" * 5)
    some = rows.only(np.isin(np.arange(10), [0, 4, 5, 8]), [3, 1])
    assert [record["key"] for record in read_pictures(some, (0, 1, 4))] == ["4", "5", "8"]
    damaged = bytearray((tmp_path / "part-000000.parquet").read_bytes())
    damaged[100] ^= 255  # in the first row group
    (tmp_path / "part-000000.parquet").write_bytes(damaged)
    assert [record["key"] for record in read_pictures(some, (0, 1, 4))] == ["4", "5", "8"]
    with pytest.raises(StriateError, match="row group 0"):
        read_pictures(some, (0, 0, 1))


def test_a_window_is_shuffled_as_a_whole_and_resumes_where_it_stopped(tmp_path: Path) -> None:
    rows = dataset(tmp_path, [picture(number) for number in range(10)], "ab" * 5)
    whole = keys(rows, Window((0, 0), ((0, 0, 10),), 0, 10))
    assert sorted(whole) == list(range(10)) != whole
    assert keys(rows, Window((0, 0), ((0, 0, 10),), 4, 5)) == whole[4:9]
    assert keys(rows, Window((0, 1), ((0, 0, 10),), 0, 10)) != whole
    assert keys(rows, Window(None, ((0, 2, 5),), 0, 3)) == [2, 3, 4]


def test_windows_are_read_in_order_and_cut_into_chunks(tmp_path: Path) -> None:
    rows = dataset(tmp_path, [picture(number) for number in range(10)], "ab" * 5)
    tables = WindowReader(rows, functools.partial(read_part, rows), 3, 0).windows(stored_order_groups(rows, 0, 1), 0)
    chunks = [chunk["key"].to_pylist() for table in tables for chunk in cut_table(table, 4)]
    assert chunks == [["0", "1", "2", "3"], ["4", "5", "6", "7"], ["8", "9"]]


def test_chunks_become_batches_of_any_size(tmp_path: Path) -> None:
    rows = dataset(tmp_path, [picture(number) for number in range(10)], "ab" * 5)
    whole = decoded(rows)
    parts = iter([whole[:3], whole[3:4], whole[4:10], whole[:2]])
    batches = [batch.keys for batch in rebatch(parts, rows, 4, 10)]
    assert batches == [["0", "1", "2", "3"], ["4", "5", "6", "7"], ["8", "9"]]
    assert list(next(parts).keys) == ["0", "1"], "the rest is left for the next stage"


def test_a_damaged_picture_is_replaced_and_counted_by_its_class(tmp_path: Path) -> None:
    pictures = [picture(number) for number in range(6)]
    pictures[0] = pictures[4] = picture(0)[:30]
    rows = dataset(tmp_path, pictures, "abaaba")
    chunk = decoded(rows)
    assert chunk.pictures[:, 0, 0, 0].tolist() == [1, 1, 2, 3, 3, 5]
    assert chunk.labels.tolist() == [1, 1, 0, 0, 0, 0]
    assert chunk.replaced.tolist() == [0, -1, -1, -1, 1, -1]
    assert [bool(reason) for reason in chunk.rejected] == [True, False, False, False, True, False]
    assert list(chunk.without_stand_ins().keys) == ["1", "2", "3", "5"]
    unusable = UnusablePictures(rows)
    unusable.add(chunk.replaced, chunk.rejected)
    assert unusable.by_class.tolist() == [1, 1]
    assert unusable.by_reason.total() == 2


def test_a_neighbour_stands_in_for_a_chunk_of_damaged_pictures(tmp_path: Path) -> None:
    pictures = [picture(number) if number in (3, 4) else picture(0)[:30] for number in range(8)]
    rows = dataset(tmp_path, pictures, "abababab")
    records = read_pictures(rows, (0, 0, 8))
    decoder = ChunkDecoder(rows.classes, inputs(), None)
    parts = [chunk for first in range(0, 8, 2) for chunk in decoder.decode(records[first : first + 2], 0)]
    batches = list(rebatch(iter(parts), rows, 4, 8))
    assert [batch.pictures[:, 0, 0, 0].tolist() for batch in batches] == [[3, 3, 3, 3], [4, 4, 4, 4]]
    assert [batch.replaced.tolist() for batch in batches] == [[0, 1, 0, -1], [-1, 1, 0, 1]]
    with pytest.raises(StriateError, match=r"^\S+: none of 4 pictures can be used: truncated 4$"):
        list(rebatch(iter([parts[0], parts[3]]), rows, 4, 4))


def test_a_step_gets_its_column_and_a_missing_column_is_an_error(tmp_path: Path) -> None:
    rows = dataset(tmp_path, [picture(7)], "a")
    assert decoded(rows, 'blur_background(sigma=2, mask_column="mask")').pictures.flat[0] == 7
    with pytest.raises(UsageError, match=r"need the column masc, which .* lacks; it has .*mask"):
        check_columns(rows, ("masc",))
