"""Selecting the rows of a training: chosen classes, and the split into training and validation rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from library.dataset.manifest import FileEntry, Job, Manifest, Tally, save_manifest
from library.dataset.record import ImageRecord, dataset_schema, table_of
from library.dataset.shards import ShardWriter
from library.errors import UsageError
from library.imaging import codec
from library.training.rows import Rows, read_pictures, read_rows, split_rows

PNG, _ = codec.encode(np.zeros((4, 4, 1), np.uint8), codec.Encoding("png"))
HEADER = codec.Header("png", 4, 4, 1)


def dataset(folder: Path, shards: list[str]) -> str:
    """Shards of pictures whose labels are the letters of a text ("?" for none, " " for an empty one); keys: numbers."""
    entries: list[FileEntry] = []
    labels = "".join(shards)
    names: dict[str, str | None] = {"?": None, " ": ""}
    for shard, text in enumerate(shards):
        first = sum(map(len, shards[:shard]))
        records = [
            ImageRecord(str(first + row), PNG, None, names.get(label, label), HEADER) for row, label in enumerate(text)
        ]
        with ShardWriter(str(folder), f"part-{shard:06d}.parquet", dataset_schema()) as writer:
            writer.add(table_of(records, dataset_schema()))
        entries.append(writer.entry)
    counts = {names.get(name, name) or "": labels.count(name) for name in sorted(set(labels) - {"?"})}
    tally = Tally(rows_in=len(labels), rows_out=len(labels), classes=counts)
    job = Job(kind="ingest", source="nowhere")
    save_manifest(str(folder), Manifest(complete=True, jobs=[job], tally=tally, shards=entries))
    return str(folder)


def keys(rows: Rows) -> list[int]:
    """The keys of all rows, in stored order."""
    counts = rows.counts.tolist()
    return [int(one["key"]) for shard, count in enumerate(counts) for one in read_pictures(rows, (shard, 0, count))]


def test_no_shard_is_opened_where_all_rows_are_used(tmp_path: Path) -> None:
    uri = dataset(tmp_path, ["abab", "ba"])
    for path in tmp_path.glob("*.parquet"):
        path.unlink()
    rows = read_rows(uri)
    assert (rows.classes, rows.class_counts, rows.used) == (("a", "b"), {"a": 3, "b": 3}, None)
    assert rows.counts.tolist() == [4, 2]


def test_chosen_classes_keep_their_order_and_exclude_the_others(tmp_path: Path) -> None:
    rows = read_rows(dataset(tmp_path, ["abcabc", "ccc", "bca"]), ["c", "a"])
    assert rows.class_counts == {"c": 6, "a": 3}
    assert (len(rows), rows.counts.tolist()) == (9, [4, 3, 2])
    assert keys(rows) == [0, 2, 3, 5, 6, 7, 8, 10, 11]


def test_a_picture_without_a_label_is_not_of_the_class_with_an_empty_name(tmp_path: Path) -> None:
    rows = read_rows(dataset(tmp_path, ["a ?a", " ?b"]), ["", "a"])
    assert keys(rows) == [0, 1, 3, 4]
    assert rows.class_counts == {"": 2, "a": 2}


def test_the_split_takes_a_fraction_of_each_class_by_key(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    text = "aaaabbbbbbbbbbaaaaaa"
    train, val = split_rows(read_rows(dataset(one, [text])), 0.2, seed=1)
    assert (train.class_counts, val.class_counts) == ({"a": 8, "b": 8}, {"a": 2, "b": 2})
    assert sorted(keys(train) + keys(val)) == list(range(20))
    assert keys(split_rows(read_rows(dataset(two, [text[:7], text[7:]])), 0.2, seed=1)[1]) == keys(val)
    assert keys(split_rows(read_rows(str(one)), 0.2, seed=2)[1]) != keys(val)


def test_a_class_of_one_picture_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"class 'b' has 1 picture\(s\); val_fraction needs two or more of each"):
        split_rows(read_rows(dataset(tmp_path, ["aab"])), 0.5, 0)
