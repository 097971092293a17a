import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from library.errors import StriateError
from library.sources import Options, extras_of, list_source
from tests.source_examples import labels, picture, read_all, rows, write_tar, write_tree, write_zip

CSV = "file_name,label,age,text\n0001.jpg,cat,3,a cat\nsub/0002.jpg,dog,,\n"


def _folder(tmp_path: Path) -> Path:
    return write_tree(tmp_path, {"0001.jpg": picture(1), "sub/0002.jpg": picture(2)})


def _as_parquet(path: Path) -> None:
    columns = {"file_name": ["0001.jpg", "sub/0002.jpg"], "label": ["cat", "dog"], "age": [3, None]}
    pq.write_table(pa.table({**columns, "text": ["a cat", ""]}), path)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_metadata_table_describes_the_pictures(tmp_path: Path, form: str) -> None:
    root = _folder(tmp_path)
    lines = [{"file_name": "0001.jpg", "label": "cat", "age": 3, "text": "a cat"}]
    lines += [{"file_name": "sub\\0002.jpg", "label": "dog", "age": None, "text": ""}]
    if form == "parquet":
        _as_parquet(root / "metadata.parquet")
    else:
        text = CSV if form == "csv" else "".join(json.dumps(line) + "\n" for line in lines)
        write_tree(root, {f"metadata.{form}": text})
    listing = list_source(str(root))
    assert labels(listing) == {"0001.jpg": "cat", "sub/0002.jpg": "dog"}
    assert extras_of(listing.index).to_pylist() == [{"age": 3, "text": "a cat"}, {"age": None, "text": ""}]
    assert (listing.skipped, listing.notes) == (Counter(), ())
    assert read_all(listing)["sub/0002.jpg"].data == picture(2)
    named = list_source(str(root), Options(label_column="text"))
    assert labels(named) == {"0001.jpg": "a cat", "sub/0002.jpg": None}


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_each_split_may_have_its_own_table_also_in_an_archive(tmp_path: Path, name: str) -> None:
    files = {
        "d/train/images/1.jpg": picture(1),
        "d/train/metadata.csv": b"file_name,label\nimages/1.jpg,cat\n",
        "d/test/images/1.jpg": picture(2),
        "d/test/metadata.csv": b"file_name,label\nimages/1.jpg,dog\n",
    }
    listing = list_source(str((write_zip if name == "a.zip" else write_tar)(tmp_path / name, files)))
    reads = {key: (row["split"], row["label"]) for key, row in rows(listing).items()}
    assert reads == {"d/train/images/1.jpg": ("train", "cat"), "d/test/images/1.jpg": ("test", "dog")}
    assert (listing.skipped, listing.notes) == (Counter(), ())


def test_a_picture_that_only_a_table_names_is_a_reject(tmp_path: Path) -> None:
    write_tree(_folder(tmp_path), {"metadata.csv": CSV + "gone.jpg,cat,1,\n"})
    reads = read_all(list_source(str(tmp_path)))
    assert len(reads) == 3
    assert str(reads["gone.jpg"].problem).startswith("missing: a table beside the pictures names gone.jpg")


def test_a_broken_table_is_an_error_and_one_without_paths_a_note(tmp_path: Path) -> None:
    write_tree(_folder(tmp_path), {"metadata.csv": "file,label\n0001.jpg,cat\n"})
    listing = list_source(str(tmp_path))
    assert listing.notes[0].startswith("metadata.csv is not used: it has no column file_name, but file, label; rename")
    assert listing.skipped == Counter(beside=1)
    write_tree(tmp_path, {"metadata.csv": "file_name,label\n0001.jpg\n"})
    with pytest.raises(StriateError, match=r"metadata\.csv cannot be read"):
        list_source(str(tmp_path))


def test_other_tables_beside_pictures_are_noted(tmp_path: Path) -> None:
    write_tree(_folder(tmp_path), {"labels.csv": "path,label\n0001.jpg,cat\n"})
    uri = f"{tmp_path}/labels.csv"
    assert list_source(str(tmp_path)).notes[0] == (
        f"tables beside the pictures are not used: {uri}; if one lists pictures and classes, ingest it instead of the "
        f"folder: striate ingest {uri} DESTINATION"
    )


def test_tiny_imagenets_annotations_give_the_classes(tmp_path: Path) -> None:
    files = {f"train/n0{n}/images/n0{n}_0.JPEG": picture(n) for n in (1, 2)}
    files |= {f"val/images/val_{n}.JPEG": picture(n) for n in (3, 4)} | {"test/images/test_0.JPEG": picture(5)}
    lines = "".join(f"val_{n}.JPEG\tn0{n - 2}\t0\t0\t62\t62\n" for n in (3, 4))
    boxes = {"train/n01/n01_boxes.txt": "n01_0.JPEG\t0\t0\t62\t62\n", "wnids.txt": "n01\nn02\n"}
    listing = list_source(str(write_tree(tmp_path, {**files, **boxes, "val/val_annotations.txt": lines})))
    assert Counter((row["split"], row["label"]) for row in rows(listing).values()) == Counter(
        [("train", "n01"), ("train", "n02"), ("val", "n01"), ("val", "n02"), ("test", None)]
    )
    assert listing.skipped == Counter(beside=2)
    assert [note[:32] for note in listing.notes] == [
        "the classes are the folders of l",
        "the split test has no classes: i",
    ]
