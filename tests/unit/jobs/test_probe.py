"""`striate plan`: the rates of a recipe's stages, and where its pictures are augmented."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from jobs.cli.app import run
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


STREAMED = "cpu (without a GPU, streamed pictures are augmented where they are decoded)"


@pytest.mark.parametrize(
    ("augment", "streamed", "resident"),
    [
        ("random_crop(32, padding=4) | flip", STREAMED, "device (whole batches are faster up to 48 px"),
        ("flip | jpeg_quality", *2 * ["cpu ('jpeg_quality' has no batched form)"]),
        (None, "", ""),
    ],
)
def test_a_plan_says_where_pictures_are_augmented(
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    augment: str | None,
    streamed: str,
    resident: str,
) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe(dataset, augment).dump())
    assert run(["plan", str(tmp_path / "recipe.yaml"), "--seconds", "0.3", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    first, second = text.split("pictures streamed from shards:")[1].split("decoded pictures in memory:")
    for text, on in ((first, streamed), (second, resident)):
        assert ("augmented on" in text) == bool(on)
        assert f"augmented on {on}" in text or not on
    assert re.search(r"\d CPUs keep this device busy", first)
    assert re.search(r"\d CPUs keep this device busy" if augment else "no work for the CPUs", second)
    assert ("resize" in first) == (augment is None)
    assert ("pictures/s" in first, "pictures/s" in second) == (True, augment is not None)


def test_streamed_pictures_are_measured_one_by_one_without_a_gpu(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A rate of whole batches that no measurement gives.
    monkeypatch.setattr("jobs.probe._batch_rate", lambda *_arguments, **_options: 1.5)
    rates = probe(recipe(dataset, "random_crop(32, padding=4) | flip"), seconds=0.4, device="cpu")
    assert rates.resident.augment_pictures_per_s == 1.5 != rates.streamed.augment_pictures_per_s
    assert not rates.streamed.only_drawn
    assert min(rates.decode_pictures_per_s, rates.resident.augment_pictures_per_s, rates.step_pictures_per_s) > 0
    both = probe(recipe(dataset, "flip | jpeg_quality"), seconds=0.3, device="cpu")
    assert both.streamed.augment_pictures_per_s == both.resident.augment_pictures_per_s > 0


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
