"""`striate plan`: the rates of a recipe's stages, and where its pictures are augmented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from jobs.probe import probe
from jobs.train.plan import plan_train
from library.errors import UsageError
from library.imaging import codec
from library.recipe import Recipe
from tests.picture_examples import ingest, write_files

_PNG = codec.Encoding("png")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    rng = np.random.default_rng(0)
    pictures = {
        f"{'cat' if number % 2 else 'dog'}/{number}.png": codec.encode(
            rng.integers(0, 256, (32, 32, 3), np.uint8), _PNG
        )[0]
        for number in range(12)
    }
    ingest(write_files(folder / "pictures", pictures), folder / "data")
    return folder / "data"


def recipe(dataset: Path, augment: str | None, augment_on: str = "auto") -> Recipe:
    fields = {
        "data": {"train": str(dataset)},
        "input": {"size": 32},
        "augment": augment,
        "augment_on": augment_on,
        "model": "resnet9(in_chans=3)",
        "optimizer": {"name": "sgd", "lr": 0.1},
        "batch_size": 4,
        "epochs": 1,
    }
    return Recipe.parse(yaml.safe_dump({name: value for name, value in fields.items() if value is not None}))


@pytest.mark.parametrize(
    ("augment", "on"),
    [
        ("random_crop(32, padding=4) | flip", "device (whole batches are faster up to 48 px"),
        ("flip | jpeg_quality", "cpu ('jpeg_quality' has no batched form)"),
        (None, ""),
    ],
)
def test_a_plan_says_where_pictures_are_augmented(dataset: Path, augment: str | None, on: str) -> None:
    rates = probe(recipe(dataset, augment), seconds=0.3, device="cpu")
    assert rates.augment_on.startswith(on)
    assert bool(rates.augment_on) == bool(on)
    assert min(rates.decode_pictures_per_s, rates.augment_pictures_per_s, rates.step_pictures_per_s) > 0


def test_a_training_says_where_it_augments_before_it_starts(dataset: Path, tmp_path: Path) -> None:
    plan = plan_train(recipe(dataset, "flip | rotate(10)"), str(tmp_path / "bundle"))
    assert str(plan.described()["augment_on"]).startswith("device with a GPU, else cpu (without a GPU")
    with pytest.raises(UsageError, match="augment_on: device cannot be used: 'jpeg_quality' has no batched form"):
        plan_train(recipe(dataset, "jpeg_quality", "device"), str(tmp_path / "bundle"))


def test_a_training_on_16_bits_says_so_before_it_starts(tmp_path: Path) -> None:
    pictures = {
        f"{name}/{number}.png": codec.encode(np.full((32, 32, 3), 999 * number, np.uint16), _PNG)[0]
        for number in range(4)
        for name in ("cat", "dog")
    }
    ingest(write_files(tmp_path / "pictures", pictures), tmp_path / "data")
    plan = plan_train(recipe(tmp_path / "data", "flip"), str(tmp_path / "bundle"))
    assert plan.described()["augment_on"] == "cpu (pictures of uint16 have no batched form)"
    with pytest.raises(UsageError, match="augment_on: device cannot be used: pictures of uint16 have no batched form"):
        plan_train(recipe(tmp_path / "data", "flip", "device"), str(tmp_path / "bundle"))
