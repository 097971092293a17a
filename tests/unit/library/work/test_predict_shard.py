"""One shard of `striate predict`, without Ray."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.predict import plan_predict
from library.bundle.bundle import Bundle
from library.bundle.ensemble import ensemble
from library.dataset.destination import claim, finish
from library.dataset.manifest import Manifest, ShardReport, Tally, load_manifest
from library.dataset.shards import ShardWriter
from library.dataset.task import ShardTask
from library.dataset.totals import Totals
from library.errors import StriateError, UsageError
from library.imaging import codec
from library.runtimes.without_torch import exported_graph
from library.work.filter_shard import FilterJob
from library.work.predict_shard import PredictJob
from tests import ROOT
from tests.bundles import make_bundle, near
from tests.picture_examples import encoded, ingest, npy_array, scene, table, write_files

FILES = {
    "cat/a.jpg": encoded("jpeg", 40, 50),
    "cat/b.png": encoded("png", 40, 50, channels=1),
    "dog/c.npy": encoded("npy", 20, 30, 3, "uint16"),
    "dog/d.jpg": encoded("jpeg", 40, 50)[:-300],
    "dog/small.png": encoded("png", 9, 9),
    "nan.npy": npy_array(np.full((20, 20, 3), np.nan, np.float32)),
    "unknown.png": encoded("png", 41, 50),
}


def classifier(folder: Path, seed: int = 0) -> str:
    """A bundle that drops pictures smaller than 10 pixels."""
    return make_bundle(folder, seed, ("cat", "dog", "eel"), "min_size(10) | rgb")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return classifier(tmp_path_factory.mktemp("bundles") / "one")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("predict")
    ingest(write_files(folder / "raw", FILES), folder / "made")
    return str(folder / "made")


def predicted(bundle: str, source: str, destination: Path, threads: int = 1, **options: Any) -> Manifest:
    """Runs the whole job without Ray."""
    options.setdefault("runtime", "eager")
    plan = plan_predict(bundle, source, str(destination), gpu=False, **options)
    work = dataclasses.replace(plan.work, threads=threads)
    claim(plan.destination, plan.jobs, overwrite=False)
    tallies: list[Tally] = []
    manifest = finish(plan.destination, plan.jobs, Totals.of(work.run(task, tallies.append) for task in plan.tasks))
    assert Tally.total(tallies) == manifest.tally
    return manifest


def work_on(rows: Any, destination: Path, bundle: str, **options: Any) -> ShardReport:
    """Predicts one shard that holds `rows`."""
    with ShardWriter(str(destination / "source"), "part-000000.parquet", rows.schema) as writer:
        writer.add(rows)
    job = PredictJob(str(destination / "source"), bundle, Bundle.load(bundle, "cpu").id, **options)
    return job.run(ShardTask(str(destination), "part-000000", "digest", rows.num_rows), lambda _: None)


def rows_of(dataset: Path | str, folder: str = "") -> dict[str, dict[str, Any]]:
    """Returns every row of a dataset, or of its rejects, by key."""
    rows = [
        row
        for path in sorted((Path(dataset) / folder).glob("part-*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row for row in rows}


def prediction_of(row: dict[str, Any]) -> list[tuple[str, float]]:
    """Returns the ranked classes of a row, and removes their columns from it."""
    ranked = list(zip(row.pop("top_classes"), row.pop("top_probabilities"), strict=True))
    assert (row.pop("predicted"), row.pop("score")) == ranked[0]
    return ranked


def assert_same_rows(first: Path, second: Path) -> None:
    """Compares rows except for the last digits of probabilities, which depend on batch and number of threads."""
    one, two = rows_of(first), rows_of(second)
    assert list(one) == list(two)
    for key, row in one.items():
        assert prediction_of(row) == near(prediction_of(two[key]))
    assert one == two


def test_predictions_equal_those_of_the_bundle_and_columns_are_kept(bundle: str, source: str, tmp_path: Path) -> None:
    manifest = predicted(bundle, source, tmp_path, top_k=2)
    before, after = rows_of(source), rows_of(tmp_path)
    assert set(after) == {"cat/a.jpg", "cat/b.png", "dog/c.npy", "unknown.png"}
    loaded = Bundle.load(bundle, "cpu")
    for key, row in after.items():
        assert prediction_of(row) == near(loaded.predict(FILES[key], top_k=2).classes)
        assert row == before[key]
    assert manifest.job.kind == "predict"
    assert manifest.job.options["bundle_id"] == loaded.id
    schema = pq.read_schema(tmp_path / "part-000000.parquet")
    assert [str(schema.field(name).type) for name in ("predicted", "score")] == ["string", "float"]
    assert loaded.id.encode() in schema.metadata[b"striate.predicted_by"]
    assert b"huggingface" in schema.metadata


def test_every_picture_is_counted_and_labels_are_ignored(bundle: str, source: str, tmp_path: Path) -> None:
    manifest = predicted(bundle, source, tmp_path)
    assert manifest.tally.balanced
    assert manifest.tally.rows_in == len(FILES)
    assert manifest.tally.dropped == {"below_min_size": 1}
    assert manifest.tally.rejected == {"truncated": 1, "not_finite": 1}
    assert manifest.tally.classes == {"cat": 2, "dog": 1}
    assert manifest.tally.image_bytes_in == sum(map(len, FILES.values()))
    rejects = rows_of(tmp_path, "_rejects")
    assert {key: row["reason"] for key, row in rejects.items()} == {"dog/d.jpg": "truncated", "nan.npy": "not_finite"}
    assert all(row["image"]["bytes"] == FILES[key] for key, row in rejects.items())
    assert "predicted" not in rejects["nan.npy"]


def test_features_are_the_input_of_the_head_and_change_no_probability(bundle: str, source: str, tmp_path: Path) -> None:
    predicted(bundle, source, tmp_path / "plain")
    predicted(bundle, source, tmp_path / "more", features=True)
    plain, more = rows_of(tmp_path / "plain"), rows_of(tmp_path / "more")
    loaded = Bundle.load(bundle, "cpu")
    for key, row in more.items():
        expected, _ = loaded.features([loaded.prepare(FILES[key])])
        np.testing.assert_allclose(row.pop("features"), expected[0], rtol=0, atol=1e-5)
        assert prediction_of(row) == near(prediction_of(plain[key]))
        assert row == plain[key]


def test_pictures_decoded_ahead_in_threads_give_the_same_rows(bundle: str, tmp_path: Path) -> None:
    pictures = [codec.encode(np.roll(scene(), number, 0), codec.Encoding("png"))[0] for number in range(150)]
    rows = table([*pictures, b"no picture", *pictures])
    one = work_on(rows, tmp_path / "one", bundle)
    four = work_on(rows, tmp_path / "four", bundle, threads=4)
    assert_same_rows(tmp_path / "one", tmp_path / "four")
    assert one.rejects == four.rejects
    assert (one.tally.rows_out, one.tally.rejected) == (300, {"not_an_image": 1})
    assert set(one.seconds) == {"load", "read", "prepare", "infer", "write"}
    keys = pq.read_table(tmp_path / "four" / "part-000000.parquet")["key"].to_pylist()
    assert keys == [key for key in rows["key"].to_pylist() if key != "150"]


def test_other_columns_pass_and_a_picture_without_bytes_is_rejected(bundle: str, tmp_path: Path) -> None:
    rows = table([encoded("png"), None], ["x", None], box=[[1, 2], None], weight=[0.5, 2.0])
    report = work_on(rows, tmp_path, bundle)
    assert report.tally.rejected == {"empty": 1}
    (row,) = rows_of(tmp_path).values()
    assert (row["box"], row["weight"], row["label"]) == ([1, 2], 0.5, "x")
    (reject,) = rows_of(tmp_path, "_rejects").values()
    assert (reject["weight"], reject["image"]["bytes"]) == (2.0, None)


def test_a_shard_without_kept_pictures_has_the_same_columns(bundle: str, tmp_path: Path) -> None:
    report = work_on(table([b"no picture"]), tmp_path, bundle, features=True)
    assert report.tally.rows_out == 0
    names = pq.read_schema(tmp_path / "part-000000.parquet").names
    assert names[-5:] == ["predicted", "score", "top_classes", "top_probabilities", "features"]


def test_a_new_bundle_replaces_the_predictions_of_an_earlier_one(bundle: str, source: str, tmp_path: Path) -> None:
    better = classifier(tmp_path / "better", seed=5)
    predicted(bundle, source, tmp_path / "first", features=True)
    manifest = predicted(better, str(tmp_path / "first"), tmp_path / "second")
    predicted(better, source, tmp_path / "direct")
    assert_same_rows(tmp_path / "second", tmp_path / "direct")
    assert [job.kind for job in manifest.jobs] == ["ingest", "predict", "predict"]


def test_columns_that_predict_did_not_write_are_never_replaced(bundle: str, tmp_path: Path) -> None:
    rows = table([encoded("png")], score=[0.5])
    with pytest.raises(StriateError, match=r"a column 'score' that `striate predict` did not write"):
        work_on(rows, tmp_path / "a", bundle)
    report = work_on(table([encoded("png")], features=["mine"]), tmp_path / "b", bundle)
    assert report.tally.rows_out == 1
    again = PredictJob(str(tmp_path / "b"), bundle, Bundle.load(bundle, "cpu").id)
    again.run(ShardTask(str(tmp_path / "c"), "part-000000", "digest", 1), lambda _: None)
    (row,) = rows_of(tmp_path / "c").values()
    assert row["features"] == "mine"


def test_pictures_can_be_selected_by_score_and_keep_their_bytes(bundle: str, source: str, tmp_path: Path) -> None:
    predicted(bundle, source, tmp_path / "scored")
    scored = rows_of(tmp_path / "scored")
    least = sorted(
        dict(zip(row["top_classes"], row["top_probabilities"], strict=True))["cat"] for row in scored.values()
    )
    job = FilterJob(str(tmp_path / "scored"), f'score_at_least("cat", {least[2]})')
    report = job.run(ShardTask(str(tmp_path / "cats"), "part-000000", "digest", 4), lambda _: None)
    assert report.tally.dropped == {"score_below": 2}
    selected = rows_of(tmp_path / "cats")
    assert len(selected) == 2
    assert all(scored[key] == row for key, row in selected.items())


def test_selecting_by_score_without_predictions_says_what_to_run(source: str, tmp_path: Path) -> None:
    job = FilterJob(source, 'score_at_least("cat", 0.9)')
    with pytest.raises(StriateError, match=r"no column 'top_classes'; run `striate predict BUNDLE DATASET DEST` first"):
        job.run(ShardTask(str(tmp_path), "part-000000", "digest", 7), lambda _: None)


def test_with_a_limit_only_the_first_pictures_are_predicted(bundle: str, source: str, tmp_path: Path) -> None:
    assert predicted(bundle, source, tmp_path, limit=2).tally.rows_in == 2


def test_a_worker_with_an_exported_graph_imports_no_torch(bundle: str, tmp_path: Path) -> None:
    rows = table([codec.encode(np.roll(scene(), number, 0), codec.Encoding("png"))[0] for number in range(70)])
    work_on(rows, tmp_path / "here", bundle)  # exports the graph and keeps it
    program = f"""
import sys
from library.dataset.task import ShardTask
from library.work.predict_shard import PredictJob
job = PredictJob({str(tmp_path / "here" / "source")!r}, {bundle!r}, {Bundle.load(bundle, "cpu").id!r})
job.run(ShardTask({str(tmp_path / "alone")!r}, "part-000000", "digest", 70), lambda _: None)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n"
    part = "part-000000.parquet"
    assert (tmp_path / "alone" / part).read_bytes() == (tmp_path / "here" / part).read_bytes()


def test_only_the_graph_of_the_bundle_itself_is_used(bundle: str, tmp_path: Path) -> None:
    graph = exported_graph(bundle, Bundle.load(bundle, "cpu").id)
    work_on(table([encoded("png")]), tmp_path / "one", bundle, graph=lambda: graph)
    assert len(rows_of(tmp_path / "one")) == 1
    with pytest.raises(StriateError, match="the exported graph belongs to another bundle; the runtime eager takes"):
        work_on(table([encoded("png")]), tmp_path / "three", classifier(tmp_path / "b", 3), graph=lambda: graph)


def test_an_ensemble_predicts_but_has_no_features(bundle: str, source: str, tmp_path: Path) -> None:
    other = classifier(tmp_path / "other", seed=1)
    both = str(tmp_path / "both")
    ensemble([Bundle.load(bundle, "cpu"), Bundle.load(other, "cpu")]).save(both)
    predicted(both, source, tmp_path / "made")
    expected = Bundle.load(both, "cpu").predict(FILES["cat/a.jpg"])
    assert prediction_of(rows_of(tmp_path / "made")["cat/a.jpg"]) == near(expected.classes)
    with pytest.raises(UsageError, match="is an ensemble, which has no features"):
        plan_predict(both, source, str(tmp_path / "x"), features=True)


def test_a_bundle_that_is_replaced_during_the_job_fails_the_job(source: str, tmp_path: Path) -> None:
    uri = classifier(tmp_path / "bundle")
    plan = plan_predict(uri, source, str(tmp_path / "out"))
    classifier(tmp_path / "bundle", seed=9)
    with pytest.raises(StriateError, match=r"bundle was replaced while this job ran: it is bundle [0-9a-f]{12} now"):
        plan.work.run(plan.tasks[0], lambda _: None)
    assert not list((tmp_path / "out").glob("_reports/*"))


def test_the_work_digest_distinguishes_what_decides_the_output(source: str) -> None:
    task = ShardTask("x", "part-000000", "digest", 1)
    jobs = [
        PredictJob(source, "b", bundle_id, top_k, features, runtime, device)
        for bundle_id in ("1", "2")
        for top_k in (1, 5)
        for features in (False, True)
        for runtime in ("eager", "onnx")
        for device in ("cpu", "cuda")
    ]
    assert len({job.work_digest(task) for job in jobs}) == len(jobs)
    by_default = dataclasses.replace(jobs[0], runtime=None)
    assert by_default.work_digest(task) == dataclasses.replace(jobs[0], runtime="onnx").work_digest(task)
    assert by_default.chosen_runtime == "onnx"
    assert dataclasses.replace(by_default, device="cuda").chosen_runtime == "eager"
    assert dataclasses.replace(by_default, features=True).chosen_runtime == "eager"
    moved = dataclasses.replace(jobs[0], source="elsewhere", bundle="s3://b/b", threads=8)
    assert moved.work_digest(task) == jobs[0].work_digest(task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "--top-k 0: must be at least 1"),
        ({"limit": 0}, "--limit 0: must be at least 1"),
        ({"runtime": "auto"}, "--runtime auto may choose different runtimes on two machines"),
        ({"runtime": "tpu"}, "--runtime tpu: choose eager, compile or onnx"),
        ({"runtime": "onnx", "features": True}, "--features needs --runtime eager: onnx returns probabilities only"),
    ],
)
def test_an_impossible_prediction_is_refused_before_writing(
    bundle: str, source: str, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        plan_predict(bundle, source, str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_a_wrong_bundle_dataset_or_destination_is_refused(bundle: str, source: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a bundle"):
        plan_predict(source, source, str(tmp_path / "out"))
    with pytest.raises(UsageError, match="is not a dataset"):
        plan_predict(bundle, bundle, str(tmp_path / "out"))
    with pytest.raises(UsageError, match="lies in the source"):
        plan_predict(bundle, source, f"{source}/out")
    predicted(bundle, source, tmp_path / "out")
    with pytest.raises(UsageError, match=r"holds the output of another job(.|\n)*top_k=5(.|\n)*top_k=1"):
        plan_predict(bundle, source, str(tmp_path / "out"), top_k=1)
    again = plan_predict(bundle, source, str(tmp_path / "out"), runtime="eager", gpu=False)
    assert again.described()["shards_to_do"] == 0
    assert load_manifest(str(tmp_path / "out")).complete
