import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from library.errors import StriateError, UsageError
from library.sources import Options, list_source, read_pictures
from tests.processes import reading_threads
from tests.source_examples import labels, picture, read_all, rows


def _images(numbers: range) -> list[dict[str, Any]]:
    return [{"bytes": picture(number), "path": f"{number}.jpg"} for number in numbers]


def _write(path: Path, columns: dict[str, Any], row_group: int = 4, features: dict[str, Any] | None = None) -> Path:
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group)
    return path


def test_a_hugging_face_file_has_class_names_and_its_other_columns(tmp_path: Path) -> None:
    features = {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}, "image": {"_type": "Image"}}
    columns = {
        "image": _images(range(10)),
        "label": [number % 2 for number in range(9)] + [-1],
        "width": list(range(10)),
        "boxes": [[number, 0.5] for number in range(10)],
    }
    listing = list_source(str(_write(tmp_path / "a.parquet", columns, features=features)))
    assert listing.kind == "parquet"
    assert list(labels(listing).values()) == ["cat", "dog"] * 4 + ["cat", None]
    assert list(rows(listing)) == [f"a.parquet/{number:08}" for number in range(10)]
    assert listing.index.column("block").to_pylist() == [0] * 4 + [1] * 4 + [2] * 2
    assert listing.index.column_names == [name for name in listing.index.column_names if not name.startswith("extra")]
    assert listing.columns.names == ["source_width", "boxes"]
    reads = read_all(listing)
    assert reads["a.parquet/00000007"].data == picture(7)
    assert reads["a.parquet/00000007"].extras == {"source_width": 7, "boxes": [7.0, 0.5]}


def test_a_label_beyond_the_class_names_is_a_reject_with_its_bytes(tmp_path: Path) -> None:
    features = {"label": {"names": ["cat"]}}
    path = _write(tmp_path / "a.parquet", {"image": _images(range(2)), "label": [0, 5]}, features=features)
    reads = read_all(list_source(str(path)))["a.parquet/00000001"]
    assert str(reads.problem) == "bad_label: 5, but the schema has names for 0 to 0"
    assert reads.data == picture(1)


def test_integer_labels_without_names_and_bare_bytes_are_read(tmp_path: Path) -> None:
    columns = {"jpg": [picture(1), None, picture(3)], "label": [3, 4, None], "caption": ["a", "b", "c"]}
    listing = list_source(str(_write(tmp_path / "a.parquet", columns)))
    assert list(labels(listing).values()) == ["3", "4", None]
    reads = list(read_all(listing).values())
    assert Counter(read.problem.reason if read.problem else "" for read in reads) == Counter({"": 2, "missing": 1})
    assert {read.extras["caption"] for read in reads} == {"a", "b", "c"}


def test_the_splits_of_a_folder_are_in_its_file_names(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        _write(tmp_path / "data" / f"{name}.parquet", {"image": _images(range(2))})
    (tmp_path / "README.md").write_text("card")
    listing = list_source(str(tmp_path))
    assert Counter(listing.index.column("split").to_pylist()) == Counter(train=4, val=2)
    assert "data/train-00001-of-00002.parquet/00000001" in rows(listing)
    assert listing.skipped == Counter(beside=1)


def test_the_datasets_of_an_ingest_with_splits_are_one_source(tmp_path: Path) -> None:
    for split in ("train", "val"):
        _write(tmp_path / split / "shard-00000.parquet", {"key": [split], "image": _images(range(1)), "width": [8]})
        (tmp_path / split / "_manifest.json").write_text("{}")
    listing = list_source(str(tmp_path))
    assert {key: row["split"] for key, row in rows(listing).items()} == {"train": "train", "val": "val"}
    assert listing.columns.names == []


def test_our_own_dataset_is_read_without_its_rejects_and_keeps_its_keys(tmp_path: Path) -> None:
    columns = {"key": ["x", "y"], "image": _images(range(2)), "label": ["a", None], "width": [8, 8], "height": [8, 8]}
    columns |= {"channels": [3, 3], "format": ["jpeg", "jpeg"], "split": ["train", "test"], "caption": ["p", "q"]}
    _write(tmp_path / "shard-00000.parquet", columns)
    _write(tmp_path / "_rejects" / "shard-00000.parquet", {"key": ["bad"]})
    (tmp_path / "_manifest.json").write_text("{}")
    listing = list_source(str(tmp_path))
    assert labels(listing) == {"x": "a", "y": None}
    assert listing.columns.names == ["caption"]
    assert [row["split"] for row in rows(listing).values()] == ["train", "test"]
    assert listing.skipped == Counter(underscore=2)


def test_options_can_name_the_key_and_the_columns(tmp_path: Path) -> None:
    columns = {"front": [picture(1)], "back": [picture(2)], "id": [17], "kind": pa.array(["z"]).dictionary_encode()}
    path = _write(tmp_path / "a.parquet", columns)
    with pytest.raises(UsageError, match="several columns of bytes: front, back; choose one with --image-column"):
        list_source(str(path))
    options = Options(image_column="back", key_column="id", label_column="kind")
    listing = list_source(str(path), options)
    assert labels(listing) == {"17": "z"}
    reads = read_all(listing, options)["17"]
    assert (reads.data, reads.extras) == (picture(2), {"front": picture(1)})


def test_a_named_column_of_the_wrong_type_is_an_error(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", {"image": _images(range(1)), "score": [[0.5]]})
    with pytest.raises(UsageError, match="--label-column score: it must hold text or whole numbers, but holds list"):
        list_source(str(path), Options(label_column="score"))
    with pytest.raises(UsageError, match=r"--image-column score: in .* it holds list<.*>, not bytes"):
        list_source(str(path), Options(image_column="score"))
    with pytest.raises(UsageError, match=r"--key-column id: .* has no such column; it has image, score"):
        list_source(str(path), Options(key_column="id"))


def test_parquet_without_pictures_is_an_error_with_its_columns(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no column of pictures .* its columns: text"):
        list_source(str(_write(tmp_path / "a.parquet", {"text": ["a"]})))


def test_files_with_contradicting_columns_are_refused(tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet", {"image": _images(range(1)), "x": ["text"]})
    _write(tmp_path / "b.parquet", {"image": _images(range(1)), "x": [[1]]})
    with pytest.raises(UsageError, match=r"b\.parquet and .*a\.parquet have columns that do not fit together"):
        list_source(str(tmp_path))


def test_files_may_lack_columns_that_others_have(tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet", {"image": _images(range(1)), "x": [1]})
    _write(tmp_path / "b.parquet", {"image": _images(range(1))})
    listing = list_source(str(tmp_path))
    assert listing.late.names == ["x"]
    reads = read_all(listing)
    assert (reads["a.parquet/00000000"].extras, reads["b.parquet/00000000"].extras) == ({"x": 1}, {})


def test_a_key_in_two_files_is_an_error_that_names_both(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _write(tmp_path / f"{name}.parquet", {"key": ["same"], "image": _images(range(1))})
    with pytest.raises(StriateError, match=r"key 'same': .*a\.parquet \(row 0\) and .*b\.parquet \(row 0\)"):
        list_source(str(tmp_path))


def test_a_damaged_parquet_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", {"image": _images(range(3))})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StriateError, match=r"a\.parquet is damaged, or not a Parquet file"):
        list_source(str(path))


def test_the_size_of_a_row_is_that_of_its_uncompressed_bytes(tmp_path: Path) -> None:
    images = [bytes([number]) * 10**5 for number in range(4)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": images}), path, compression="zstd", use_dictionary=False)
    assert all(10**5 <= row["size"] < 1.1 * 10**5 for row in rows(list_source(str(path))).values())


def test_a_large_value_repeated_by_a_dictionary_is_held_once(tmp_path: Path) -> None:
    image = b"\xff\xd8\xff" + bytes(2**22)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), pa.array([image], pa.binary()))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": column}), path, store_schema=False, dictionary_pagesize_limit=2**26)
    listing = list_source(str(path))
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        for read in read_pictures(listing.kind, listing.index, listing.gzip_indexes):
            assert read.data == image
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < 8 * len(image)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([0.0, 1.0, None, float("nan")]), ["0", "1", None, None]),
        (pa.array([0, 1, None, 2], pa.float32()), ["0", "1", None, "2"]),
        (pa.array([True, False, None, True]), ["true", "false", None, "true"]),
        (pa.array(["cat", " dog ", None, ""], pa.large_string()), ["cat", "dog", None, None]),
        (pa.array(["cat", "dog", None, "cat"]).dictionary_encode(), ["cat", "dog", None, "cat"]),
        (pa.array(["cat", "dog", None, "cat"], pa.string_view()), ["cat", "dog", None, "cat"]),
    ],
)
def test_labels_of_every_plain_type_are_class_names(tmp_path: Path, column: Any, expected: list[str | None]) -> None:
    listing = list_source(str(_write(tmp_path / "a.parquet", {"image": _images(range(4)), "label": column})))
    assert list(labels(listing).values()) == expected
    assert not [read.problem for read in read_all(listing).values() if read.problem]


def test_a_label_with_a_fraction_is_a_reject(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", {"image": _images(range(2)), "label": [1.0, 0.5]})
    reads = read_all(list_source(str(path)))["a.parquet/00000001"]
    assert str(reads.problem) == "bad_label: the label 0.5 is not a class; it must be text or a whole number"
    assert reads.data == picture(1)


def test_keys_and_splits_may_be_of_any_type_of_text(tmp_path: Path) -> None:
    columns = {"key": pa.array(["x", "y"], pa.large_string()), "split": pa.array(["train", "dev"]).dictionary_encode()}
    reads = rows(list_source(str(_write(tmp_path / "a.parquet", {**columns, "image": _images(range(2))}))))
    assert {key: row["split"] for key, row in reads.items()} == {"x": "train", "y": "val"}


def test_arrows_threads_hold_no_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"image": _images(range(10)), "label": ["cat", "dog"] * 5, "key": list(map(str, range(10)))}
    path = _write(tmp_path / "a.parquet", columns)
    threads = reading_threads(monkeypatch)
    listing = list_source(str(path))
    assert len(read_all(listing)) == 10
    assert set() < threads <= {threading.Thread, type(threading.main_thread())}
