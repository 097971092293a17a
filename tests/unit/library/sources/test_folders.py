import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from library.errors import StriateError, UsageError
from library.sources import Options, extras_of, list_source
from tests.source_examples import assert_reads_back, labels, picture, read_all, rows, shared, write_tree


def test_the_label_is_the_class_folder_above_a_picture(tmp_path: Path) -> None:
    files = {"pets/cat/a.jpg": picture(1), "pets/dog/deep/b.jpg": picture(2), "pets/dog/c.png": picture(3, "png")}
    write_tree(tmp_path, files)
    listing = assert_reads_back(tmp_path, files)
    assert labels(listing) == {"pets/cat/a.jpg": "cat", "pets/dog/deep/b.jpg": "dog", "pets/dog/c.png": "dog"}
    assert listing.kind == "folder"


def test_pictures_of_one_folder_have_no_label(tmp_path: Path) -> None:
    write_tree(tmp_path, {"photos/a.jpg": picture(1), "photos/b.jpg": picture(2), "README.md": "hello"})
    assert set(labels(list_source(str(tmp_path))).values()) == {None}


def test_pictures_at_the_root_have_no_label_beside_those_in_folders(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a.jpg": picture(1), "cat/b.jpg": picture(2), "dog/c.jpg": picture(3)})
    assert labels(list_source(str(tmp_path))) == {"a.jpg": None, "cat/b.jpg": "cat", "dog/c.jpg": "dog"}


def test_split_folders_are_splits_and_not_labels(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            "data/train/cat/a.jpg": picture(1),
            "data/train/dog/b.jpg": picture(2),
            "data/Validation/cat/c.jpg": picture(3),
            "data/test/d.jpg": picture(4),
        },
    )
    reads = rows(list_source(str(tmp_path)))
    assert {key: (row["split"], row["label"]) for key, row in reads.items()} == {
        "data/train/cat/a.jpg": ("train", "cat"),
        "data/train/dog/b.jpg": ("train", "dog"),
        "data/Validation/cat/c.jpg": ("val", "cat"),
        "data/test/d.jpg": ("test", None),
    }


def test_a_single_split_name_is_a_class(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train/a.jpg": picture(1), "bus/b.jpg": picture(2)})
    reads = rows(list_source(str(tmp_path)))
    assert {row["label"] for row in reads.values()} == {"train", "bus"}
    assert {row["split"] for row in reads.values()} == {None}


def test_hidden_and_system_files_are_skipped_and_counted(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            "a.jpg": picture(1),
            ".hidden.jpg": picture(2),
            ".git/x.jpg": picture(3),
            "__MACOSX/._a.jpg": b"x",
            "Thumbs.db": b"x",
            ".DS_Store": b"x",
            "sub/desktop.ini": b"x",
            "a.jpg:Zone.Identifier": b"x",
        },
    )
    listing = list_source(str(tmp_path))
    assert list(rows(listing)) == ["a.jpg"]
    assert listing.skipped == Counter(hidden=2, system=5)


def test_texts_lists_and_programs_beside_pictures_are_skipped(tmp_path: Path) -> None:
    names = [
        "README",
        "LICENSE.md",
        "labels.csv",
        "train.TXT",
        "cat/a.xml",
        "tool.py",
        "model.pt",
        "clip.mp4",
        "x.tar.gz",
    ]
    unknown = ["cat/0001", "cat/b.dcm", "cat/c.jpg.part", "cat/readme.jpg"]
    pictures = ["cat/a.jpg", "dog/b.jpg"]
    write_tree(tmp_path, dict.fromkeys([*names, *unknown], b"x") | {name: picture(1) for name in pictures})
    listing = list_source(str(tmp_path))
    assert set(rows(listing)) == {*unknown, *pictures}, "files with an unknown suffix are listed"
    assert listing.skipped == Counter(beside=len(names))
    assert listing.classes == {"cat": 5, "dog": 1}


def test_links_are_followed_on_disk_without_loops(tmp_path: Path) -> None:
    pool = write_tree(tmp_path / "pool", {"x.jpg": picture(2), "deep/y.jpg": picture(3), "deep/y.txt": "a dog"})
    root = write_tree(tmp_path / "in", {"cat/a.jpg": picture(1)})
    (root / "cat/same.jpg").symlink_to("a.jpg")
    (root / "cat/out.jpg").symlink_to(pool / "x.jpg")
    (root / "dog").symlink_to(pool)
    for number, target in enumerate((root, tmp_path, root / "cat", pool, pool / "deep")):
        (root / f"loop{number}").symlink_to(target)
    (pool / "back").symlink_to(root)
    (pool / "deep/up").symlink_to(pool)
    (root / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(root / "pipe.jpg")
    files = {"cat/a.jpg": 1, "cat/same.jpg": 1, "cat/out.jpg": 2, "dog/x.jpg": 2, "dog/deep/y.jpg": 3}
    listing = assert_reads_back(root, {name: picture(number) for name, number in files.items()})
    assert listing.classes == {"cat": 3, "dog": 2}
    assert rows(listing)["dog/deep/y.jpg"]["extra.caption"] == "a dog"
    assert listing.skipped == Counter(link_folder=7, link_broken=1, special=1)
    real = pool.resolve()
    note = f"links that lead outside the folder are followed: dog -> {real}, cat/out.jpg -> {real}/x.jpg"
    assert listing.notes[0] == note


def test_a_folder_outside_is_read_once_for_any_order_of_links(tmp_path: Path) -> None:
    pool = write_tree(tmp_path / "pool", {"deep/y.jpg": picture(3)})
    root = write_tree(tmp_path / "in", {"cat/a.jpg": picture(1)})
    (root / "first").symlink_to(pool / "deep")
    (root / "whole").symlink_to(pool)
    listing = assert_reads_back(root, {"cat/a.jpg": picture(1), "first/y.jpg": picture(3)})
    assert listing.skipped == Counter(link_folder=1)


def test_only_pictures_are_read_outside_the_source_whatever_their_names(tmp_path: Path) -> None:
    secrets = {
        "id_rsa": "key",
        "photo.jpg": "password",
        "notes.txt": "private",
        "a.txt": "private",
        "b.png": picture(2),
    }
    outside = write_tree(tmp_path / "outside", secrets)
    root = write_tree(tmp_path / "in", {"cat/a.jpg": picture(1)})
    for name in ("id_rsa", "photo.jpg", "a.txt"):
        (root / "cat" / name).symlink_to(outside / name)
    (root / "dog").symlink_to(outside)
    listing = assert_reads_back(root, {"cat/a.jpg": picture(1), "dog/b.png": picture(2)})
    assert listing.columns.names == []
    assert listing.skipped == Counter(link_outside=5, beside=2)


def test_a_source_that_is_itself_a_link_is_read(tmp_path: Path) -> None:
    write_tree(tmp_path / "real", {"a.jpg": picture(1)})
    (tmp_path / "alias").symlink_to("real")
    assert_reads_back(tmp_path / "alias", {"a.jpg": picture(1)})


def test_names_that_are_unicode_very_long_or_not_text_are_read(tmp_path: Path) -> None:
    long = "длинное-имя-" + "x" * 200 + ".jpg"
    write_tree(tmp_path, {"猫/日本 🐈.jpg": picture(1), long: picture(2), "a\nb.jpg": picture(3)})
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb") as file:
        file.write(picture(4))
    assert_reads_back(
        tmp_path,
        {"猫/日本 🐈.jpg": picture(1), long: picture(2), "a\\x0ab.jpg": picture(3), "caf\\xe9.jpg": picture(4)},
    )


def test_sidecars_give_a_picture_its_caption_class_and_fields(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            "x/a.jpg": picture(1),
            "x/a.txt": "a cat\n",
            "x/a.json": '{"id": 7, "score": 1, "label": "cat", "width": 640, "tags": ["x"], "split": "dev"}',
            "x/b.jpg": picture(2),
            "x/b.json": '{"id": 8, "score": 0.5}',
            "y/c.jpg": picture(3),
            "y/c.cls": "3\n",
            "y/readme.txt": "belongs to no picture",
        },
    )
    listing = list_source(str(tmp_path))
    assert labels(listing) == {"x/a.jpg": "cat", "x/b.jpg": "x", "y/c.jpg": "3"}
    assert listing.skipped == Counter(beside=1)
    assert rows(listing)["x/a.jpg"]["split"] == "val"
    extras = extras_of(listing.index)
    assert extras.to_pylist()[:2] == [
        {"id": 7, "score": 1.0, "source_width": 640, "tags": ["x"], "caption": "a cat"},
        {"id": 8, "score": 0.5, "source_width": None, "tags": None, "caption": None},
    ]
    types = [str(field.type) for field in extras.schema]
    assert types == ["int64", "double", "int64", "list<item: string>", "string"]
    assert listing.columns.names == extras.column_names


def test_broken_json_is_a_problem_of_its_picture_which_keeps_its_bytes(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a.jpg": picture(1), "a.json": "{", "b.jpg": picture(2), "b.cls": b"\xff\xfe\x00"})
    reads = read_all(list_source(str(tmp_path)))
    assert [read.problem.reason for read in reads.values() if read.problem] == ["bad_sidecar"] * 2
    assert reads["a.jpg"].data == picture(1)


def test_a_label_column_names_a_field_of_the_json_or_is_an_error(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a.jpg": picture(1), "a.json": '{"breed": "pug", "label": "dog"}'})
    listing = list_source(str(tmp_path), Options(label_column="breed"))
    assert labels(listing) == {"a.jpg": "pug"}
    assert extras_of(listing.index).to_pylist() == [{"source_label": "dog"}]
    with pytest.raises(UsageError, match="no JSON or table beside a picture has this field; there are breed"):
        list_source(str(tmp_path), Options(label_column="colour"))


def test_an_option_without_effect_is_an_error(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a.jpg": picture(1)})
    with pytest.raises(UsageError, match="--key-column has no effect on a folder of pictures"):
        list_source(str(tmp_path), Options(key_column="id"))


def test_a_missing_file_is_a_reject_and_one_too_large_is_not_read(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a.jpg": picture(1), "b.jpg": picture(2), "empty.jpg": b""})
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(600 * 2**20)  # sparse: takes no disk
    listing = list_source(str(tmp_path))
    (tmp_path / "b.jpg").unlink()
    reads = read_all(listing)
    assert reads["a.jpg"].data == picture(1)
    assert reads["empty.jpg"].data == b""
    assert {key: read.problem.reason for key, read in reads.items() if read.problem} == {
        "b.jpg": "missing",
        "huge.jpg": "too_large",
    }


def test_an_unreadable_folder_is_an_error_that_names_it() -> None:
    folder = tempfile.mkdtemp()  # not tmp_path: another user must be able to reach it
    os.chmod(folder, 0o755)
    os.mkdir(f"{folder}/closed", 0o000)
    uid = os.geteuid()
    try:
        if uid == 0:
            os.seteuid(65534)
        with pytest.raises(StriateError, match=f"cannot list the folder {folder}/closed: Permission denied; make it"):
            list_source(folder)
    finally:
        os.seteuid(uid)
        os.rmdir(f"{folder}/closed")
        os.rmdir(folder)


def test_an_empty_source_is_an_error_that_lists_what_is_supported(tmp_path: Path) -> None:
    write_tree(tmp_path, {".hidden": "x"})
    with pytest.raises(UsageError, match=r"holds no pictures \(skipped 1 file: 1 hidden\); supported are a folder"):
        list_source(str(tmp_path))
    with pytest.raises(UsageError, match=r"there is nothing at .*nowhere; supported are a folder"):
        list_source(str(tmp_path / "nowhere"))


def test_a_folder_with_only_a_list_says_to_ingest_the_list(tmp_path: Path) -> None:
    write_tree(tmp_path, {"labels.csv": "path,label\n"})
    with pytest.raises(UsageError, match=r"ingest .*labels\.csv instead"):
        list_source(str(tmp_path))


def test_a_single_picture_is_not_a_source(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a.jpg": picture(1)})
    with pytest.raises(UsageError, match="is a single jpeg picture; ingest its folder"):
        list_source(str(tmp_path / "a.jpg"))


def test_a_real_folder_of_photos_lists_and_reads() -> None:
    listing = list_source(shared("exif-orientation"))
    reads = read_all(listing)
    assert len(reads) == 9
    assert listing.skipped == Counter(beside=1)
    assert all(read.data and len(read.data) == rows(listing)[key]["size"] for key, read in reads.items())
