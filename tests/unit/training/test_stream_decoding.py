"""A stream's windows, decoded: the order, what stands in for damaged pictures, and how much is held at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from library import codec
from library.errors import StriateError, UsageError
from library.inputs import InputPipeline
from library.pipeline import Pipeline
from library.record import ImageRecord, dataset_schema, table_of
from library.training import stream_decoding
from library.training.rows import Rows, check_columns, read_pictures
from library.training.stream_decoding import WindowDecoder
from library.training.windows import Window

SIDE = 8
PNG = codec.Encoding("png")


def picture(value: int) -> bytes:
    return codec.encode(np.full((SIDE, SIDE, 1), value, np.uint8), PNG)[0]


def dataset(folder: Path, pictures: list[bytes], labels: str) -> Rows:
    """One shard of row groups of 3; the picture of row n is of value n where it is whole."""
    header = codec.Header("png", SIDE, SIDE, 1)
    records = [
        ImageRecord(str(number), data, None, label, header, {"mask": picture(255)})
        for number, (data, label) in enumerate(zip(pictures, labels, strict=True))
    ]
    table = table_of(records, dataset_schema([pa.field("mask", pa.binary())]))
    pq.write_table(table, folder / "part-000000.parquet", row_group_size=3, write_page_checksum=True)
    classes = tuple(sorted(set(labels)))
    count = len(records)
    return Rows(
        str(folder),
        ("part-000000.parquet",),
        np.zeros(count, np.int32),
        np.arange(count, dtype=np.int32),
        np.asarray([classes.index(label) for label in labels], np.int64),
        np.asarray([record.key for record in records], object),
        classes,
    )


def decoder(rows: Rows, steps: str = "grayscale") -> WindowDecoder:
    fit = Pipeline.parse(f'resize([{SIDE}, {SIDE}], mode="exact")')
    return WindowDecoder(rows, InputPipeline(Pipeline.parse(steps), fit, (SIDE, SIDE), 1), None, 3, 0, 0)


def values(made: WindowDecoder, window: Window) -> list[int]:
    return [int(pixels.flat[0]) for block in made.blocks(window) for pixels in block["picture"]]


def test_rows_in_the_middle_of_a_shard_are_read_without_the_others(tmp_path: Path) -> None:
    rows = dataset(tmp_path, [picture(number) for number in range(10)], "ab" * 5)
    wanted = np.array([4, 5, 8], np.int32)
    assert [record["key"] for record in read_pictures(rows, 0, wanted)] == ["4", "5", "8"]
    damaged = bytearray((tmp_path / "part-000000.parquet").read_bytes())
    damaged[100] ^= 255  # in the first row group
    (tmp_path / "part-000000.parquet").write_bytes(damaged)
    assert [record["key"] for record in read_pictures(rows, 0, wanted)] == ["4", "5", "8"]
    with pytest.raises(StriateError, match="row group 0"):
        read_pictures(rows, 0, np.array([0], np.int32))


def test_a_window_is_shuffled_as_a_whole_and_goes_on_where_it_was_left(tmp_path: Path) -> None:
    made = decoder(dataset(tmp_path, [picture(number) for number in range(10)], "ab" * 5))
    whole = values(made, Window(0, ((0, 0, 10),), 0, 10))
    assert sorted(whole) == list(range(10)) != whole
    assert values(made, Window(0, ((0, 0, 10),), 4, 5)) == whole[4:9]
    assert values(made, Window(1, ((0, 0, 10),), 0, 10)) != whole
    assert values(made, Window(-1, ((0, 2, 5),), 0, 3)) == [2, 3, 4]


def test_decoded_pictures_are_given_a_few_megabytes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_decoding, "_BLOCK_BYTES", 3 * SIDE * SIDE)
    made = decoder(dataset(tmp_path, [picture(number) for number in range(10)], "ab" * 5))
    blocks = list(made.blocks(Window(-1, ((0, 0, 10),), 0, 10)))
    assert [len(block["label"]) for block in blocks] == [3, 3, 3, 1]


def test_what_is_damaged_is_stood_in_for_and_counted_by_its_class(tmp_path: Path) -> None:
    pictures = [picture(number) for number in range(6)]
    pictures[0] = pictures[4] = picture(0)[:30]
    made = decoder(dataset(tmp_path, pictures, "abaaba"))
    (block,) = made.blocks(Window(-1, ((0, 0, 6),), 0, 6))
    assert block["picture"][:, 0, 0, 0].tolist() == [1, 1, 2, 3, 3, 5]
    assert block["label"].tolist() == [1, 1, 0, 0, 0, 0]
    assert block["lost"].tolist() == [0, -1, -1, -1, 1, -1]
    assert [bool(reason) for reason in block["rejected"]] == [True, False, False, False, True, False]


def test_a_window_of_damaged_pictures_is_told_with_their_classes(tmp_path: Path) -> None:
    made = decoder(dataset(tmp_path, [picture(0)[:30]] * 3 + [picture(1)], "aaab"))
    with pytest.raises(
        StriateError, match=r"none of 3 pictures of a that lie together can be used: \w+ 3; the last one: "
    ):
        list(made.blocks(Window(-1, ((0, 0, 3),), 0, 3)))


def test_a_step_gets_its_column_in_a_stream_and_a_column_that_is_not_there_is_told(tmp_path: Path) -> None:
    rows = dataset(tmp_path, [picture(7)], "a")
    assert values(decoder(rows, 'blur_background(sigma=2, mask_column="mask")'), Window(-1, ((0, 0, 1),), 0, 1)) == [7]
    with pytest.raises(UsageError, match=r"ask for the column masc, which .* lacks; it has .*mask"):
        check_columns(rows, ("masc",))
