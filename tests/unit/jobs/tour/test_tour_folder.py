"""The networks of a tour are planned anew where the one in the folder is not what this version would train."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.tour.tour_folder import TourFolder, prepare_network
from jobs.train.run_folder import claim, training_versions
from library.bundle.description import load_record
from library.recipe import Recipe
from tests.bundles import make_bundle
from tests.picture_examples import encoded, ingest, write_files


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    files = {f"{label}/{number}.png": encoded("png", 20 + number, 20) for label in "ab" for number in range(6)}
    for split in ("train", "test"):
        ingest(write_files(tmp_path / "raw", {f"{split}/{name}": data for name, data in files.items()}) / split,
               tmp_path / split)  # fmt: skip
    tour = TourFolder(tmp_path / "tour", "digits")
    return Recipe.load(str(tour.recipe("lenet", (), train_on=tmp_path / "train", test_on=tmp_path / "test")))


def trained(recipe: Recipe, out: Path, torch: str | None = None) -> None:
    """Puts a bundle there as that of a finished training, by this version of PyTorch or another one."""
    plan = prepare_network(recipe, str(out))
    claim(plan.out, plan.record, overwrite=True)
    make_bundle(out / "made")
    for file in (out / "made").iterdir():
        file.rename(out / file.name)
    (out / "made").rmdir()
    versions = training_versions() | ({} if torch is None else {"torch": torch})
    record = out / "bundle.json"
    content = json.loads(record.read_text("utf-8"))
    content["provenance"]["versions"] = versions
    record.write_text(json.dumps(content), "utf-8")
    load_record(str(out))


def test_the_test_pictures_choose_no_epoch(recipe: Recipe) -> None:
    assert recipe.best_metric == "train_loss"


def test_a_finished_network_is_kept(recipe: Recipe, tmp_path: Path) -> None:
    trained(recipe, tmp_path / "net")
    assert prepare_network(recipe, str(tmp_path / "net")).finished


def test_a_network_of_another_recipe_is_replaced(recipe: Recipe, tmp_path: Path) -> None:
    trained(recipe, tmp_path / "net")
    plan = prepare_network(recipe.model_copy(update={"epochs": 3}), str(tmp_path / "net"))
    assert (plan.finished, plan.overwrite) == (False, True)


def test_a_network_of_another_pytorch_is_replaced(recipe: Recipe, tmp_path: Path) -> None:
    trained(recipe, tmp_path / "net", torch="1.0")
    plan = prepare_network(recipe, str(tmp_path / "net"))
    assert (plan.finished, plan.overwrite) == (False, True)


@pytest.mark.parametrize("torch", [None, "1.0"])
def test_an_unfinished_network_is_resumed_only_by_what_began_it(
    recipe: Recipe, tmp_path: Path, torch: str | None
) -> None:
    out, checkpoint = str(tmp_path / "net"), tmp_path / "net" / "checkpoints" / "weights"
    began = prepare_network(recipe, out)
    versions = training_versions() | ({} if torch is None else {"torch": torch})
    claim(began.out, replace(began.record, versions=versions), overwrite=True)
    checkpoint.parent.mkdir()
    checkpoint.touch()
    for _ in range(2):  # killed once more
        plan = prepare_network(recipe, out)
        assert not plan.finished
        claim(plan.out, plan.record, overwrite=plan.overwrite)
        assert checkpoint.exists() == (torch is None)
