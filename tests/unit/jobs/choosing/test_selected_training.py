"""What a recipe cannot be trained on is refused before the first training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.choosing.audit import check_folds
from jobs.choosing.selected_training import TrainablePictures
from library.dataset.manifest import load_manifest
from library.errors import UsageError
from library.recipe import Recipe
from tests.picture_examples import encoded, ingest, write_files

LABELS = ["cat", "dog", "cat", "dog", "cat", "owl"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cats, dogs and an owl; and a picture without a label."""
    folder = tmp_path_factory.mktemp("selected")
    files = {f"{label}/{row}.png": encoded("png") for row, label in enumerate(LABELS)} | {"alone.png": encoded("png")}
    ingest(write_files(folder / "source", files), folder / "data")
    table = pq.read_table(next((folder / "data").glob("part-*.parquet")))
    assert table["label"].null_count == 1
    return folder / "data"


def pictures(dataset: Path, classes: str) -> TrainablePictures:
    text = f"""
model: lenet5
data: {{train: {dataset}, classes: {classes}, val_fraction: 0.5}}
epochs: 1
batch_size: 2
optimizer: {{name: adam, lr: 0.003}}
"""
    (dataset.parent / "recipe.yaml").write_text(text)
    return TrainablePictures.of(Recipe.load(str(dataset.parent / "recipe.yaml"), []), load_manifest(str(dataset)))


def test_only_labelled_pictures_of_chosen_classes_are_trained_on(dataset: Path) -> None:
    everything, chosen = pictures(dataset, "all"), pictures(dataset, "[cat, dog]")
    assert sorted(everything.labels) == sorted(LABELS)
    assert set(chosen.labels) == {"cat", "dog"}
    assert "alone.png" not in everything.keys
    assert all(label == key.split("/")[0] for key, label in zip(chosen.keys, chosen.labels, strict=True))


def test_classes_without_a_chosen_picture_are_named(dataset: Path) -> None:
    everything = pictures(dataset, "all")
    dogs = np.array([row for row, label in enumerate(everything.labels) if label == "dog"])
    assert everything.absent_classes(dogs) == ["cat", "owl"]
    assert everything.absent_classes(np.arange(len(everything.keys))) == []


def test_folds_that_a_training_would_refuse_are_found_first(dataset: Path) -> None:
    chosen, everything = pictures(dataset, "[cat, dog]"), pictures(dataset, "all")
    folds = np.array([chosen.labels[:row].count(label) % 2 for row, label in enumerate(chosen.labels)])
    check_folds(chosen, folds, 2)
    with pytest.raises(UsageError, match="fold 3 would be empty"):
        check_folds(chosen, folds, 3)
    with pytest.raises(UsageError, match="all pictures of owl are in fold 1"):
        check_folds(everything, np.array([int(label != "owl") for label in everything.labels]), 2)
