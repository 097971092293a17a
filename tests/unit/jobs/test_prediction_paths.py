"""The meaning of the paths after `striate predict BUNDLE`, and the table of predictions for pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.cli.app import run
from jobs.predict import is_dataset_and_destination, picture_files
from library import storage
from library.bundle.bundle import Bundle
from library.errors import UsageError
from tests.bundles import make_bundle
from tests.picture_examples import encoded, ingest, write_files

Striate = Callable[..., tuple[int, str, str]]

FILES = {
    "cat/a.jpg": encoded("jpeg", 40, 50),
    "cat/deep/b.PNG": encoded("png", 40, 50),
    "dog/damaged.jpg": encoded("jpeg", 40, 50)[:-300],
    ".hidden/c.png": encoded("png"),
    ".d.png": encoded("png"),
    "notes.txt": b"a note",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, pictures, a dataset of the pictures, and a dataset with splits."""
    folder = tmp_path_factory.mktemp("place")
    make_bundle(folder / "bundle")
    write_files(folder / "pictures", FILES)
    ingest(folder / "pictures", folder / "dataset")
    ingest(folder / "pictures", folder / "splits" / "train")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def striate(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Striate:
    """Runs `striate predict` in that folder; returns its exit code, stdout and stderr."""
    monkeypatch.chdir(place)

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(["predict", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.mark.parametrize(
    ("paths", "is_batch"),
    [
        (["dataset", "new"], True),
        (["dataset", "empty"], True),
        (["dataset/", "s3://bucket/new/"], True),
        (["dataset", "dataset"], True),  # the job itself refuses it
        (["pictures"], False),
        (["pictures", "new"], False),
        (["pictures/cat/a.jpg", "missing.png"], False),
        (["splits", "new"], False),
    ],
)
def test_a_dataset_and_a_destination_are_a_job_other_paths_pictures(
    place: Path, monkeypatch: pytest.MonkeyPatch, bucket: str, paths: list[str], is_batch: bool
) -> None:
    monkeypatch.chdir(place)
    paths = [path.replace("s3://bucket", bucket) for path in paths]
    assert is_dataset_and_destination("bundle", paths) == is_batch


@pytest.mark.parametrize(
    "paths",
    [
        ["dataset"],
        ["dataset", "pictures"],
        ["dataset", "pictures/cat/a.jpg"],
        ["dataset", "pictures/notes.txt"],
        ["dataset", "missing.png"],
        ["dataset", "new", "other"],
        ["pictures", "dataset"],
    ],
)
def test_ambiguous_paths_are_refused_with_both_readings(striate: Striate, paths: list[str]) -> None:
    code, out, err = striate("bundle", *paths)
    assert (code, out) == (2, "")
    assert "striate: dataset is a dataset and needs exactly one more path" in err
    assert "striate predict bundle dataset DEST" in err
    assert "striate predict bundle PICTURE..." in err


def test_a_folder_with_datasets_is_not_read_as_pictures(place: Path, striate: Striate) -> None:
    code, _, err = striate("bundle", "splits", "new")
    assert (code, "and DEST: splits/train" in err) == (2, True)
    with pytest.raises(UsageError, match="contains datasets, not pictures; name one of them"):
        picture_files(str(place))


def test_folders_are_searched_and_hidden_files_are_skipped(place: Path, bucket: str) -> None:
    folder = str(place / "pictures")
    assert picture_files(folder) == [f"{folder}/cat/a.jpg", f"{folder}/cat/deep/b.PNG", f"{folder}/dog/damaged.jpg"]
    for name, data in FILES.items():
        storage.write_bytes(f"{bucket}/p/{name}", data)
    assert picture_files(f"{bucket}/p") == [
        f"{bucket}/p/{name}" for name in ("cat/a.jpg", "cat/deep/b.PNG", "dog/damaged.jpg")
    ]
    assert picture_files(f"{folder}/missing") == [f"{folder}/missing"]


def test_pictures_are_printed_as_a_table_and_a_bad_one_is_skipped(place: Path, striate: Striate) -> None:
    code, out, err = striate("bundle", "pictures", "--top-k", 2)
    assert code == 1
    loaded = Bundle.load(str(place / "bundle"), "cpu")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["file", "class", "probability", "next"]
    for line, name in zip(lines[1:3], ("cat/a.jpg", "cat/deep/b.PNG"), strict=True):
        (best, share), (second, other) = loaded.predict(FILES[name], top_k=2).classes
        assert line == [f"pictures/{name}", best, f"{share:.2%}", second, f"{other:.2%}"]
    assert lines[3:] == [["bundle", loaded.id]]
    assert [line.split(": ")[:2] for line in err.splitlines()] == [["pictures/dog/damaged.jpg", "truncated"]]
    assert striate("bundle", "pictures/cat", "--top-k", 1)[0] == 0


def test_json_has_every_file_once_in_the_order_given(striate: Striate) -> None:
    code, out, _ = striate("bundle", "pictures/cat/a.jpg", "missing.png", "empty", "pictures/cat", "--json")
    document: dict[str, Any] = json.loads(out)
    assert code == 1
    assert [one["file"] for one in document["predictions"]] == [
        "pictures/cat/a.jpg",
        "missing.png",
        "empty",
        "pictures/cat/a.jpg",
        "pictures/cat/deep/b.PNG",
    ]
    a, missing, empty, again, _ = document["predictions"]
    assert a == again
    assert sum(one["probability"] for one in a["classes"]) == pytest.approx(1)
    assert [missing["error"]["reason"], empty["error"]["reason"]] == ["cannot_read", "no_pictures"]


@pytest.mark.parametrize(
    "option", ["--gpu", "--no-gpu", "--features", "--overwrite", "--dry-run", "--workers=2", "--limit=3"]
)
def test_an_option_for_datasets_is_refused_beside_pictures(striate: Striate, option: str) -> None:
    code, _, err = striate("bundle", "pictures/cat/a.jpg", option)
    assert code == 2
    assert "needs a dataset and a destination, but" in err


def test_a_dry_run_prints_the_plan_and_writes_nothing(place: Path, striate: Striate) -> None:
    code, out, _ = striate("bundle", "dataset", "new", "--dry-run", "--json", "--top-k", 1, "--no-gpu")
    facts = json.loads(out)
    assert (code, facts["pictures_to_do"], facts["top_k"], facts["device"]) == (0, 3, 1, "cpu")
    assert facts["bundle_id"] == Bundle.load(str(place / "bundle"), "cpu").id
    assert not (place / "new").exists()
