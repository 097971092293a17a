"""Shards written and read, whole and damaged."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from library.dataset.manifest import FileEntry
from library.dataset.record import CORE_COLUMNS, dataset_schema, reject_schema
from library.dataset.shards import ROW_GROUP_BYTES, ShardReader, ShardWriter, read_rows, shard_name
from library.errors import StriateError
from tests.picture_examples import encoded, table
from tests.processes import reading_threads

ROWS = table(
    [encoded("jpeg"), encoded("png"), None],
    ["cat", None, "dog"],
    boxes=[[1], [], [2, 3]],
    about=[{"a": 1}, None, {"a": 2}],
)


def write(folder: Path, tables: Iterable[pa.Table], name: str = "part-000000.parquet") -> FileEntry:
    with ShardWriter(str(folder), name, ROWS.schema) as writer:
        for rows in tables:
            writer.add(rows)
    return writer.entry


def big(rows: int, size: int) -> pa.Table:
    """Rows whose pictures take `size` bytes each."""
    return table(
        [bytes([row % 251]) * size for row in range(rows)],
        boxes=[[row] for row in range(rows)],
        about=[{"a": 1}] * rows,
    )


# -- writing and reading ----------------------------------------------------------------------------------------------


def test_a_shard_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path, [ROWS, ROWS.slice(0, 0), ROWS.slice(1)])
    reader = ShardReader(str(tmp_path / "part-000000.parquet"))
    assert reader.schema() == ROWS.schema
    assert reader.schema().metadata == ROWS.schema.metadata
    assert pa.concat_tables(reader).equals(pa.concat_tables([ROWS, ROWS.slice(1)]))
    assert reader.waited_s > 0


def test_the_entry_describes_the_file(tmp_path: Path) -> None:
    entry = write(tmp_path, [ROWS, ROWS])
    data = (tmp_path / entry.name).read_bytes()
    assert entry == FileEntry(
        name="part-000000.parquet", rows=6, bytes=len(data), digest=hashlib.sha256(data).hexdigest()
    )


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = (
        write(tmp_path / "one", [ROWS, ROWS]),
        write(tmp_path / "two", [pa.concat_tables([ROWS, ROWS]).combine_chunks()]),
    )
    assert one == two
    other = write(tmp_path / "three", [ROWS, ROWS.slice(0, 2)])
    assert other.digest != one.digest


def test_row_groups_hold_8_to_16_megabytes_of_pictures(tmp_path: Path) -> None:
    write(tmp_path, (big(5, 700_000) for _ in range(13)))
    metadata = pq.ParquetFile(tmp_path / "part-000000.parquet").metadata
    sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    assert len(sizes) > 2
    assert all(8 * 2**20 <= size <= 16 * 2**20 for size in sizes[:-1]), sizes
    assert sizes[-1] <= 16 * 2**20
    assert ROW_GROUP_BYTES <= 16 * 2**20
    read = [rows["boxes"].to_pylist() for rows in ShardReader(str(tmp_path / "part-000000.parquet"))]
    assert [len(rows) for rows in read] == [metadata.row_group(group).num_rows for group in range(len(sizes))]
    assert [boxes for rows in read for boxes in rows] == [[row] for _ in range(13) for row in range(5)]


def test_reading_can_stop_after_any_row_group(tmp_path: Path) -> None:
    write(tmp_path, (big(20, 700_000) for _ in range(3)))
    tables = iter(ShardReader(str(tmp_path / "part-000000.parquet")))
    assert next(tables).num_rows == 20
    del tables
    (tmp_path / "part-000000.parquet").unlink()


def test_a_shard_can_be_empty(tmp_path: Path) -> None:
    entry = write(tmp_path, [])
    assert entry.rows == 0
    assert list(ShardReader(str(tmp_path / entry.name))) == []
    assert ShardReader(str(tmp_path / entry.name)).schema().equals(ROWS.schema)


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_string(),
        pa.list_(pa.list_(pa.float32())),
        pa.list_(pa.int8(), 2),
        pa.large_list(pa.struct([("x", pa.int8())])),
        pa.map_(pa.string(), pa.int32()),
        pa.struct([("a.b", pa.string()), ("c", pa.struct([("d", pa.list_(pa.date32()))]))]),
        pa.dictionary(pa.int32(), pa.string()),
        pa.decimal128(10, 2),
        pa.timestamp("ns", "Europe/Berlin"),
        pa.null(),
        pa.bool_(),
        pa.binary(3),
    ],
    ids=str,
)
def test_a_column_of_any_type_is_read_back_with_its_type(tmp_path: Path, kind: pa.DataType) -> None:
    rows = ROWS.append_column(pa.field("odd.name", kind), pa.nulls(3, kind))
    with ShardWriter(str(tmp_path), "part-000000.parquet", rows.schema) as writer:
        writer.add(rows)
    reader = ShardReader(str(tmp_path / "part-000000.parquet"))
    assert reader.schema().field("odd.name").type == kind
    assert pa.concat_tables(reader).equals(rows)


def test_names_of_shards_sort_like_their_numbers() -> None:
    names = [shard_name(number) for number in (0, 9, 10, 99_999, 100_000, 999_999)]
    assert names[0] == "part-000000"
    assert names == sorted(names)


# -- for other programs -----------------------------------------------------------------------------------------------


def test_the_schema_tells_hugging_face_that_the_column_is_a_picture(tmp_path: Path) -> None:
    write(tmp_path, [ROWS])
    metadata = pq.read_schema(tmp_path / "part-000000.parquet").metadata
    assert json.loads(metadata[b"huggingface"])["info"]["features"]["image"] == {"_type": "Image"}


def test_pictures_are_not_compressed_again_and_the_rest_is(tmp_path: Path) -> None:
    write(tmp_path, [ROWS])
    group = pq.ParquetFile(tmp_path / "part-000000.parquet").metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    compressed = {column.path_in_schema: column.compression for column in columns}
    assert compressed.pop("image.bytes") == "UNCOMPRESSED"
    assert set(compressed.values()) == {"ZSTD"}


def test_a_dataset_has_core_columns_first_and_rejects_have_a_reason() -> None:
    schema = dataset_schema([pa.field("boxes", pa.list_(pa.int32()))])
    assert schema.names == [*CORE_COLUMNS, "boxes"]
    assert reject_schema(schema).names == [*CORE_COLUMNS, "boxes", "reason", "detail"]


# -- damage -----------------------------------------------------------------------------------------------------------


def read_all(path: Path) -> pa.Table:
    reader = ShardReader(str(path))
    assert reader.schema() == ROWS.schema
    return pa.concat_tables(reader)


def test_a_wrong_byte_in_any_page_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    entry = write(tmp_path, [ROWS])
    path = tmp_path / entry.name
    data = path.read_bytes()
    group = pq.ParquetFile(path).metadata.row_group(0)
    for number in range(group.num_columns):
        column = group.column(number)
        changed = bytearray(data)
        changed[(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 1] ^= 1
        path.write_bytes(changed)
        with pytest.raises(StriateError, match=f"{path}, row group 0: "):
            read_all(path)


def test_a_wrong_byte_anywhere_is_an_error_or_changes_no_row(tmp_path: Path) -> None:
    path = tmp_path / write(tmp_path, [ROWS]).name
    data = path.read_bytes()
    messages: list[str] = []
    for place in range(0, len(data), 6):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            list(ShardReader(str(path)))
        except StriateError as error:
            messages.append(str(error))
    assert all(str(path) in message for message in messages)
    assert len(messages) > len(data) / 6 / 2


def test_a_shard_cut_off_anywhere_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / write(tmp_path, [ROWS]).name
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(StriateError, match=f"{path} is not a readable shard"):
            ShardReader(str(path)).schema()


def test_a_parquet_file_of_another_program_is_not_a_shard(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "part-000000.parquet")
    with pytest.raises(
        StriateError, match=r"part-000000.parquet is not a shard of a dataset: it lacks the column 'image'"
    ):
        list(ShardReader(str(tmp_path / "part-000000.parquet")))


@pytest.mark.parametrize("max_rows", [None, 1])
def test_a_shard_with_other_rows_than_the_manifest_says_is_refused(tmp_path: Path, max_rows: int | None) -> None:
    entry = write(tmp_path, [ROWS])
    uri = str(tmp_path / entry.name)
    assert next(iter(ShardReader(uri, max_rows, rows=3))).num_rows == (max_rows or 3)
    with pytest.raises(StriateError, match=r"part-000000.parquet holds 3 pictures and its manifest says 4; it was"):
        next(iter(ShardReader(uri, max_rows, rows=4)))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(StriateError, match=r"cannot read .*part-000009.parquet: there is no such file"):
        list(ShardReader(str(tmp_path / "part-000009.parquet")))


# -- a writer that fails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [ROWS, big(30, 700_000)], ids=["before", "after a row group"])
def test_a_failing_writer_leaves_nothing_and_keeps_existing_files(tmp_path: Path, rows: pa.Table) -> None:
    before = write(tmp_path, [ROWS])

    def tables() -> Iterator[pa.Table]:
        yield rows
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write(tmp_path, tables())
    assert [path.name for path in tmp_path.iterdir()] == [before.name]
    assert hashlib.sha256((tmp_path / before.name).read_bytes()).hexdigest() == before.digest


def test_rows_of_another_schema_fail_and_leave_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises((ValueError, pa.ArrowException)),
        ShardWriter(str(tmp_path), "part-000000.parquet", ROWS.schema) as writer,
    ):
        writer.add(table([b"x"]))
    assert list(tmp_path.iterdir()) == []


# -- threads ----------------------------------------------------------------------------------------------------------


def test_no_thread_of_arrow_holds_a_file_of_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [big(13, 2**20), big(13, 2**20)])
    threads = reading_threads(monkeypatch)
    reader = ShardReader(str(tmp_path / "part-000000.parquet"))
    assert sum(table.num_rows for table in reader) == 26
    assert reader.columns(["key", "label"]).num_rows == 26
    assert threads == {threading.Thread, type(threading.main_thread())}


@pytest.mark.parametrize("rows", [[0], [7, 2, 2, 5], [9, 0, 4], list(range(10))])
def test_chosen_rows_are_read_in_the_order_asked_for(tmp_path: Path, rows: list[int]) -> None:
    whole = big(10, ROW_GROUP_BYTES // 2 + 1)  # two rows a group
    shards = [write(tmp_path, [whole.slice(first, 5)], f"{shard_name(first // 5)}.parquet") for first in (0, 5)]
    assert read_rows(str(tmp_path), shards, rows).equals(whole.take(pa.array(rows)))


def test_a_row_that_a_shard_lacks_is_an_error(tmp_path: Path) -> None:
    entry = write(tmp_path, [ROWS])
    longer = entry.model_copy(update={"rows": 9})
    with pytest.raises(StriateError, match=r"part-000000\.parquet holds 3 rows and no row 5"):
        read_rows(str(tmp_path), [longer], [1, 5])
