"""`striate show`: contact sheets of a dataset, before and after a pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.cli.app import run
from jobs.inspection.show import contact_sheet
from library import storage
from library.errors import StepError, UsageError
from library.imaging import codec
from tests.picture_examples import encoded, ingest, write_files

FILES = {
    "cat/a.jpg": encoded("jpeg", 60, 80),
    "cat/b.png": encoded("png", 6, 8),
    "dog/c.tif": encoded("tiff", 60, 80, 7, "uint16"),
    "dog/d.jpg": encoded("jpeg", 60, 80)[:-400],
    "dog/e.npy": encoded("npy", 60, 80, 1, "float32"),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("show")
    manifest = ingest(write_files(folder / "raw", FILES), folder / "dataset", shard_bytes=3000)
    assert len(manifest.shards) > 1
    return str(folder / "dataset")


def test_every_picture_is_on_the_sheet_with_its_facts(dataset: str) -> None:
    sheet = contact_sheet(dataset)
    assert {fact["key"]: (fact["label"], fact["width"], fact["height"]) for fact in sheet.pictures} == {
        "cat/a.jpg": ("cat", 80, 60),
        "cat/b.png": ("cat", 8, 6),
        "dog/c.tif": ("dog", 80, 60),
        "dog/d.jpg": ("dog", 80, 60),
        "dog/e.npy": ("dog", 80, 60),
    }
    assert all("result" not in fact for fact in sheet.pictures)
    drawn = codec.decode(sheet.png)
    assert drawn.shape[1] == 10 + 5 * (160 + 10)


def test_with_steps_the_result_of_each_picture_is_named(dataset: str) -> None:
    sheet = contact_sheet(dataset, "min_size(short_side=10) | grayscale | resize(30)")
    assert {fact["key"]: fact["result"] for fact in sheet.pictures} == {
        "cat/a.jpg": "40x30x1 jpeg",
        "cat/b.png": "dropped: below_min_size",
        "dog/c.tif": "40x30x1 tiff",
        "dog/d.jpg": "rejected: truncated",
        "dog/e.npy": "40x30x1 npy",
    }
    assert codec.decode(sheet.png).shape[1] == 10 + 6 * (160 + 10)


def test_a_picture_stands_beside_its_result(dataset: str) -> None:
    drawn = codec.decode(contact_sheet(dataset, "invert", keys=["cat/b.png"], tile_px=64).png).astype(int)
    before, after = (drawn[:, left : left + 64] for left in (10, 84))
    pixels = codec.decode(FILES["cat/b.png"])
    enlarged = np.kron(pixels, np.ones((8, 8, 1), int))
    windows = np.lib.stride_tricks.sliding_window_view(before, (48, 64, 3))[:, 0, 0]
    (top,) = [row for row in range(len(windows)) if (windows[row] == enlarged).all()]
    assert np.array_equal(after[top : top + 48], 255 - enlarged)


def test_keys_and_a_label_choose_the_pictures(dataset: str) -> None:
    assert {fact["key"] for fact in contact_sheet(dataset, keys=["dog/e.npy", "cat/a.jpg", "cat/a.jpg"]).pictures} == {
        "dog/e.npy",
        "cat/a.jpg",
    }
    assert {fact["key"] for fact in contact_sheet(dataset, label="cat").pictures} == {"cat/a.jpg", "cat/b.png"}
    assert len(contact_sheet(dataset, label="dog", count=2).pictures) == 2
    assert len(contact_sheet(dataset, count=1).pictures) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "bird"}, r"has no picture with the label 'bird'; its classes are: cat, dog"),
        ({"keys": ["nope"]}, r"has no picture with the keys nope"),
        ({"keys": ["cat/a.jpg", "nope", "neither"]}, r"has no picture with the keys neither, nope"),
        ({"count": 0}, "--count takes 1 to 200"),
        ({"count": 201}, "--count takes 1 to 200"),
        ({"tile_px": 15}, "--tile-px 16 to 1024"),
        ({"steps": "gausian_blur(1)"}, "did you mean 'gaussian_blur'"),
    ],
    ids=str,
)
def test_a_request_that_cannot_be_shown_is_refused(dataset: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        contact_sheet(dataset, **options)  # type: ignore[arg-type]


def test_a_folder_that_is_not_a_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a dataset"):
        contact_sheet(str(tmp_path))


def test_an_error_in_a_step_is_raised_and_not_drawn(dataset: str) -> None:
    with pytest.raises(StepError, match="the dataset has no column 'mask'"):
        contact_sheet(dataset, 'blur_background(mask_column="mask")', keys=["cat/a.jpg"])


def test_a_count_beside_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--count has no effect beside --key"):
        contact_sheet(str(tmp_path), count=3, keys=["a"])


def test_the_sheet_can_be_written_to_s3(dataset: str, bucket: str) -> None:
    assert run(["show", dataset, "--out", f"{bucket}/sheet.png", "--key", "cat/a.jpg"]) == 0
    assert storage.exists(f"{bucket}/sheet.png")


def test_more_keys_than_a_sheet_takes_are_refused(dataset: str) -> None:
    with pytest.raises(UsageError, match="--key is given 201 times"):
        contact_sheet(dataset, keys=[str(number) for number in range(201)])
