"""Whole commands on a GPU through Ray: training, evaluation, batch prediction and serving."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from library.bundle.bundle import Bundle
from library.runtimes.parity import BF16_TOLERANCE, compare
from library.training.progress import read_metrics
from tests.conftest import free_port
from tests.datasets import rows, write_digits

pytestmark = pytest.mark.gpu

STRIATE = str(Path(sys.executable).with_name("striate"))
_TIMEOUT_S = 300
_END_S = 60


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 real digits, split into train and val."""
    folder = tmp_path_factory.mktemp("digits")
    striate("ingest", str(write_digits(folder)), str(folder / "data"), "--split", "train=0.8,val=0.2")
    return folder / "data"


def striate(*arguments: str, expected: int = 0) -> Any:
    """Runs a command, checks its exit code and returns its JSON document, or its stderr where it fails."""
    done = subprocess.run([STRIATE, *arguments, "--json"], capture_output=True, text=True, timeout=_TIMEOUT_S)
    assert done.returncode == expected, done.stderr
    return json.loads(done.stdout) if expected == 0 else done.stderr


def gpu_option(device: torch.device) -> str:
    return "--gpu" if device.type == "cuda" else "--no-gpu"


def write_recipe(folder: Path, digits: Path, **fields: Any) -> str:
    values = {
        "data": {"train": str(digits / "train"), "val": str(digits / "val")},
        "input": {"steps": 'grayscale | resize([28, 28], mode="exact")'},
        "augment": "random_crop(28, padding=2)",
        "model": "lenet5",
        "optimizer": {"name": "sgd", "lr": 0.05},
        "batch_size": 32,
        "epochs": 6,
        "ema": 0.9,
        **fields,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values))
    return str(path)


@pytest.fixture(scope="module")
def trained(device: torch.device, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that was trained on the device."""
    folder = tmp_path_factory.mktemp("trained")
    striate("train", write_recipe(folder, digits), "--out", str(folder / "bundle"), gpu_option(device))
    return folder / "bundle"


def test_a_training_on_a_gpu_learns_and_its_bundle_works_on_a_cpu(trained: Path, digits: Path) -> None:
    losses = [line["train_loss"] for line in read_metrics(str(trained / "logs"))]
    assert losses[-1] < losses[0] / 2
    bundle = Bundle.load(str(trained), "cpu")
    table = rows(digits / "val")
    predicted = bundle.predict_many([image["bytes"] for image in table["image"].to_pylist()])
    right = [one.best == label for one, label in zip(predicted, table["label"].to_pylist(), strict=True)]
    assert np.mean(right) == pytest.approx(bundle.record.metrics["val_top1"], abs=0.03)
    assert np.mean(right) > 0.6


def test_streamed_pictures_reach_the_gpu(device: torch.device, digits: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, digits, data={"train": str(digits / "train"), "max_resident_mb": 0}, epochs=3)
    striate("train", recipe, "--out", str(tmp_path / "bundle"), gpu_option(device))
    losses = [line["train_loss"] for line in read_metrics(str(tmp_path / "bundle" / "logs"))]
    assert losses[-1] < losses[0]


def test_the_batch_size_is_found_in_the_workers_own_process(device: torch.device, digits: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, digits, batch_size="auto", epochs=1)
    striate("train", recipe, "--out", str(tmp_path / "bundle"), gpu_option(device))
    assert (tmp_path / "bundle" / "bundle.json").exists()


def test_a_batch_larger_than_the_memory_is_reported_by_the_command(
    cuda: torch.device, digits: Path, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"model": "resnet50", "input": {}, "augment": None, "precision": "fp32", "ema": None}
    recipe = write_recipe(tmp_path, digits, **fields, batch_size=16_384, epochs=1)
    message = striate("train", recipe, "--out", str(tmp_path / "bundle"), "--gpu", expected=1)
    assert "batch_size 16384 does not fit into the memory of cuda" in message
    assert "set accumulate: " in message


def test_predictions_and_scores_on_a_gpu_are_the_cpus(
    device: torch.device, trained: Path, digits: Path, tmp_path: Path
) -> None:
    val = str(digits / "val")
    striate("predict", str(trained), val, str(tmp_path / "out"), "--top-k", "10", gpu_option(device))
    bundle = Bundle.load(str(trained), "cpu")
    table = rows(tmp_path / "out").to_pylist()
    expected = bundle.probabilities([bundle.prepare(row["image"]["bytes"]) for row in table])
    shares = [dict(zip(row["top_classes"], row["top_probabilities"], strict=True)) for row in table]
    compare(expected, np.array([[row[name] for name in bundle.classes] for row in shares]), BF16_TOLERANCE)
    scored = striate("evaluate", str(trained), val, "--report", str(tmp_path / "report"), gpu_option(device))
    assert bundle.record.metrics["val_top1"] == pytest.approx(_first(scored, "top1"), abs=0.03)


def _first(document: Any, name: str) -> float:
    """The first value of this name, at any depth."""
    if isinstance(document, dict):
        if isinstance(document.get(name), int | float):
            return float(document[name])
        found = (_first(value, name) for value in document.values())
    elif isinstance(document, list):
        found = (_first(value, name) for value in document)
    else:
        return float("nan")
    return next((value for value in found if not np.isnan(value)), float("nan"))


@pytest.fixture
def address(device: torch.device, trained: Path) -> Iterator[str]:
    """A server of the bundle, ended by SIGTERM."""
    port = free_port()
    options = ["--gpu"] if device.type == "cuda" else []
    command = [STRIATE, "serve", f"digits={trained}", "--port", str(port), "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        report = process.stdout.readline()
        assert report, f"the server ended with {process.wait(_END_S)}"
        yield json.loads(report)["address"]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_a_server_on_a_gpu_answers_as_the_bundle(
    device: torch.device, trained: Path, digits: Path, address: str
) -> None:
    bundle = Bundle.load(str(trained), "cpu")
    pictures = [image["bytes"] for image in rows(digits / "val")["image"].to_pylist()[:20]]
    expected = bundle.probabilities([bundle.prepare(data) for data in pictures])
    with httpx.Client(base_url=address, timeout=60) as client:
        described = client.get("/models/digits").json()
        assert described["runtime"]["device"].startswith(device.type)
        for row, data in zip(expected, pictures, strict=True):
            answer = client.post("/models/digits/predict?top_k=10", content=data).json()
            shares = {one["class"]: one["probability"] for one in answer["predictions"][0]["classes"]}
            compare(row[None], np.array([[shares[name] for name in bundle.classes]]), BF16_TOLERANCE)
