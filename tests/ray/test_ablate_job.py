"""The ablation on a real local Ray: pictures that mislead are found to do harm; a recipe trains on a selection."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.choosing import ablate
from jobs.choosing.ablate import RESULTS, RecipeTrainer, plan_ablate, run_ablate
from library.dataset.lease import hold
from library.errors import UsageError
from library.imaging import codec
from tests.picture_examples import ingest, write_files

RECIPE = """
model: lenet5
data: {train: x}
epochs: 1
batch_size: 16
optimizer: {name: adam, lr: 0.003}
"""


def digit(kind: int, seed: int) -> bytes:
    """Noise with a bright half: the left one or the right one."""
    pixels = np.random.default_rng(seed).integers(0, 160, (28, 28, 1), np.uint8)
    pixels[:, 14 * kind : 14 * kind + 14] += 60
    return codec.encode(pixels, codec.Encoding("png"))[0]


def flat(seed: int) -> bytes:
    """A flat grey picture, whose class cannot be seen."""
    return codec.encode(np.full((28, 28, 1), 100 + seed % 9, np.uint8), codec.Encoding("png"))[0]


def splits(folder: Path) -> Path:
    files = {f"{row % 2}/{row}.png": digit(row % 2, row) for row in range(60)}
    flats = {f"{row % 2}/flat{row}.png": flat(row) for row in range(24)}
    ingest(write_files(folder / "source" / "train", files | flats), folder / "out" / "train")
    val = {f"{row % 2}/{row}.png": digit(row % 2, 500 + row) for row in range(80)}
    ingest(write_files(folder / "source" / "val", val), folder / "out" / "val")
    return folder / "out"


def test_pictures_that_teach_nothing_are_told_from_random_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = splits(tmp_path)
    plan = plan_ablate(str(out), "not_blank", seeds=6, out=str(tmp_path / "ablation"))
    result = run_ablate(plan, workers="2")
    assert result.sizes == {"all": 84, "kept": 60, "random_kept": 60, "dropped": 24, "random_dropped": 24}
    assert {len(values) for values in result.accuracies.values()} == {6}
    by_second = {answer.second: answer.difference for answer in result.answers if answer.first != "all"}
    assert by_second["dropped"].mean < -0.1
    assert result.summary()["intervals_cover"].startswith("other training and validation pictures")
    json.dumps(result.summary(), allow_nan=False)

    # A repeated run measures nothing again.
    monkeypatch.setattr(ablate.LinearHead, "fit", None)
    assert run_ablate(plan, workers="1").accuracies == result.accuracies
    assert len(json.loads((tmp_path / "ablation" / RESULTS).read_text())["accuracy"]) == 30
    with hold(plan.out or "", tidy=lambda _: None), pytest.raises(UsageError, match="is being written"):
        run_ablate(plan, workers="1")


def test_a_recipe_trains_on_the_selected_pictures_only(tmp_path: Path) -> None:
    out = splits(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe = str(tmp_path / "recipe.yaml")
    plan = plan_ablate(str(out), "not_blank", recipe=recipe, seeds=5, out=str(tmp_path / "ablation"))
    trainer = RecipeTrainer.of(plan, gpu=False, address=None)
    assert (len(trainer.keys), trainer.classes) == (84, 2)
    kept = np.array([row for row, key in enumerate(trainer.keys) if "flat" not in key])
    accuracy = trainer.accuracy("kept", kept, 0)
    assert 0 <= accuracy <= 1
    record = json.loads((tmp_path / "ablation" / "seed-0-kept" / "bundle.json").read_text())
    assert record["provenance"]["train_pictures"] == 60
    assert trainer.accuracy("kept", kept, 0) == accuracy
