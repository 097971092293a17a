from pathlib import Path

import numpy as np
import pytest
from source_examples import assert_reads_back, labels, picture, read_all, rows, write_tar, write_tree

from library.errors import StriateError
from library.sources import Options, extras_of, list_source


def test_a_sample_is_everything_up_to_the_first_dot(tmp_path: Path) -> None:
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
def test_other_members_of_a_sample_come_with_the_picture_as_binary_columns(tmp_path: Path, name: str) -> None:
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
    assert listing.late.names == ["mask", "seg", "seg_cls"]
    assert {str(kind) for kind in listing.late.types} == {"binary"}
    assert listing.columns.names == ["source_key", "mask_", "mask", "seg", "seg_cls"]
    assert labels(listing) == {"1": "cat", "2": "dog"}
    found = read_all(listing)
    assert found["1"].data == picture(1)
    assert found["1"].extras == {"mask": b"mask 1", "seg": b"seg 1", "seg_cls": b"3"}
    assert found["2"].data == picture(2)
    assert found["2"].extras == {"mask": b"mask 2"}


def test_the_member_that_is_the_picture_can_be_named(tmp_path: Path) -> None:
    files = {"1.left.png": picture(1), "1.right.png": picture(2), "1.cls": "x"}
    options = Options(image_column="right.png")
    listing = list_source(str(write_tar(tmp_path / "a.tar", files)), options)
    found = read_all(listing, options)["1"]
    assert (found.data, found.extras) == (picture(2), {"left": picture(1)})


def test_shards_with_the_same_keys_do_not_clash(tmp_path: Path) -> None:
    for shard in ("train-0000", "train-0001", "val-0000"):
        write_tar(tmp_path / f"{shard}.tar", {"000.jpg": picture(1), "000.cls": "3"})
    write_tree(tmp_path, {"sizes.json": "{}"})
    found = rows(list_source(str(tmp_path)))
    assert {key: (row["label"], row["split"]) for key, row in found.items()} == {
        "train-0000.tar/000": ("3", "train"),
        "train-0001.tar/000": ("3", "train"),
        "val-0000.tar/000": ("3", "val"),
    }


def test_names_with_numbers_after_a_dot_are_no_webdataset(tmp_path: Path) -> None:
    files = {f"pets/cat/cat.{number}.jpg": picture(number) for number in range(3)}
    files["pets/dog/dog.1.jpg"] = picture(9)
    listing = assert_reads_back(write_tar(tmp_path / "a.tar", files), files)
    assert listing.kind == "tar"
    listing = list_source(str(write_tar(tmp_path / "b.tar", {**files, "pets/cat/cat.0.txt": b"zero"})))
    assert listing.kind == "tar"
    assert rows(listing)["pets/cat/cat.0.jpg"]["extra.caption"] == "zero"


def test_a_sample_with_two_members_of_one_name_is_an_error(tmp_path: Path) -> None:
    files = [("1.jpg", picture(1)), ("1.cls", "a"), ("1.jpg", picture(2))]
    with pytest.raises(StriateError, match=r"the key '1': .*\(byte 512\) and .*\(byte "):
        list_source(str(write_tar(tmp_path / "a.tar", files)))


def test_ten_thousand_samples_keep_their_own_words(tmp_path: Path) -> None:
    files: dict[str, str] = {}
    for number in range(9_000):
        files[f"{number:05}.jpg"] = str(number)
        files[f"{number:05}.cls"] = str(number % 10)
        files[f"{number:05}.json"] = f'{{"n": {number}}}'
    listing = list_source(str(write_tar(tmp_path / "a.tar", files)))
    assert listing.index.column("label").to_pylist() == [str(number % 10) for number in range(9_000)]
    assert np.array_equal(listing.index.column("extra.n").to_numpy(), np.arange(9_000))
