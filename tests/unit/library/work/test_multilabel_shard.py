"""One shard of `striate evaluate` with a bundle that gives a picture any number of classes, without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.evaluate import plan_evaluate
from library.bundle.bundle import Bundle
from library.bundle.ensemble import ensemble
from library.dataset.task import ShardTask
from library.errors import UsageError
from library.evaluation.sums import LabelScores
from library.imaging import codec
from library.work.evaluate_shard import EvaluateJob
from library.work.multilabel_shard import LabelScorer
from tests.bundles import make_bundle
from tests.picture_examples import encoded, ingest, npy_array, write_files
from tests.unit.library.bundle.test_multilabel_bundle import CLASSES, make_multilabel

TAGS = {
    "a.png": ["cat", "dog"],
    "b.png": [],
    "c.png": ["eel", "heron"],
    "d.png": None,
    "e.jpg": ["cat"],
    "f.png": ["heron", "dog", "dog"],
    "nan.npy": ["cat"],
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pictures with the column `tags`; one has no list, one is cut off and one has no finite pixel."""
    folder = tmp_path_factory.mktemp("tagged")
    files = {name: encoded("png", 30 + number, 40) for number, name in enumerate(TAGS)}
    files |= {"e.jpg": encoded("jpeg", 400, 300)[:-300], "nan.npy": npy_array(np.full((16, 16, 3), np.nan, np.float32))}
    lines = [{"file_name": name, **({} if tags is None else {"tags": tags})} for name, tags in TAGS.items()]
    files["metadata.jsonl"] = "\n".join(map(json.dumps, lines)).encode()
    ingest(write_files(folder / "raw", files), folder / "made")
    return str(folder / "made")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_multilabel(tmp_path_factory.mktemp("labels") / "bundle")


def test_a_shard_keeps_every_probability_with_its_classes(dataset: str, bundle: str) -> None:
    loaded = Bundle.load(bundle, "cpu")
    job = EvaluateJob((bundle,), (loaded.id,), labels="tags", threshold=0.5, examples=True)
    task = ShardTask(dataset, "part-000000", "digest", len(TAGS))
    report = job.run(task, lambda _: None)
    assert report.label_scores is not None
    scores = report.label_scores
    assert (scores.judged, scores.dropped, scores.unknown) == (4, {"no_label": 1}, {"heron": 2})
    assert scores.rejected == {"truncated": 1, "not_finite": 1}
    assert (report.tally.rows_in, report.tally.rows_out, report.tally.balanced) == (len(TAGS), 4, True)
    truth, probabilities = scores.arrays(len(CLASSES))
    judged = {tuple(row): tuple(name for name in CLASSES if name in (tags or ())) for row, tags in _expected(loaded)}
    found = {
        tuple(np.round(row, 4).tolist()): tuple(name for name, has in zip(CLASSES, one, strict=True) if has)
        for row, one in zip(probabilities, truth, strict=True)
    }
    assert found == judged
    assert {example.key for example in scores.examples} == {mistake.key for mistake in scores.mistakes}
    assert all(codec.decode(example.data).size for example in scores.examples)
    several = LabelScorer(loaded, "tags", 0.5, threads=3).score(f"{dataset}/part-000000.parquet", lambda _: None)
    assert several.scores == scores.model_copy(update={"examples": []})


def _expected(loaded: Bundle) -> list[tuple[Any, Any]]:
    names = [name for name, tags in TAGS.items() if tags is not None and name not in ("e.jpg", "nan.npy")]
    pictures = [loaded.prepare(encoded("png", 30 + list(TAGS).index(name), 40)) for name in names]
    rows = np.round(loaded.probabilities(pictures), 4).tolist()
    return [(row, TAGS[name]) for row, name in zip(rows, names, strict=True)]


def test_the_work_digest_depends_on_column_and_threshold() -> None:
    task = ShardTask("x", "part-000000", "digest", 1)
    options = [(None, None), ("tags", 0.5), ("tags", 0.4), ("names", 0.5)]
    jobs = [EvaluateJob(("b",), ("1",), labels=labels, threshold=threshold) for labels, threshold in options]
    assert len({job.work_digest(task) for job in jobs}) == len(jobs)


def test_the_column_is_that_of_the_recipe_also_in_an_ensemble(dataset: str, bundle: str, tmp_path: Path) -> None:
    recipe = "data: {train: out/train, labels: tags}\n"
    plain = Bundle.load(bundle, "cpu")
    record = plain.record.model_copy(update={"provenance": {"recipe": recipe}})
    Bundle.of_model(record, plain.model, "cpu").save(str(tmp_path / "trained"))
    members = [Bundle.load(str(tmp_path / "trained"), "cpu"), plain]
    ensemble(members).save(str(tmp_path / "both"))
    for name in ("trained", "both"):
        plan = plan_evaluate([str(tmp_path / name)], dataset)
        assert (plan.labels, plan.threshold) == ("tags", 0.5)
    with pytest.raises(UsageError, match="add --labels COLUMN"):
        plan_evaluate([bundle], dataset)


def test_options_that_do_not_suit_the_bundle_are_refused(dataset: str, bundle: str, tmp_path: Path) -> None:
    single = make_bundle(tmp_path / "single", 0, CLASSES)
    unsuited: list[dict[str, Any]] = [{"labels": "tags"}, {"threshold": 0.4}]
    for options in unsuited:
        with pytest.raises(UsageError, match=r"has no effect: .* gives a picture one class"):
            plan_evaluate([single], dataset, **options)
    with pytest.raises(UsageError, match="between 0 and 1"):
        plan_evaluate([bundle], dataset, labels="tags", threshold=1.5)
    with pytest.raises(UsageError, match=r"--labels: the column 'label' .* must hold a list of names.*\(tags\)"):
        plan_evaluate([bundle], dataset, labels="label")
    with pytest.raises(UsageError, match="evaluate each by itself"):
        plan_evaluate([bundle, single], dataset, labels="tags")
    of_top1: list[dict[str, Any]] = [{"robustness_pictures": 5}, {"without_leaks": [dataset]}]
    for options in of_top1:
        with pytest.raises(UsageError, match="measures top-1"):
            plan_evaluate([bundle], dataset, labels="tags", **options)


def test_a_shard_without_usable_pictures_has_no_rows() -> None:
    empty = LabelScores()
    empty.add(np.zeros(0, np.uint64), np.zeros((0, 3), np.bool_), np.zeros((0, 3), np.float32), [])
    assert (empty.judged, empty.rows) == (0, [])
