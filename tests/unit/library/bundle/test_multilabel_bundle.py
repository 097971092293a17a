"""Bundles that give a picture any number of classes, through every runtime, ensembles and `striate predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jobs.predict import plan_predict
from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord
from library.bundle.ensemble import ensemble
from library.dataset.destination import claim, finish
from library.dataset.totals import Totals
from library.errors import UsageError
from library.models.build import create
from library.runtimes.runtime import open_runtime
from tests.bundles import PROBABILITY_TOLERANCE, make_bundle
from tests.picture_examples import encoded, ingest, write_files

CLASSES = ("cat", "dog", "eel")
FILES = {f"{number}.png": encoded("png", 30 + number, 40) for number in range(6)}


def make_multilabel(folder: Path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    record = BundleRecord(
        model="lenet5(in_chans=3)",
        classes=CLASSES,
        multilabel=True,
        fit='resize([28, 28], mode="exact")',
        input_size=(28, 28),
        channels=3,
    )
    Bundle.of_model(record, create(record.model, num_classes=3), "cpu").save(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_multilabel(tmp_path_factory.mktemp("multilabel") / "one")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("multilabel-pictures")
    ingest(write_files(folder / "raw", FILES), folder / "made")
    return str(folder / "made")


@pytest.mark.parametrize("name", ["eager", "onnx"])
def test_each_class_has_a_probability_of_its_own(bundle: str, name: str) -> None:
    loaded = Bundle.load(bundle, "cpu")
    prepared = [loaded.prepare(data) for data in FILES.values()]
    runtime = open_runtime(loaded, name, threads=1, measure=False)
    with torch.no_grad():
        pictures: Any = torch.from_numpy(np.stack([np.asarray(one) for one in prepared])).permute(0, 3, 1, 2)
        expected = torch.sigmoid(loaded.model(pictures)).numpy()
    np.testing.assert_allclose(runtime.probabilities(prepared), expected, atol=PROBABILITY_TOLERANCE)
    assert loaded.predict(FILES["0.png"]).classes[0][1] == pytest.approx(float(expected[0].max()), abs=1e-5)


def test_an_ensemble_is_the_mean_and_of_one_kind_only(bundle: str, tmp_path: Path) -> None:
    members = [Bundle.load(bundle, "cpu"), Bundle.load(make_multilabel(tmp_path / "two", 1), "cpu")]
    both = ensemble(members)
    assert both.record.multilabel
    both.save(str(tmp_path / "both"))
    loaded = Bundle.load(str(tmp_path / "both"), "cpu")
    prepared = [loaded.prepare(data) for data in FILES.values()]
    expected = np.mean([member.probabilities([one[0] for one in prepared]) for member in members], axis=0)
    np.testing.assert_allclose(loaded.probabilities(prepared), expected, atol=PROBABILITY_TOLERANCE)
    graph = open_runtime(loaded, "onnx", threads=1, measure=False)
    np.testing.assert_allclose(graph.probabilities(prepared), expected, atol=PROBABILITY_TOLERANCE)
    single = Bundle.load(make_bundle(tmp_path / "single", 0, CLASSES), "cpu")
    with pytest.raises(UsageError, match="all any number of classes"):
        ensemble([members[0], single])


def predicted(bundle: str, source: str, destination: Path, **options: Any) -> list[dict[str, Any]]:
    plan = plan_predict(bundle, source, str(destination), runtime="eager", **options)
    claim(plan.destination, plan.jobs, overwrite=False)
    finish(plan.destination, plan.jobs, Totals.of(plan.work.run(task, lambda _: None) for task in plan.tasks))
    return pq.read_table(destination).to_pylist()


def test_predicted_labels_are_the_classes_above_the_threshold(bundle: str, source: str, tmp_path: Path) -> None:
    for number, threshold in enumerate((None, 0.2, 0.9)):
        options = {} if threshold is None else {"threshold": threshold}
        for row in predicted(bundle, source, tmp_path / str(number), top_k=3, **options):
            ranked = zip(row["top_classes"], row["top_probabilities"], strict=True)
            assert row["predicted_labels"] == [name for name, share in ranked if share >= (threshold or 0.5)]
    again = plan_predict(bundle, str(tmp_path / "0"), str(tmp_path / "again"))
    assert again.jobs[-1].options["threshold"] == 0.5


def test_what_needs_one_class_a_picture_is_refused(bundle: str, source: str, tmp_path: Path) -> None:
    single = make_bundle(tmp_path / "single", 0, CLASSES)
    with pytest.raises(UsageError, match="--threshold has no effect"):
        plan_predict(single, source, str(tmp_path / "out"), threshold=0.3)
    with pytest.raises(UsageError, match="between 0 and 1"):
        plan_predict(bundle, source, str(tmp_path / "out"), threshold=1.5)
    assert "predicted_labels" not in predicted(single, source, tmp_path / "single-out")[0]
