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


def test_a_csv_names_pictures_beside_it_with_labels_and_typed_columns(folder: Path) -> None:
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
def test_tabs_semicolons_byte_order_marks_and_json_lines_say_the_same(folder: Path, name: str, text: str) -> None:
    assert labels(list_source(_write(folder, name, text))) == {"img/a.jpg": "cat, big"}


def test_columns_can_be_named(folder: Path) -> None:
    text = "where,breed,id,label\nimg/a.jpg,pug,x1,dog\nimg/a.jpg,cat,x2,cat\n"
    options = Options(image_column="where", label_column="breed", key_column="id")
    listing = list_source(_write(folder, "l.csv", text), options)
    assert labels(listing) == {"x1": "pug", "x2": "cat"}
    assert extras_of(listing.index).to_pylist() == [{"source_label": "dog"}, {"source_label": "cat"}]


@pytest.mark.parametrize("option", ["image_column", "label_column", "key_column"])
def test_a_named_column_that_is_not_there_is_an_error_that_names_those_that_are(folder: Path, option: str) -> None:
    uri = _write(folder, "l.csv", "path,kind\nimg/a.jpg,x\n")
    with pytest.raises(UsageError, match=r"nope: .* has no such column; it has path, kind"):
        list_source(uri, Options(**{option: "nope"}))


def test_a_list_without_a_column_of_paths_says_so(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"has no column of paths: its first line names img/a\.jpg, cat"):
        list_source(_write(folder, "l.csv", "img/a.jpg,cat\nimg/b.jpg,dog\n"))


def test_a_broken_line_is_an_error_with_its_number(folder: Path) -> None:
    with pytest.raises(StriateError, match=r"l\.csv cannot be read: .*row 3: Expected 2 columns, got 3"):
        list_source(_write(folder, "l.csv", "path,label\nimg/a.jpg,x\nimg/b.jpg,y,z\n"))
    with pytest.raises(StriateError, match=r"l\.jsonl, line 2: "):
        list_source(_write(folder, "l.jsonl", '{"path": "a"}\n{"path": \n'))
    with pytest.raises(StriateError, match=r"line 1: .*one object .* a line is wanted, not one JSON document"):
        list_source(_write(folder, "d.jsonl", '[\n{"path": "a"}\n]'))


def test_a_csv_that_is_not_utf8_says_so(folder: Path) -> None:
    (folder / "l.csv").write_bytes(b"path,label\nimg/a.jpg,caf\xe9\n")
    with pytest.raises(StriateError, match="save it as UTF-8"):
        list_source(str(folder / "l.csv"))


def test_two_lines_with_one_key_are_an_error_that_names_both(folder: Path) -> None:
    with pytest.raises(StriateError, match=r"rows 1 and 3 have the same key 'img/a\.jpg'"):
        list_source(_write(folder, "l.csv", "path\nimg/a.jpg\nimg/b.jpg\nimg/a.jpg\n"))


def test_what_cannot_be_read_is_a_row_with_its_reason(folder: Path) -> None:
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
    found = read_all(list_source(uri))
    assert {key: read.problem.reason for key, read in found.items() if read.problem} == {
        "img/none.jpg": "missing",
        "ftp://example.org/x.jpg": "remote",
        "/dev/zero": "special",
        "img/dir.jpg": "special",
    }
    assert found[str(folder / "img/b.jpg")].data == picture(2)


def test_a_list_of_addresses_that_are_not_read_only_is_refused(folder: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no address in it is read; what works: paths, s3://, .*, http:// and https://"
    ):
        list_source(_write(folder, "l.csv", "url,label\nftp://example.org/a.jpg,x\n"))


def test_a_split_column_is_the_split_when_it_holds_nothing_else(folder: Path) -> None:
    listing = list_source(_write(folder, "l.csv", "path,split\nimg/a.jpg,Training\nimg/b.jpg,valid\n"))
    assert [row["split"] for row in rows(listing).values()] == ["train", "val"]
    listing = list_source(_write(folder, "m.csv", "path,split\nimg/a.jpg,fold1\nimg/b.jpg,train\n"))
    assert listing.columns.names == ["source_split"]
    assert listing.index.column("split").null_count == 2


def test_json_lines_keep_nested_and_mixed_values_as_text(folder: Path) -> None:
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


def test_an_empty_list_says_what_works(folder: Path) -> None:
    with pytest.raises(UsageError, match="holds no pictures"):
        list_source(_write(folder, "l.csv", "path,label\n"))


def test_columns_that_rejects_have_too_get_another_name(folder: Path) -> None:
    listing = list_source(_write(folder, "l.csv", "path,reason,detail\nimg/a.jpg,why,what\n"))
    assert extras_of(listing.index).to_pylist() == [{"source_reason": "why", "source_detail": "what"}]


def test_a_long_list_of_objects_in_several_buckets_is_listed_bucket_by_bucket(
    folder: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "_FEW", 2)
    other = f"{bucket}-too"
    fsspec.filesystem("s3").mkdir(other[len("s3://") :])
    uris = [f"{bucket}/deep/in/a.jpg", f"{bucket}/deep/b.jpg", f"{other}/c.jpg"]
    for number, uri in enumerate(uris):
        storage.write_bytes(uri, picture(number))
    missing = [f"{other}/d.jpg", bucket, "s3://"]
    listing = list_source(_write(folder, "l.csv", "\n".join(["path", *uris, *missing])))
    found = rows(listing)
    assert [found[uri]["size"] for uri in uris] == [len(picture(number)) for number in range(3)]
    assert [found[uri]["problem"] for uri in missing] == [f"missing: there is no object {uri}" for uri in missing]


@pytest.mark.parametrize(
    "text",
    [
        "label, image, note\ncat, img/a.jpg, 1\n, img/b.jpg,2\n",
        'label,image,note\ncat, "img/a.jpg",1\n,img/b.jpg, 2\n',
        "label,image,note\n cat , img/a.jpg , 1\n, img/b.jpg, 2\n",
    ],
)
def test_spaces_after_commas_belong_to_no_cell(folder: Path, text: str) -> None:
    listing = list_source(_write(folder, "l.csv", text))
    assert labels(listing) == {"img/a.jpg": "cat", "img/b.jpg": None}
    assert extras_of(listing.index).to_pylist() == [{"note": 1}, {"note": 2}]
    assert read_all(listing)["img/b.jpg"].data == picture(2)


def test_a_line_too_short_is_told_in_a_list_with_spaces_too(folder: Path) -> None:
    with pytest.raises(StriateError, match=r"l\.csv cannot be read: row 3: Expected 2 columns, got 1"):
        list_source(_write(folder, "l.csv", "label, image\ncat, img/a.jpg\ndog\n"))


def test_backslashes_in_a_path_find_the_picture_or_are_named(folder: Path) -> None:
    uri = _write(folder, "l.csv", "image,label\nimg\\a.jpg,cat\nC:\\img\\b.jpg,dog\n")
    found = read_all(list_source(uri))
    assert found["img\\a.jpg"].data == picture(1)
    problem = found["C:\\img\\b.jpg"].problem
    assert problem is not None
    assert problem.reason == "missing"
    assert r"the list writes 'C:\img\b.jpg', with backslashes" in problem.detail


def test_a_label_that_is_a_list_or_a_fraction_is_a_reject_with_its_bytes(folder: Path) -> None:
    lines = [{"path": "img/a.jpg", "label": ["a", "b"]}, {"path": "img/b.jpg", "label": 3.0}]
    listing = list_source(_write(folder, "l.jsonl", "".join(json.dumps(line) + "\n" for line in lines)))
    assert labels(listing) == {"img/a.jpg": None, "img/b.jpg": "3"}
    found = read_all(listing)
    assert str(found["img/a.jpg"].problem) == (
        "bad_label: the label holds several values; one class name a picture is wanted"
    )
    assert found["img/a.jpg"].data == picture(1)


def test_whole_numbers_that_pandas_wrote_with_a_fraction_are_whole(folder: Path) -> None:
    listing = list_source(_write(folder, "l.csv", "path,label\nimg/a.jpg,0.0\nimg/b.jpg,\n"))
    assert labels(listing) == {"img/a.jpg": "0", "img/b.jpg": None}
    listing = list_source(_write(folder, "l.csv", "path,label\nimg/a.jpg,1.0\nimg/b.jpg,1.5\n"))
    assert labels(listing) == {"img/a.jpg": "1.0", "img/b.jpg": "1.5"}
