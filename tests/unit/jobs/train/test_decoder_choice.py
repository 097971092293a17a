"""`input.decode: cuda`: refused where it cannot work, and its difference measured on training pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.common.datasets import write_dataset
from cluster.connection.session import Session
from jobs.train.data import check_decoder, decoding_inputs
from jobs.train.decoder import compare_with_cpu
from jobs.train.plan import TrainPlan, plan_train
from library.bundle.bundle import Bundle
from library.bundle.description import WEIGHTS, TrainedDecoder
from library.errors import UsageError
from library.imaging import codec, cuda_jpeg
from library.recipe import Recipe
from tests.bundles import make_bundle
from tests.picture_examples import encoded


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve JPEGs of three classes."""
    folder = tmp_path_factory.mktemp("data")
    pictures = [(encoded("jpeg", 24 + number, 32), ("china", "flower", "hopper")[number % 3]) for number in range(12)]
    write_dataset(pictures, folder, 12, 1, "made by a test")
    return str(folder)


def plan(dataset: str, folder: Path, decode: str, max_resident_mb: int = 100) -> TrainPlan:
    recipe = {
        "data": {"train": dataset, "max_resident_mb": max_resident_mb},
        "input": {"steps": "rgb", "decode": decode},
        "model": "lenet5(in_chans=3)",
        "optimizer": {"name": "sgd", "lr": 0.1},
        "batch_size": 4,
        "epochs": 1,
    }
    return plan_train(Recipe.parse(json.dumps(recipe)), str(folder / "out"))


@pytest.mark.parametrize("decode", ["auto", "cpu"])
def test_the_cpu_decodes_unless_the_recipe_says_otherwise(dataset: str, tmp_path: Path, decode: str) -> None:
    planned = plan(dataset, tmp_path, decode)
    check_decoder(planned, Session(None, 2, 1))
    assert decoding_inputs(planned).decode is codec.decode


def test_a_gpu_decodes_where_the_recipe_asks_for_it(dataset: str, tmp_path: Path) -> None:
    planned = plan(dataset, tmp_path, "cuda")
    assert decoding_inputs(planned).decode is cuda_jpeg.decode
    assert planned.inputs.decode is codec.decode, "the plan itself is made without a GPU"


def test_without_a_gpu_the_training_is_refused(dataset: str, tmp_path: Path) -> None:
    planned = plan(dataset, tmp_path, "cuda")
    with pytest.raises(
        UsageError, match=r"input.decode: cuda needs a GPU, and there is none: Ray at this machine.* cpu"
    ):
        check_decoder(planned, Session(None, 2, 1))
    check_decoder(planned, Session("head:6379", 2, 1, gpus=1))


def test_a_stream_cannot_be_decoded_on_gpus(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"input.decode: cuda needs the pictures in memory.*data.max_resident_mb"):
        plan(dataset, tmp_path, "cuda", max_resident_mb=0)


def test_an_unknown_decoder_is_refused_with_the_known_ones(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"input.decode.*auto.*cpu.*cuda"):
        plan(dataset, tmp_path, "opengl")


def brighter(data: bytes, limits: Any = None, header: Any = None) -> NDArray[Any]:
    return np.minimum(codec.decode(data), 253) + np.uint8(2)


def test_the_difference_is_measured_on_training_pictures(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_jpeg, "version", lambda package: "0.17.0")
    planned = plan(dataset, tmp_path, "cpu")
    bundle = Bundle.load(make_bundle(tmp_path / "bundle"), "cpu")
    inputs = replace(planned.inputs, decode=brighter)
    found = compare_with_cpu(bundle.record.model_dump_json(), bundle.files()[WEIGHTS], planned.train, inputs, ())
    decoder = TrainedDecoder.model_validate_json(found)
    assert (decoder.library, decoder.pictures, decoder.largest_pixel_difference) == ("torchcodec 0.17.0", 12, 2)
    assert decoder.largest_probability_difference > 0
