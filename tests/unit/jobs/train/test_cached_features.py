"""The features of a frozen backbone: one row for each picture and pass that augmentation does not reject."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from jobs.train.features import FeatureWorker
from library.imaging import codec
from library.models.build import create
from library.pipeline import Pipeline
from library.pipeline.augmentation import Augmenter
from library.pipeline.inputs import InputPipeline
from library.recipe import Recipe
from library.training.in_memory import PackedPictures
from library.training.rows import Rows, read_rows
from tests.picture_examples import ingest, write_files

SIDE, AUGMENT, COPIES = 28, f"random_crop({28})", 2
INPUTS = InputPipeline.parse("grayscale", f'resize([{SIDE}, {SIDE}], mode="exact")', (SIDE, SIDE), 1)
PICTURES = {
    f"{'cat' if number % 2 else 'dog'}/{number}.png": np.random.default_rng(number).integers(
        0, 256, (height, 40, 1), np.uint8
    )
    for number, height in enumerate((32, 28, 20, 35, 24, 30))
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Six pictures, two of which are too small for the crop."""
    folder = tmp_path_factory.mktemp("features")
    encoded = {name: codec.encode(pixels, codec.Encoding("png"))[0] for name, pixels in PICTURES.items()}
    ingest(write_files(folder / "pictures", encoded), folder / "data")
    return read_rows(str(folder / "data"))


def recipe(rows: Rows, augment: str) -> Recipe:
    fields: dict[str, Any] = {
        "data": {"train": rows.dataset},
        "model": "lenet5",
        "freeze": "all",
        "weights": rows.dataset,
        "cache_features": True,
        "copies": COPIES,
        "augment": augment,
        "optimizer": {"name": "sgd", "lr": 0.1},
        "batch_size": 4,
        "epochs": 1,
    }
    return Recipe.parse(json.dumps(fields)).model_copy(update={"weights": None})


def features(rows: Rows, augment: str) -> PackedPictures:
    text = recipe(rows, augment).model_dump_json()
    worker = FeatureWorker(rows, INPUTS, text, COPIES, torch.get_num_threads(), ())
    result = worker({"number": 0, "part": (0, 0, len(rows))})
    assert not result["error"]
    return result["pictures"]


def test_a_picture_that_augmentation_rejects_is_left_out_and_counted(rows: Rows) -> None:
    data, usable = features(rows, AUGMENT), {name for name, pixels in PICTURES.items() if len(pixels) >= SIDE}
    assert Counter(data.keys.tolist()) == Counter(dict.fromkeys(usable, COPIES))
    assert data.rejected == Counter(too_small=len(PICTURES) - len(usable))
    torch.manual_seed(0)
    model, augmenter = create("lenet5", num_classes=2).eval(), Augmenter(Pipeline.parse(AUGMENT), 0)
    for row, key in enumerate(data.keys.tolist()):
        assert rows.classes[data.labels[row]] == key.split("/")[0]
        pixels = augmenter.apply(PICTURES[key], row // len(usable), key)
        with torch.inference_mode():
            expected = model.features(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]
        np.testing.assert_allclose(data[row], expected.numpy(), atol=1e-4)


def test_a_part_without_a_usable_picture_has_no_features(rows: Rows) -> None:
    data = features(rows, "random_crop(100)")
    assert len(data) == 0
    assert data.rejected == Counter(too_small=len(PICTURES))
