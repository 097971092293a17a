import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from library.errors import UsageError
from library.sources import Listing, Options, list_source
from library.sources.labels import from_folders
from tests.source_examples import labels, picture, rows, write_tar, write_tree, write_zip

TINY = ["train/n01/images", "train/n02/images", "val/images", "test/images"]


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["cat/images", "dog/images"], ["cat", "dog"]),
        (["cat/batch1", "cat/batch2", "dog/batch1"], ["cat", "cat", "dog"]),
        (["cat", "cat/batch1", "dog"], ["cat", "cat", "dog"]),
        (["batch1/cat", "batch2/cat", "batch2/dog"], ["cat", "cat", "dog"]),
        (["photos/cat", "photos/dog"], ["cat", "dog"]),
        (["", "photos/cat", "photos/dog"], [None, "cat", "dog"]),
        (["part-1", "part-2"], ["part-1", "part-2"]),
        (["animals/cat", "animals/dog", "cars/bmw"], ["animals", "animals", "cars"]),
        (["0", "1", "12"], ["0", "1", "12"]),
        (["photos"], [None]),
        (["2023/12", "2024/01", "2024/02/17"], [None, None, None]),
        (["2024/01", "2024/02"], [None, None]),
        (["2024-05-01 Rome/cat", "2024-05-02/dog"], ["cat", "dog"]),
    ],
)
def test_the_class_is_the_first_folder_that_differs_between_pictures(
    folders: list[str], expected: list[str | None]
) -> None:
    folder_labels = from_folders(folders)
    assert [folder_labels.labels[folder] for folder in folders] == expected
    assert set(folder_labels.splits.values()) == {None}


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["d/train/cat", "d/train/dog", "d/test/cat"], ["train cat", "train dog", "test cat"]),
        (["cat/train", "cat/test", "dog/train"], ["train cat", "test cat", "train dog"]),
        (["cat/train/images", "dog/val/images"], ["train cat", "val dog"]),
        (["train/cat", "val/dog", "extra/dog"], ["train cat", "val dog", "None dog"]),
        (["train/cat", "val/cat"], ["train None", "val None"]),
        (["bus/train", "bus/tram", "cars/test"], ["None bus", "None bus", "None cars"]),
        (TINY, ["train n01", "train n02", "val None", "test None"]),
    ],
)
def test_splits_are_found_above_and_below_the_classes(folders: list[str], expected: list[str]) -> None:
    folder_labels = from_folders(folders)
    assert [f"{folder_labels.splits[folder]} {folder_labels.labels[folder]}" for folder in folders] == expected


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (1, ["train", "train", "val"]),
        (2, ["n01", "n02", "images"]),
        (3, ["images", "images", None]),
        (-1, ["images", "images", "images"]),
        (-2, ["n01", "n02", "val"]),
        (0, [None, None, None]),
    ],
)
def test_a_level_is_counted_from_the_source_or_from_the_picture(level: int, expected: list[str | None]) -> None:
    folder_labels = from_folders(TINY[:3], level=level)
    assert [folder_labels.labels[folder] for folder in TINY[:3]] == expected
    assert folder_labels.splits["val/images"] == (None if level == 1 else "val")


@pytest.mark.parametrize(
    ("folders", "note"),
    [
        (
            ["cat/batch1", "cat/batch2", "dog"],
            "the classes are the folders of level 1 (cat, dog); the folders in them are not classes (cat/batch1, "
            "cat/batch2); --label-level 2 makes those the classes",
        ),
        (["batch1/cat", "batch2/cat", "batch2/dog"], "the class 'cat' comes from 2 folders (batch1/cat, batch2/cat)"),
        (
            ["x/2023", "x/2024"],
            "the folders 2023, 2024 are dates and not used as classes; --label-level 2 makes them classes",
        ),
        (["photos"], "all pictures are in one folder ('photos'), so there are no classes; --label-level 1"),
        (TINY, "the split val has no classes: its only folder, 'images', is not a class of the other splits"),
    ],
)
def test_a_surprising_choice_of_classes_has_a_note(folders: list[str], note: str) -> None:
    assert any(line.startswith(note) for line in from_folders(folders).notes)


@pytest.mark.parametrize("folders", [["cat", "dog"], ["train/cat", "train/dog", "test/cat"], ["cat/train", "dog/test"]])
def test_plain_class_folders_need_no_note(folders: list[str]) -> None:
    assert from_folders(folders).notes == ()


def _listing(tmp_path: Path, *paths: str, options: Options = Options()) -> Listing:
    write_tree(tmp_path, {path: picture(number) for number, path in enumerate(paths)})
    return list_source(str(tmp_path), options)


def test_a_level_overrides_labels_from_sidecars(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a/x.json": '{"label": ["y", "z"]}', "b/y.cls": "3"})
    listing = _listing(tmp_path, "a/x.jpg", "b/y.jpg", options=Options(label_level=1))
    assert labels(listing) == {"a/x.jpg": "a", "b/y.jpg": "b"}
    assert listing.columns.names == ["source_label", "cls"]
    assert {row["problem"] for row in rows(listing).values()} == {None}


def test_a_level_deeper_than_any_picture_is_an_error(tmp_path: Path) -> None:
    message = r"--label-level 3 has no effect: pictures are at most 2 folders deep, as in 'cat/deep'"
    with pytest.raises(UsageError, match=message):
        _listing(tmp_path, "cat/deep/a.jpg", "dog/b.jpg", options=Options(label_level=3))


def test_a_level_and_a_column_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--label-column and --label-level both choose the class"):
        _listing(tmp_path, "cat/a.jpg", options=Options(label_level=1, label_column="x"))


def test_a_level_is_refused_for_a_source_without_folders(tmp_path: Path) -> None:
    write_tree(tmp_path, {"l.csv": "path\na.jpg\n"})
    with pytest.raises(UsageError, match="--label-level has no effect on a list: the class is a column"):
        list_source(str(tmp_path / "l.csv"), Options(label_level=1))


def test_archives_have_the_classes_of_the_folders_in_them(tmp_path: Path) -> None:
    files = {f"pets/{name}/images/{number}.jpg": picture(number) for number, name in enumerate(("cat", "dog"))}
    for path in (write_tar(tmp_path / "a.tar", files), write_zip(tmp_path / "a.zip", files)):
        assert list(labels(list_source(str(path))).values()) == ["cat", "dog"]
        assert set(labels(list_source(str(path), Options(label_level=-1))).values()) == {"images"}


def test_classes_that_look_alike_stay_apart_and_are_noted(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    listing = _listing(tmp_path, *(f"{name}/x.jpg" for name in (composed, decomposed, "Cat", "cat", "dog", "dog ")))
    assert len(listing.classes) == 6
    kinds = ("in case", "in their Unicode form", "in spaces or the like")
    assert all(any(f"differ only {kind}, but are" in note for note in listing.notes) for kind in kinds)
    assert len(listing.notes) == 3


def test_an_unused_column_with_the_name_of_a_label_is_noted(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a.jpg": picture(1), "l.csv": "path,Species,age\na.jpg,cat,3\n"})
    write_tree(tmp_path, {"l.jsonl": '{"path": "a.jpg", "class_id": 3, "label": "cat"}\n'})
    table = {
        "image": [picture(1)],
        "label": pa.array([["cat"]]),
        "fine_label": [3],
        "class_ids": pa.array([[3]]),
        "classroom": ["x"],
    }
    pq.write_table(pa.table(table), tmp_path / "l.parquet")
    notes = {name: list_source(str(tmp_path / name)).notes for name in ("l.csv", "l.jsonl", "l.parquet")}
    message = "has the name of a label but is not used as one"
    assert notes["l.csv"] == (f"the column 'Species' (string) {message}; --label-column Species uses it",)
    assert notes["l.jsonl"] == (f"the column 'class_id' (int64) {message}; --label-column class_id uses it",)
    first, second, third = notes["l.parquet"]
    assert first.startswith("the column 'label' (list<")
    several = "`labels: source_label` in a recipe's data learns several classes a picture"
    assert first.endswith(f"{message} and is kept as 'source_label'; {several}")
    assert second == f"the column 'fine_label' (int64) {message}; --label-column fine_label uses it"
    assert third.endswith(f"{message}; a class is text or a whole number")
    assert list_source(str(tmp_path / "l.csv"), Options(label_column="Species")).notes == ()


def test_a_source_without_any_valid_label_is_refused(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a.jpg": picture(1), "l.jsonl": '{"path": "a.jpg", "label": ["a", "b"]}\n'})
    with pytest.raises(UsageError, match=r"no picture has a valid label; for example 'a\.jpg': bad_label"):
        list_source(str(tmp_path / "l.jsonl"))
