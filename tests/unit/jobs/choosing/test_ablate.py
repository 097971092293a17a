"""What an ablation says of wrong labels, and of sets that a recipe cannot be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.choosing.ablate import HeadTrainer, RecipeTrainer, measured, plan_ablate, unusable_sets
from jobs.choosing.selected_training import TrainablePictures
from library.choosing.labels.ablation import SetName, answers, sets_of
from library.errors import UsageError
from library.recipe import Recipe
from tests.picture_examples import encoded, ingest, write_files

PICTURES, FEATURES, CLASSES = 100, 4, 2


def trainer(seed: int, misleading: int) -> HeadTrainer:
    """Two classes that overlap; the labels of the first pictures are wrong."""
    rng = np.random.default_rng([seed, 17])

    def side(number: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        labels = rng.integers(0, CLASSES, number)
        values = rng.normal(0, 1, (number, FEATURES)) + 2 * labels[:, None]
        return values.astype(np.float32), labels

    train, val = side(PICTURES), side(PICTURES)
    train[1][:misleading] = 1 - train[1][:misleading]
    return HeadTrainer([str(row) for row in range(PICTURES)], CLASSES, train, val)


def test_leaving_out_wrong_labels_is_better() -> None:
    head, kept = trainer(1, misleading=60), np.arange(PICTURES) >= 60
    names: tuple[SetName, SetName] = ("random_kept", "kept")
    accuracies: dict[SetName, Sequence[float]] = {
        name: [head.accuracy(name, sets_of(kept, seed)[name], seed) for seed in range(6)] for name in names
    }
    (answer,) = answers(accuracies, 0.003, "replicates")
    assert answer.difference.verdict == "better"
    assert head.absent_classes(np.arange(1)) == ()


def test_a_seed_resamples_the_validation_pictures_too() -> None:
    """The same head, whatever the seed weights: one picture of each class. So only validation pictures differ."""
    head = trainer(2, misleading=0)
    labels = head.train[1]
    rows = np.array([int(np.flatnonzero(labels == number)[0]) for number in range(CLASSES)])
    equal = HeadTrainer(head.keys, CLASSES, head.train, (np.zeros((10, FEATURES), np.float32), np.arange(10) % 2))
    accuracies = {equal.accuracy("all", rows, seed) for seed in range(5)}
    assert len(accuracies) == 5
    assert all(0 < accuracy < 1 for accuracy in accuracies)


def recipe_trainer(labels: Sequence[str]) -> RecipeTrainer:
    fields = {"optimizer": {"name": "adam", "lr": 0.1}, "batch_size": 2, "epochs": 1, "data": {"train": "x"}}
    recipe = Recipe.model_validate({"model": "lenet5", **fields})
    keys = [str(row) for row in range(len(labels))]
    return RecipeTrainer(TrainablePictures(recipe, keys, labels, np.arange(len(keys)), len(keys)), "out", False, None)


def test_sets_that_lack_a_class_are_found_before_any_training() -> None:
    labels = ["cat", "dog", "owl"] * 10
    kept = np.array([label != "owl" or row < 12 for row, label in enumerate(labels)])
    skipped = unusable_sets(recipe_trainer(labels), kept, seeds=5)
    assert "no picture of cat, dog" in skipped["dropped"]
    assert not skipped.keys() & {"all", "kept", "random_kept"}
    assert "too few" in unusable_sets(recipe_trainer(labels), np.arange(30) > 2, seeds=5)["dropped"]
    assert unusable_sets(recipe_trainer(labels), np.arange(30) % 2 == 0, seeds=1).keys() <= {"random_dropped"}


def test_a_random_set_lacking_a_class_with_one_seed_is_skipped() -> None:
    labels = ["cat", "dog"] * 20 + ["owl"]
    kept = np.array([row % 4 > 1 or label == "owl" for row, label in enumerate(labels)])
    skipped = unusable_sets(recipe_trainer(labels), kept, seeds=12)
    assert "no picture of owl" in skipped["random_kept"]
    assert "no picture of owl" in skipped["random_dropped"]
    assert "all" not in skipped


def test_results_are_kept_for_the_same_question_only(tmp_path: Path) -> None:
    pictures = {f"{label}/{n}.png": encoded("png", 20 + n, 30) for label in ("cat", "dog") for n in range(2)}
    source = write_files(tmp_path / "source", pictures)
    for split in ("train", "val"):
        ingest(source, tmp_path / "out" / split)
    folder, out = str(tmp_path / "out"), str(tmp_path / "ablation")
    head, kept = trainer(3, misleading=30), np.arange(PICTURES) >= 30
    plan = plan_ablate(folder, "not_blank", seeds=5, out=out)
    first = measured(plan, head, kept)
    assert first.sizes == {"all": 100, "kept": 70, "random_kept": 70, "dropped": 30, "random_dropped": 30}
    # Another trainer would have other accuracies: they come from the file, and more seeds only add to them.
    again = measured(plan_ablate(folder, "not_blank", seeds=6, out=out), trainer(4, misleading=0), kept)
    for name, values in first.accuracies.items():
        assert list(again.accuracies[name][:5]) == list(values)
    with pytest.raises(UsageError, match="another ablation"):
        measured(plan_ablate(folder, "not_blank(min_std=0.02)", seeds=5, out=out), head, kept)


@pytest.mark.parametrize("what", ["every", "no"])
def test_selectors_that_keep_all_or_none_leave_nothing_to_compare(tmp_path: Path, what: str) -> None:
    source = write_files(tmp_path / "source", {f"{label}/1.png": encoded("png", 20, 30) for label in ("cat", "dog")})
    for split in ("train", "test"):
        ingest(source, tmp_path / "out" / split)
    plan = plan_ablate(str(tmp_path / "out"), "min_size(2)")
    with pytest.raises(UsageError, match=rf"these selectors keep {what} picture of .*; nothing to compare"):
        measured(plan, trainer(5, misleading=0), np.full(PICTURES, what == "every"))
