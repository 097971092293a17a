"""Datasets and networks of a tour are made anew where those in the folder are not what this version would make."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.filter import plan_filter
from jobs.ingest import plan_ingest
from jobs.tour.tour_folder import TourFolder, photo, prepare_dataset, prepare_network
from jobs.train.run_folder import claim, training_versions
from library.bundle.description import load_record
from library.dataset.destination import claim as claim_dataset
from library.errors import UsageError
from library.imaging import codec
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


def test_a_dataset_of_another_tour_is_replaced_and_its_own_resumed(recipe: Recipe, tmp_path: Path) -> None:
    source, dataset = str(tmp_path / "train"), str(tmp_path / "few")
    first = prepare_dataset(lambda anew: plan_filter(source, dataset, "sample(0.5)", overwrite=anew))
    assert not first.overwrite
    claim_dataset(dataset, first.jobs, overwrite=False)
    for steps, overwrite in (("sample(0.5)", False), ("sample(0.25)", True)):
        plan = prepare_dataset(lambda anew, steps=steps: plan_filter(source, dataset, steps, overwrite=anew))
        assert plan.overwrite == overwrite


def test_splits_of_other_sizes_are_replaced_and_files_of_others_are_not(recipe: Recipe, tmp_path: Path) -> None:
    source, dataset = str(tmp_path / "raw" / "train"), tmp_path / "digits"

    def planned(split: str) -> bool:
        plan = prepare_dataset(lambda anew: plan_ingest(source, str(dataset), split=split, overwrite=anew))
        for name in plan.datasets:
            claim_dataset(name, [plan.job], overwrite=plan.overwrite)
        return plan.overwrite

    assert [planned(split) for split in ("train=0.8,test=0.2", "train=0.8,test=0.2", "train=0.5,test=0.5")] == [
        False,
        False,
        True,
    ]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        prepare_dataset(lambda anew: plan_ingest(source, str(tmp_path / "thesis"), split="none", overwrite=anew))


def test_a_photo_is_written_beside_its_place_and_renamed(tmp_path: Path) -> None:
    tour, target = TourFolder(tmp_path / "tour", "pixels"), tmp_path / "tour" / "raw" / "photos" / "china" / "china.png"
    target.parent.mkdir(parents=True)
    target.symlink_to(tmp_path / "elsewhere.png")  # a rename replaces the link; what writes to its place follows it
    for file in tour.raw_photos().rglob("*.png"):
        assert (codec.decode(file.read_bytes()) == photo(file.stem)).all()
    assert not target.is_symlink()
    assert not (tmp_path / "elsewhere.png").exists()


def test_commands_can_be_pasted_whatever_the_folder_is_called(tmp_path: Path) -> None:
    tour = TourFolder(tmp_path / "Ann's $HOME & tour", "pixels")
    tour.command("show", tour.folder / "data", "--steps", 'grayscale | edges(direction="vertical")')
    words = ["striate", "show", str(tour.folder / "data"), "--steps", 'grayscale | edges(direction="vertical")']
    assert shlex.split(tour.commands[0]) == words
