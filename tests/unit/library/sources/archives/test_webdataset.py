import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from library.errors import UsageError
from library.sources import Options, extras_of, list_source, read_pictures
from tests.source_examples import assert_reads_back, labels, picture, read_all, rows, write_tar, write_tree


def test_members_with_the_same_name_up_to_a_dot_are_a_sample(tmp_path: Path) -> None:
    files = {
        "train/0001.jpg": picture(1),
        "train/0001.cls": "7",
        "train/0001.txt": "a cat",
        "train/0002.png": picture(2, "png"),
        "train/0002.cls": "8",
    }
    listing = list_source(str(write_tar(tmp_path / "a.tar", files)))
    assert listing.kind == "webdataset"
    assert labels(listing) == {"train/0001": "7", "train/0002": "8"}
    assert extras_of(listing.index).to_pylist() == [{"caption": "a cat"}, {"caption": None}]
    assert read_all(listing)["train/0002"].data == picture(2, "png")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_other_members_of_a_sample_are_binary_columns(tmp_path: Path, name: str) -> None:
    files = {
        "1.jpg": picture(1),
        "1.mask.png": b"mask 1",
        "1.seg.png": b"seg 1",
        "1.seg.cls": b"3",
        "1.json": '{"label": "cat", "key": "1", "mask": "yes"}',
        "2.image.jpg": picture(2),
        "2.mask.png": b"mask 2",
        "2.cls": "dog",
    }
    listing = list_source(str(write_tar(tmp_path / name, files)))
    assert listing.late.names == ["mask", "seg"]
    assert {str(kind) for kind in listing.late.types} == {"binary"}
    assert set(listing.columns.names) == {"source_key", "mask_", "seg_cls", "mask", "seg"}
    assert listing.index["extra.seg_cls"].to_pylist() == ["3", None]
    assert labels(listing) == {"1": "cat", "2": "dog"}
    reads = read_all(listing)
    assert reads["1"].data == picture(1)
    assert reads["1"].extras == {"mask": b"mask 1", "seg": b"seg 1"}
    assert reads["2"].data == picture(2)
    assert reads["2"].extras == {"mask": b"mask 2"}


def test_an_option_can_name_the_member_that_is_the_picture(tmp_path: Path) -> None:
    files = {"1.left.png": picture(1), "1.right.png": picture(2), "1.cls": "x"}
    options = Options(image_column="right.png")
    listing = list_source(str(write_tar(tmp_path / "a.tar", files)), options)
    reads = read_all(listing, options)["1"]
    assert (reads.data, reads.extras) == (picture(2), {"left": picture(1)})


def test_shards_with_the_same_keys_do_not_clash(tmp_path: Path) -> None:
    for shard in ("train-0000", "train-0001", "val-0000"):
        write_tar(tmp_path / f"{shard}.tar", {"000.jpg": picture(1), "000.cls": "3"})
    write_tree(tmp_path, {"sizes.json": "{}"})
    reads = rows(list_source(str(tmp_path)))
    assert {key: (row["label"], row["split"]) for key, row in reads.items()} == {
        "train-0000.tar/000": ("3", "train"),
        "train-0001.tar/000": ("3", "train"),
        "val-0000.tar/000": ("3", "val"),
    }


def test_names_with_numbers_after_a_dot_are_not_webdataset(tmp_path: Path) -> None:
    files = {f"pets/cat/cat.{number}.jpg": picture(number) for number in range(3)}
    files["pets/dog/dog.1.jpg"] = picture(9)
    listing = assert_reads_back(write_tar(tmp_path / "a.tar", files), files)
    assert listing.kind == "tar"
    listing = list_source(str(write_tar(tmp_path / "b.tar", {**files, "pets/cat/cat.0.txt": b"zero"})))
    assert listing.kind == "tar"
    assert rows(listing)["pets/cat/cat.0.jpg"]["extra.caption"] == "zero"


def test_the_last_of_repeated_members_of_a_sample_counts(tmp_path: Path) -> None:
    files = [("1.jpg", picture(1)), ("1.cls", "a"), ("1.jpg", picture(2)), ("1.cls", "b"), ("1.JPG", picture(3))]
    listing = list_source(str(write_tar(tmp_path / "a.tar", files)))
    reads = {read.data: read.problem for read in read_pictures(listing.kind, listing.index, listing.gzip_indexes)}
    assert [row["label"] for row in listing.index.to_pylist() if row["problem"] is None] == ["b"]
    assert {data for data, problem in reads.items() if problem is None} == {picture(3)}
    assert {problem.reason for problem in reads.values() if problem} == {"duplicate_key"}
    assert len(reads) == 3
    assert listing.skipped == Counter(repeated=1)


def test_texts_with_their_own_names_are_columns(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {}
    for number, name in enumerate(("cat", "dog")):
        files[f"s{number}.input.jpg"] = picture(number)
        files[f"s{number}.outputs.txt"] = f"{name}\n"
        files[f"s{number}.cls_idx.json"] = str(number)
        files[f"s{number}.mask.png"] = b"mask"
    path = write_tar(tmp_path / "a.tar", {**files, "README.md": b"x", "labels.csv": b"{}"})
    listing = list_source(str(path))
    assert labels(listing) == {"s0": None, "s1": None}
    assert read_all(listing)["s0"].data == picture(0)
    assert extras_of(listing.index).to_pylist() == [
        {"outputs": "cat", "cls_idx": 0},
        {"outputs": "dog", "cls_idx": 1},
    ]
    assert listing.late.names == ["mask"]
    assert any("'cls_idx' (int64) has the name of a label" in note for note in listing.notes)
    assert labels(list_source(str(path), Options(label_column="outputs"))) == {"s0": "cat", "s1": "dog"}


def test_a_sample_without_a_picture_is_a_row_and_a_stray_file_is_not(tmp_path: Path) -> None:
    files = {"1.jpg": picture(1), "1.cls": "a", "2.cls": "b", "README": b"x", "labels.csv": b"x", "license.txt": b"x"}
    listing = list_source(str(write_tar(tmp_path / "a.tar", files)))
    assert sorted(rows(listing)) == ["1", "2"]
    assert listing.skipped == Counter(beside=3)


def test_texts_beside_pictures_with_dots_in_their_names_are_captions(tmp_path: Path) -> None:
    files = {"cat.front.jpg": picture(1), "cat.front.txt": "from before", "dog.1.jpg": picture(2), "dog.2.txt": "lost"}
    listing = list_source(str(write_tar(tmp_path / "a.tar", files)))
    assert listing.kind == "tar"
    assert rows(listing)["cat.front.jpg"]["extra.caption"] == "from before"
    assert listing.skipped == Counter(beside=1)


def test_ten_thousand_samples_keep_their_own_texts(tmp_path: Path) -> None:
    files: dict[str, str] = {}
    for number in range(9_000):
        files[f"{number:05}.jpg"] = str(number)
        files[f"{number:05}.cls"] = str(number % 10)
        files[f"{number:05}.json"] = f'{{"n": {number}}}'
    listing = list_source(str(write_tar(tmp_path / "a.tar", files)))
    assert listing.index.column("label").to_pylist() == [str(number % 10) for number in range(9_000)]
    assert np.array_equal(listing.index.column("extra.n").to_numpy(), np.arange(9_000))


def test_a_folder_from_img2dataset_is_read_from_its_archives(tmp_path: Path) -> None:
    for shard in ("00000", "00001"):
        fields = json.dumps({"caption": "a cat", "url": "https://example.org/1.jpg", "status": "success"})
        files = {f"{shard}0000.jpg": picture(1), f"{shard}0000.txt": "a cat", f"{shard}0000.json": fields}
        write_tar(tmp_path / f"{shard}.tar", files)
        pq.write_table(
            pa.table({"url": ["https://example.org/1.jpg"], "caption": ["a cat"]}), tmp_path / f"{shard}.parquet"
        )
        write_tree(tmp_path, {f"{shard}_stats.json": "{}"})
    listing = list_source(str(tmp_path))
    assert listing.kind == "webdataset"
    assert list(rows(listing)) == ["00000.tar/000000000", "00001.tar/000010000"]
    assert rows(listing)["00000.tar/000000000"]["extra.caption"] == "a cat"
    assert listing.skipped == Counter(beside=4)
    assert listing.notes[-1].startswith("2 Parquet files have the names of archives, as img2dataset writes")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(UsageError, match="holds both Parquet files and archives"):
        list_source(str(tmp_path))
