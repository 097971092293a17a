import json
from pathlib import Path

import fsspec
import pytest

from library import storage
from library.errors import StriateError, UsageError
from library.sources import Options, extras_of, list_source
from library.sources.tables import lists
from tests.source_examples import labels, picture, read_all, rows, write_tree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tree(tmp_path, {"img/a.jpg": picture(1), "img/b.jpg": picture(2)})


def _write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_a_csv_lists_pictures_with_labels_and_typed_columns(folder: Path) -> None:
    text = 'Image,label,age,weight,code,ok,note\nimg/a.jpg,001,3,1.5,007,true,"two\nlines"\nimg/b.jpg,,,2,008,False,\n'
    listing = list_source(_write(folder, "list.csv", text))
    assert labels(listing) == {"img/a.jpg": "001", "img/b.jpg": None}
    extras = extras_of(listing.index)
    assert extras.to_pylist() == [
        {"age": 3, "weight": 1.5, "code": "007", "ok": True, "note": "two\nlines"},
        {"age": None, "weight": 2.0, "code": "008", "ok": False, "note": ""},
    ]
    assert [str(kind) for kind in extras.schema.types] == ["int64", "double", "string", "bool", "string"]
    assert read_all(listing)["img/b.jpg"].data == picture(2)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.tsv", "path\tclass\nimg/a.jpg\tcat, big\n"),
        ("l.csv", "path;class\nimg/a.jpg;cat, big\n"),
        ("l.csv", '\ufeffpath,class\r\nimg/a.jpg,"cat, big"\r\n'),
        ("l.jsonl", '{"file_name": "img/a.jpg", "class": "cat, big"}\n\n'),
    ],
)
def test_tabs_semicolons_byte_order_marks_and_json_lines_are_read(folder: Path, name: str, text: str) -> None:
    assert labels(list_source(_write(folder, name, text))) == {"img/a.jpg": "cat, big"}


def test_options_can_name_columns(folder: Path) -> None:
    text = "where,breed,id,label\nimg/a.jpg,pug,x1,dog\nimg/a.jpg,cat,x2,cat\n"
    options = Options(image_column="where", label_column="breed", key_column="id")
    listing = list_source(_write(folder, "l.csv", text), options)
    assert labels(listing) == {"x1": "pug", "x2": "cat"}
    assert extras_of(listing.index).to_pylist() == [{"source_label": "dog"}, {"source_label": "cat"}]


@pytest.mark.parametrize("option", ["image_column", "label_column", "key_column"])
def test_a_missing_column_is_an_error_that_lists_the_existing_ones(folder: Path, option: str) -> None:
    uri = _write(folder, "l.csv", "path,kind\nimg/a.jpg,x\n")
    with pytest.raises(UsageError, match=r"nope: .* has no such column; it has path, kind"):
        list_source(uri, Options(**{option: "nope"}))


def test_a_list_without_a_column_of_paths_is_an_error(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"has no column of paths: its columns are img/a\.jpg, cat"):
        list_source(_write(folder, "l.csv", "img/a.jpg,cat\nimg/b.jpg,dog\n"))


def test_a_broken_line_is_an_error_with_its_number(folder: Path) -> None:
    with pytest.raises(StriateError, match=r"l\.csv cannot be read: .*row 3: Expected 2 columns, got 3"):
        list_source(_write(folder, "l.csv", "path,label\nimg/a.jpg,x\nimg/b.jpg,y,z\n"))
    with pytest.raises(StriateError, match=r"l\.jsonl, line 2: "):
        list_source(_write(folder, "l.jsonl", '{"path": "a"}\n{"path": \n'))
    with pytest.raises(
        StriateError, match=r"line 1: .*each line must be an object .*, not the whole file one JSON document"
    ):
        list_source(_write(folder, "d.jsonl", '[\n{"path": "a"}\n]'))


def test_a_csv_that_is_not_utf8_is_an_error(folder: Path) -> None:
    (folder / "l.csv").write_bytes(b"path,label\nimg/a.jpg,caf\xe9\n")
    with pytest.raises(StriateError, match="save it as UTF-8"):
        list_source(str(folder / "l.csv"))


def test_two_lines_with_the_same_key_are_an_error_that_names_both(folder: Path) -> None:
    with pytest.raises(StriateError, match=r"rows 1 and 3 have the same key 'img/a\.jpg'"):
        list_source(_write(folder, "l.csv", "path\nimg/a.jpg\nimg/b.jpg\nimg/a.jpg\n"))


def test_paths_that_cannot_be_read_are_rejects_with_reasons(folder: Path) -> None:
    (folder / "img/dir.jpg").mkdir()
    paths = [
        "img/a.jpg",
        "img/none.jpg",
        "ftp://example.org/x.jpg",
        "/dev/zero",
        "img/dir.jpg",
        str(folder / "img/b.jpg"),
    ]
    uri = _write(folder, "l.jsonl", "".join(json.dumps({"path": path}) + "\n" for path in paths))
    reads = read_all(list_source(uri))
    assert {key: read.problem.reason for key, read in reads.items() if read.problem} == {
        "img/none.jpg": "missing",
        "ftp://example.org/x.jpg": "remote",
        "/dev/zero": "special",
        "img/dir.jpg": "special",
    }
    assert reads[str(folder / "img/b.jpg")].data == picture(2)


def test_a_list_with_only_unsupported_addresses_is_refused(folder: Path) -> None:
    with pytest.raises(
        UsageError, match=r"none of its addresses is supported; supported are paths, s3://, .*, http:// and https://"
    ):
        list_source(_write(folder, "l.csv", "url,label\nftp://example.org/a.jpg,x\n"))


def test_a_split_column_is_the_split_if_all_its_cells_are_splits(folder: Path) -> None:
    listing = list_source(_write(folder, "l.csv", "path,split\nimg/a.jpg,Training\nimg/b.jpg,valid\n"))
    assert [row["split"] for row in rows(listing).values()] == ["train", "val"]
    listing = list_source(_write(folder, "m.csv", "path,split\nimg/a.jpg,fold1\nimg/b.jpg,train\n"))
    assert listing.columns.names == ["source_split"]
    assert listing.index.column("split").null_count == 2


def test_nested_and_mixed_values_of_json_lines_become_text(folder: Path) -> None:
    lines = [
        {"path": "img/a.jpg", "box": [1, 2], "mixed": 1, "big": 2**70, "n": 1, "odd": "\ud800", "label": 5},
        {"path": "img/b.jpg", "mixed": "x", "n": 2.5, "size": 9},
    ]
    listing = list_source(_write(folder, "l.jsonl", "".join(json.dumps(line) + "\n" for line in lines)))
    assert labels(listing) == {"img/a.jpg": "5", "img/b.jpg": None}
    assert extras_of(listing.index).to_pylist() == [
        {"box": "[1, 2]", "mixed": "1", "big": str(2**70), "n": 1.0, "odd": "\\ud800", "size": None},
        {"box": None, "mixed": "x", "big": None, "n": 2.5, "odd": None, "size": 9},
    ]


def test_lists_of_names_and_of_boxes_stay_lists(folder: Path) -> None:
    box = {"x": 1, "y": 2.5, "w": 3, "h": 4, "label": "cat"}
    lines = [
        {"path": "img/a.jpg", "tags": ["cat", "dog"], "boxes": [box, {**box, "label": 7}], "empty": []},
        {"path": "img/b.jpg", "tags": [], "boxes": []},
    ]
    listing = list_source(_write(folder, "l.jsonl", "".join(json.dumps(line) + "\n" for line in lines)))
    assert extras_of(listing.index).to_pylist() == [
        {"tags": ["cat", "dog"], "boxes": [box, {**box, "label": "7"}], "empty": "[]"},
        {"tags": [], "boxes": [], "empty": None},
    ]


def test_an_empty_list_is_an_error(folder: Path) -> None:
    with pytest.raises(UsageError, match="holds no pictures"):
        list_source(_write(folder, "l.csv", "path,label\n"))


def test_columns_with_the_name_of_a_column_of_rejects_are_renamed(folder: Path) -> None:
    listing = list_source(_write(folder, "l.csv", "path,reason,detail\nimg/a.jpg,why,what\n"))
    assert extras_of(listing.index).to_pylist() == [{"source_reason": "why", "source_detail": "what"}]


def test_a_long_list_of_objects_is_looked_up_bucket_by_bucket(
    folder: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "_MAX_SINGLE_REQUESTS", 2)
    other = f"{bucket}-too"
    fsspec.filesystem("s3").mkdir(other[len("s3://") :])
    uris = [f"{bucket}/deep/in/a.jpg", f"{bucket}/deep/b.jpg", f"{other}/c.jpg"]
    for number, uri in enumerate(uris):
        storage.write_bytes(uri, picture(number))
    missing = [f"{other}/d.jpg", bucket, "s3://"]
    listing = list_source(_write(folder, "l.csv", "\n".join(["path", *uris, *missing])))
    reads = rows(listing)
    assert [reads[uri]["size"] for uri in uris] == [len(picture(number)) for number in range(3)]
    assert [reads[uri]["problem"] for uri in missing] == [f"missing: there is no object {uri}" for uri in missing]


@pytest.mark.parametrize(
    "text",
    [
        "label, image, note\ncat, img/a.jpg, 1\n, img/b.jpg,2\n",
        'label,image,note\ncat, "img/a.jpg",1\n,img/b.jpg, 2\n',
        "label,image,note\n cat , img/a.jpg , 1\n, img/b.jpg, 2\n",
    ],
)
def test_spaces_after_commas_are_not_part_of_cells(folder: Path, text: str) -> None:
    listing = list_source(_write(folder, "l.csv", text))
    assert labels(listing) == {"img/a.jpg": "cat", "img/b.jpg": None}
    assert extras_of(listing.index).to_pylist() == [{"note": 1}, {"note": 2}]
    assert read_all(listing)["img/b.jpg"].data == picture(2)


def test_a_line_too_short_is_an_error_in_a_list_with_spaces_too(folder: Path) -> None:
    with pytest.raises(StriateError, match=r"l\.csv cannot be read: row 3: Expected 2 columns, got 1"):
        list_source(_write(folder, "l.csv", "label, image\ncat, img/a.jpg\ndog\n"))


def test_paths_with_backslashes_are_found_or_explained(folder: Path) -> None:
    uri = _write(folder, "l.csv", "image,label\nimg\\a.jpg,cat\nC:\\img\\b.jpg,dog\n")
    reads = read_all(list_source(uri))
    assert reads["img\\a.jpg"].data == picture(1)
    problem = reads["C:\\img\\b.jpg"].problem
    assert problem is not None
    assert problem.reason == "missing"
    assert r"the list has 'C:\img\b.jpg' with backslashes" in problem.detail


def test_a_label_that_is_a_list_or_a_fraction_is_a_reject_with_its_bytes(folder: Path) -> None:
    lines = [{"path": "img/a.jpg", "label": ["a", "b"]}, {"path": "img/b.jpg", "label": 3.0}]
    listing = list_source(_write(folder, "l.jsonl", "".join(json.dumps(line) + "\n" for line in lines)))
    assert labels(listing) == {"img/a.jpg": None, "img/b.jpg": "3"}
    reads = read_all(listing)
    assert str(reads["img/a.jpg"].problem) == ("bad_label: the label holds several values, but a picture has one class")
    assert reads["img/a.jpg"].data == picture(1)


def test_labels_that_pandas_wrote_as_floats_are_whole_numbers(folder: Path) -> None:
    listing = list_source(_write(folder, "l.csv", "path,label\nimg/a.jpg,0.0\nimg/b.jpg,\n"))
    assert labels(listing) == {"img/a.jpg": "0", "img/b.jpg": None}
    listing = list_source(_write(folder, "l.csv", "path,label\nimg/a.jpg,1.0\nimg/b.jpg,1.5\n"))
    assert labels(listing) == {"img/a.jpg": "1.0", "img/b.jpg": "1.5"}
