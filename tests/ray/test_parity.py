"""One picture, one answer: every way to ask a bundle gives the same probabilities, bit for bit, on a CPU.

HTTP and the Open Inference Protocol are asked in tests/e2e/test_serve_command.py, with the same photos.

Each way is a function that gives, for the key of every picture, its probabilities in the order of the classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from jobs.ingest import ingest, plan_ingest
from jobs.predict_dataset import plan_predict, predict_dataset
from library import storage
from library.bundle import Bundle, Prepared
from library.bundle_record import load_record
from library.manifest import load_manifest
from library.runtimes import open_runtime
from library.scoring import ShardScorer
from tests.bundles import make_bundle
from tests.datasets import rows, write_cats_and_dogs

Answers = Mapping[str, NDArray[np.float32]]

_MODELS = {"resnet9": ("resnet9(width=8)", 32), "resnet18": ("resnet18", 48)}


@pytest.fixture(scope="module")
def real_photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """200 real photos or more as a dataset."""
    folder = tmp_path_factory.mktemp("parity")
    ingest(plan_ingest(str(write_cats_and_dogs(folder / "pictures")), str(folder / "data"), shard_mb=1))
    return str(folder / "data")


@pytest.fixture(scope="module", params=list(_MODELS))
def bundle(request: pytest.FixtureRequest, real_photos: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    model, size = _MODELS[request.param]
    classes = tuple(load_manifest(real_photos).tally.classes)
    return make_bundle(tmp_path_factory.mktemp("bundles") / request.param, 7, classes, model=model, size=size)


@pytest.fixture(scope="module")
def wanted(bundle: str, real_photos: str) -> Answers:
    """What the bundle itself says, asked for one picture after another."""
    loaded = Bundle.load(bundle, "cpu")
    return one_by_one(loaded, loaded.probabilities, real_photos)


def one_by_one(loaded: Bundle, ask: Callable[[Sequence[Prepared]], NDArray[np.float32]], dataset: str) -> Answers:
    return {row["key"]: ask([loaded.prepare(row["image"]["bytes"])])[0] for row in rows(dataset).to_pylist()}


def evaluated(bundle: str, dataset: str, _: Path) -> Answers:
    """As `striate evaluate` judges, in batches, decoded in three threads."""
    scorer = ShardScorer([Bundle.load(bundle, "cpu")], threads=3)
    scores = [
        scorer.score(storage.join(dataset, shard.name), lambda _: None)[0] for shard in load_manifest(dataset).shards
    ]
    return {key: row for one in scores for key, row in zip(one.keys, np.concatenate(one.probabilities), strict=True)}


def batch_predicted(bundle: str, dataset: str, folder: Path, runtime: str | None = "eager") -> Answers:
    """As `striate predict` writes, by two workers of one thread each."""
    classes = load_record(bundle).classes
    plan = plan_predict(bundle, dataset, str(folder / "scored"), top_k=len(classes), runtime=runtime)
    predict_dataset(plan, workers="2", gpu=False)
    answers: dict[str, NDArray[np.float32]] = {}
    for row in rows(folder / "scored").to_pylist():
        said = dict(zip(row["top_classes"], row["top_probabilities"], strict=True))
        answers[row["key"]] = np.array([said[name] for name in classes], np.float32)
    return answers


@pytest.mark.parametrize("way", [evaluated, batch_predicted])
def test_the_probabilities_are_those_of_the_bundle(
    way: Callable[[str, str, Path], Answers], bundle: str, wanted: Answers, real_photos: str, tmp_path: Path
) -> None:
    got = way(bundle, real_photos, tmp_path)
    if way is batch_predicted:
        # Workers of one thread: oneDNN may share a large convolution out in another way than for the threads here.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        wanted = one_by_one(loaded := Bundle.load(bundle, "cpu"), loaded.probabilities, real_photos)
        torch.set_num_threads(threads)
    assert got.keys() == wanted.keys()
    assert len(wanted) >= 200
    assert [key for key, row in wanted.items() if not np.array_equal(got[key], row)] == []
    # Pictures that all get one answer would show nothing.
    assert len({row.tobytes() for row in wanted.values()}) > len(wanted) / 2


def test_batch_prediction_on_a_cpu_gives_the_bits_of_onnx_runtime_asked_for_one_picture_after_another(
    bundle: str, wanted: Answers, real_photos: str, tmp_path: Path
) -> None:
    loaded = Bundle.load(bundle, "cpu")
    by_onnx = one_by_one(loaded, open_runtime(loaded, "onnx", threads=1).probabilities, real_photos)
    got = batch_predicted(bundle, real_photos, tmp_path, runtime=None)
    assert [key for key, row in by_onnx.items() if not np.array_equal(got[key], row)] == []
    np.testing.assert_allclose([by_onnx[key] for key in wanted], list(wanted.values()), rtol=0, atol=1e-4)
