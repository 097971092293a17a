"""Every way to ask a bundle gives its network the same pixels, bit for bit, and the same probabilities within 1e-5.

Matrix kernels depend on the processor, the batch and the number of threads, so equal bits of probabilities are not
promised; `make test-faults` runs these tests again with the kernels of other processors. HTTP and the Open Inference
Protocol are tested in tests/e2e/test_serve_command.py, with the same photos.

Each way is a function that returns the probabilities of every picture by its key, in the order of the classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from numpy.typing import NDArray

from jobs.ingest import ingest, plan_ingest
from jobs.predict import plan_predict, predict_dataset
from library import storage
from library.bundle.bundle import Bundle
from library.bundle.description import load_record
from library.dataset.manifest import load_manifest
from library.runtimes.parity import TOLERANCE
from library.work.evaluate_shard import ShardScorer
from tests.bundles import PROBABILITY_TOLERANCE, make_bundle, make_pixel_bundle, pixels_of
from tests.datasets import rows, write_cats_and_dogs

Answers = Mapping[str, NDArray[np.float32]]
PredictAll = Callable[[str, str, Path], Answers]


@pytest.fixture(scope="module")
def real_photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """80 real photos or more as a dataset."""
    folder = tmp_path_factory.mktemp("parity")
    ingest(plan_ingest(str(write_cats_and_dogs(folder / "pictures", each=40)), str(folder / "data"), shard_mb=1))
    return str(folder / "data")


@pytest.fixture(scope="module")
def bundle(real_photos: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    classes = tuple(load_manifest(real_photos).tally.classes)
    return make_bundle(tmp_path_factory.mktemp("bundles") / "resnet18", 7, classes, model="resnet18", size=48)


@pytest.fixture(scope="module")
def expected(bundle: str, real_photos: str) -> Answers:
    """The bundle's own answers, for one picture at a time."""
    loaded = Bundle.load(bundle, "cpu")
    return {
        row["key"]: loaded.probabilities([loaded.prepare(row["image"]["bytes"])])[0]
        for row in rows(real_photos).to_pylist()
    }


def evaluated(bundle: str, dataset: str, _: Path) -> Answers:
    """Evaluates like `striate evaluate`, in batches, with three decoding threads."""
    scorer = ShardScorer([Bundle.load(bundle, "cpu")], threads=3)
    outcomes = [
        judged[0].outcomes
        for shard in load_manifest(dataset).shards
        for _, judged in scorer.judged(storage.join(dataset, shard.name))
    ]
    return {key: row for one in outcomes for key, row in zip(one.keys, one.probabilities, strict=True)}


def predicted_by_pytorch(bundle: str, dataset: str, folder: Path) -> Answers:
    """Predicts like `striate predict --runtime eager`, with one worker of one thread."""
    return _predicted(bundle, dataset, folder, "eager")


def predicted_by_onnx_runtime(bundle: str, dataset: str, folder: Path) -> Answers:
    """Predicts like `striate predict` on a CPU."""
    return _predicted(bundle, dataset, folder, None)


def _predicted(bundle: str, dataset: str, folder: Path, runtime: str | None) -> Answers:
    classes = load_record(bundle).classes
    plan = plan_predict(bundle, dataset, str(folder / "scored"), top_k=len(classes), runtime=runtime)
    predict_dataset(plan, workers="1", gpu=False)
    answers: dict[str, NDArray[np.float32]] = {}
    for row in rows(folder / "scored").to_pylist():
        shares = dict(zip(row["top_classes"], row["top_probabilities"], strict=True))
        answers[row["key"]] = np.array([shares[name] for name in classes], np.float32)
    return answers


@pytest.mark.parametrize(
    ("predict_all", "tolerance"),
    [
        (evaluated, PROBABILITY_TOLERANCE),
        (predicted_by_pytorch, PROBABILITY_TOLERANCE),
        (predicted_by_onnx_runtime, TOLERANCE),
    ],
)
def test_the_pixels_that_reach_the_network_are_the_same_bits(
    predict_all: PredictAll, tolerance: float, real_photos: str, tmp_path: Path
) -> None:
    classes = tuple(load_manifest(real_photos).tally.classes)
    bundle = make_pixel_bundle(tmp_path / "pixels", classes)
    loaded = Bundle.load(bundle, "cpu")
    prepare = loaded.prepare
    pictures = {row["key"]: row["image"]["bytes"] for row in rows(real_photos).to_pylist()}
    answers = predict_all(bundle, real_photos, tmp_path)
    assert answers.keys() == pictures.keys()
    assert len(answers) >= 80
    prepared = {key: prepare(pictures[key]) for key in answers}
    assert [key for key, row in answers.items() if not np.array_equal(pixels_of(row), prepared[key])] == []
    expected = loaded.probabilities(list(prepared.values()))
    np.testing.assert_allclose(list(answers.values()), expected, rtol=0, atol=tolerance)
    assert len({pixels_of(row).tobytes() for row in answers.values()}) > len(answers) / 2, "the pictures must differ"


@pytest.mark.parametrize(
    ("predict_all", "tolerance"),
    [
        (evaluated, PROBABILITY_TOLERANCE),
        (predicted_by_pytorch, PROBABILITY_TOLERANCE),
        (predicted_by_onnx_runtime, TOLERANCE),
    ],
)
def test_the_probabilities_of_convolutions_are_those_of_the_bundle(
    predict_all: PredictAll, tolerance: float, bundle: str, expected: Answers, real_photos: str, tmp_path: Path
) -> None:
    answers = predict_all(bundle, real_photos, tmp_path)
    assert answers.keys() == expected.keys()
    np.testing.assert_allclose([answers[key] for key in expected], list(expected.values()), rtol=0, atol=tolerance)
    # If all pictures got one answer, the test would prove nothing.
    assert len({row.tobytes() for row in expected.values()}) > len(expected) / 2


def test_workers_use_the_kernels_that_the_environment_names() -> None:
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")

    @ray.remote
    def in_worker() -> tuple[str, list[str | None]]:
        import torch

        return torch.backends.cpu.get_cpu_capability(), [os.environ.get(name) for name in names]

    assert ray.get(in_worker.remote()) == (
        torch.backends.cpu.get_cpu_capability(),
        [os.environ.get(name) for name in names],
    )
