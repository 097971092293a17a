"""Training through Ray Train: its bundles, refusals, workers, streams, and recovery from kills."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from safetensors.numpy import load_file

from cluster.connection.session import Session
from jobs.ingest import ingest, plan_ingest
from jobs.train.data import put_data
from jobs.train.driver import train
from jobs.train.plan import plan_train
from jobs.train.run_folder import claim
from library import storage
from library.bundle.bundle import Bundle
from library.bundle.description import Prediction, load_record, weights_file
from library.errors import BadPicture, StriateError, UsageError
from library.models.build import create
from library.recipe import Recipe
from library.training.in_memory import decode_rows
from library.training.progress import read_metrics
from tests.bundles import near
from tests.conftest import S3Server
from tests.datasets import rows, write_digits
from tests.prometheus import exported_once, total

# On a busy machine a training of seconds takes minutes to start.
_BOUND_S = 400

RECIPE: dict[str, Any] = {
    "input": {"steps": 'grayscale | resize([28, 28], mode="exact")'},
    "model": "lenet5",
    "optimizer": {"name": "sgd", "lr": 0.05},
    "schedule": {"name": "constant"},
    "batch_size": 32,
    "epochs": 4,
}


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 real digits, split into train and val, in several shards; a folder and a class have letters of all kinds."""
    folder = tmp_path_factory.mktemp("digits")
    source = write_digits(folder)
    (source / "9").rename(source / "九 ñ")
    ingest(plan_ingest(str(source), str(folder / "Zahlen ü 犬"), split="train=0.8,val=0.2", shard_mb=0.02))
    return folder / "Zahlen ü 犬"


@pytest.fixture(scope="module")
def in_bucket(digits: Path, s3_server: S3Server) -> str:
    """The digits in a bucket, not split."""
    s3_server.make_bucket("digits")
    ingest(plan_ingest(str(digits.parent / "digits"), "s3://digits/data", shard_mb=0.02))
    return "s3://digits/data"


def recipe(digits: Path, **fields: Any) -> Recipe:
    data = {"train": str(digits / "train"), "val": str(digits / "val"), **fields.pop("data", {})}
    return Recipe.parse(json.dumps({**RECIPE, "data": data, **fields}))


def losses(out: Path) -> list[float]:
    return [line["train_loss"] for line in read_metrics(str(out / "logs"))]


@pytest.fixture(scope="session")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle trained undisturbed, by one worker."""
    out = tmp_path_factory.mktemp("trained") / "Größe 犬"
    train(plan_train(recipe(digits), str(out)), workers="1")
    return out


def test_a_training_ends_in_a_bundle_that_has_learned(trained: Path, digits: Path) -> None:
    bundle = Bundle.load(str(trained))
    assert bundle.classes == (*"012345678", "九 ñ")
    table = rows(digits / "val")
    predicted = bundle.predict_many([image["bytes"] for image in table["image"].to_pylist()])
    right = [
        isinstance(one, Prediction) and one.best == label
        for one, label in zip(predicted, table["label"].to_pylist(), strict=True)
    ]
    assert np.mean(right) == pytest.approx(bundle.record.metrics["val_top1"])
    assert np.mean(right) > 0.6
    assert losses(trained)[-1] < losses(trained)[0] / 2
    assert bundle.record.provenance["dataset_digests"].keys() == {"train", "val"}
    assert any(path.name.startswith("events.out.tfevents") for path in (trained / "logs").iterdir())


def test_a_bundle_reports_what_is_wrong_with_each_picture(trained: Path, digits: Path) -> None:
    good = rows(digits / "val")["image"][0].as_py()["bytes"]
    bundle = Bundle.load(str(trained))
    first, second = bundle.predict_many([b"no picture", good])
    assert isinstance(first, BadPicture)
    assert isinstance(second, Prediction)
    assert list(second.classes) == near(bundle.predict(good).classes)
    assert sum(share for _, share in bundle.predict(good, top_k=10).classes) == pytest.approx(1, abs=1e-5)


def test_a_training_exports_its_pictures_and_checkpoints_to_prometheus(trained: Path, digits: Path) -> None:
    pictures, checkpoints = "ray_striate_train_pictures_total", "ray_striate_train_checkpoints_total"
    samples = exported_once({"run_id": storage.uri_id(str(trained))}, lambda samples: total(samples, checkpoints) >= 4)
    assert total(samples, checkpoints) == 4  # one an epoch
    assert total(samples, pictures) == 4 * len(rows(digits / "train"))
    assert total(samples, "ray_striate_train_data_wait_seconds_total", rank="0") > 0
    assert total(samples, "ray_striate_train_seconds_total", rank="0") > 0


def test_the_same_training_again_does_nothing_and_another_is_refused(trained: Path, digits: Path) -> None:
    before = (trained / "bundle.json").read_bytes()
    assert train(plan_train(recipe(digits), str(trained))).resumed
    assert (trained / "bundle.json").read_bytes() == before
    with pytest.raises(UsageError, match="another recipe"):
        plan_train(recipe(digits, seed=1), str(trained))


def test_overwriting_removes_only_files_of_a_training(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan_train(recipe(digits), str(out))
    assert not out.exists()
    (out / "logs").mkdir(parents=True)
    (out / "train.json").write_text(json.dumps({"recipe": "another", "datasets": {}}))
    (out / "logs" / "metrics.jsonl").write_text("old")
    (out / "thesis.txt").write_text("mine")
    plan = plan_train(recipe(digits), str(out), overwrite=True)
    assert (out / "logs" / "metrics.jsonl").exists()
    claim(plan.out, plan.record, overwrite=True)
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == ["thesis.txt", "train.json"]
    assert not plan_train(recipe(digits), str(out)).finished
    for folder in (digits, digits / "train" / "bundle"):
        with pytest.raises(UsageError, match="contain one another"):
            plan_train(recipe(digits), str(folder), overwrite=True)


def test_two_workers_learn_what_one_learns(
    trained: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "two"
    train(plan_train(recipe(digits), str(out)), workers="2")
    assert re.findall(r"^epoch (\d): train loss", capsys.readouterr().err, re.MULTILINE) == ["1", "2", "3", "4"]
    assert losses(out) == pytest.approx(losses(trained), rel=1e-3)
    one, two = (load_file(path / "model.safetensors") for path in (trained, out))
    for name in one:
        np.testing.assert_allclose(two[name], one[name], atol=2e-3, err_msg=name)


def test_two_workers_stream_a_bucket_larger_than_memory_into_a_bucket(
    digits: Path, in_bucket: str, bucket: str
) -> None:
    data = {"train": in_bucket, "val": None, "val_fraction": 0.2, "max_resident_mb": 0}
    steps = {"steps": RECIPE["input"]["steps"] + " | sample(0.5)"}
    # A batch of 33 leaves one worker more than the other.
    streamed = recipe(digits, data=data, epochs=2, batch_size=33, augment="rotate(5)", augment_on="device", input=steps)
    out = f"{bucket}/lenet"
    plan = plan_train(streamed, out)
    assert not plan.in_memory
    result = train(plan, workers="2")
    assert Bundle.load(out).id == result.bundle.id
    assert result.bundle.provenance["augmented_on"] == "device (as augment_on: device says)"
    first, second = read_metrics(f"{out}/logs")
    assert (first["epoch"], second["epoch"]) == (1, 2)
    parts = [(shard, 0, count) for shard, count in enumerate(plan.train.counts.tolist())]
    unusable = sum(decode_rows(plan.train, part, plan.inputs, fitted=False).rejected.total() for part in parts)
    not_taken = len(plan.train) % 33
    for line in (first, second):  # of this epoch only, over both workers
        assert unusable - not_taken <= line["rejected"] <= unusable
    assert second["train_loss"] < first["train_loss"]
    assert train(plan_train(streamed, out)).resumed


def test_pictures_of_a_bucket_that_fit_encoded_are_fetched_once(digits: Path, in_bucket: str) -> None:
    data = {"train": in_bucket, "val": None, "val_fraction": 0.2, "max_resident_mb": 1}
    large = {"steps": 'grayscale | resize([80, 80], mode="exact")', "size": 28}
    plan = plan_train(recipe(digits, data=data, input=large, augment="rotate(5)"), "s3://digits/lenet")
    assert not plan.in_memory
    data = put_data(plan, Session(None, 2, 1, node_cpus=(2,)))
    assert data.val is not None
    assert plan.val is not None
    for refs, used in ((data.train, plan.train), (data.val, plan.val)):
        tables: list[Any] = [ray.get(table) for table in refs.tables if table is not None]
        assert [table.num_rows for table in tables] == [count for count in used.counts.tolist() if count]
        assert {name for table in tables for name in table.column_names} == {"bytes", "key", "label"}
    assert len(data.train.tables) == len(plan.train.shards) > 1


def test_a_diverged_loss_ends_the_training_with_step_rate_and_keys(digits: Path, tmp_path: Path) -> None:
    broken = recipe(digits, optimizer={"name": "sgd", "lr": 1e6}, epochs=3)
    with pytest.raises(StriateError, match=r"at step \d+ \(learning rate 1e\+06\); the pictures of that batch: .*png"):
        train(plan_train(broken, str(tmp_path / "broken")))
    assert not (tmp_path / "broken" / "bundle.json").exists()


def test_cached_features_are_those_of_the_frozen_backbone(
    trained: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cached"
    # From the user's folder, which is not that of the workers.
    monkeypatch.chdir(trained.parent)
    transfer = recipe(digits, weights=trained.name, freeze="all", cache_features=True, epochs=2)
    train(plan_train(transfer, str(out)))
    provenance = Bundle.load(str(out)).record.provenance
    assert Recipe.parse(provenance["recipe"]) == transfer
    assert provenance["weights"] == {"bundle": str(trained), "bundle_id": load_record(str(trained)).id}
    (cached,) = (out / "features").glob("train-*.npz")
    pictures = {row["key"]: row["image"]["bytes"] for row in rows(digits / "train").to_pylist()}
    bundle = Bundle.load(str(trained), device="cpu")
    model = create("lenet5", num_classes=10, weights=weights_file(str(trained))).eval()
    with np.load(cached) as cached_arrays, torch.inference_mode():
        for key, features in list(zip(cached_arrays["keys"].tolist(), cached_arrays["features"], strict=True))[:20]:
            batch = torch.from_numpy(np.asarray(bundle.prepare(pictures[key]))).permute(2, 0, 1)[None]
            np.testing.assert_allclose(model.features(batch)[0].numpy(), features, atol=1e-5)
    learned, start = (load_file(folder / "model.safetensors") for folder in (out, trained))
    unchanged = {name for name in start if np.array_equal(start[name], learned[name])}
    assert {name.split(".")[0] for name in start.keys() - unchanged} == {"head"}, (
        "the head must learn, and nothing else"
    )
    assert losses(out)[1] < losses(out)[0]


@pytest.mark.faults
def test_a_killed_driver_and_a_killed_worker_do_not_change_the_result(digits: Path, tmp_path: Path) -> None:
    calm, out, path = tmp_path / "calm", tmp_path / "killed", tmp_path / "recipe.yaml"
    augmented = recipe(digits, augment="random_crop(28, padding=2) | rotate(5)", augment_on="device")
    train(plan_train(augmented, str(calm)), workers="1")
    path.write_text(augmented.dump())
    command = [str(Path(sys.executable).parent / "striate"), "train", str(path), "--out", str(out)]
    with _started(command) as process:
        _wait_for(lambda: list((out / "checkpoints").glob("*/step-*")), process)
    assert not (out / "bundle.json").exists(), "the kill must come before the end"
    with _started(command) as process:
        _wait_for(lambda: _train_workers(process.pid), process)
        for worker in _train_workers(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        _, stderr = process.communicate(timeout=_BOUND_S)
    assert process.returncode == 0, stderr.decode()
    assert losses(out) == pytest.approx(losses(calm), rel=1e-4)
    undisturbed, killed = (load_file(folder / "model.safetensors") for folder in (calm, out))
    for name in undisturbed:
        np.testing.assert_allclose(killed[name], undisturbed[name], atol=1e-4, err_msg=name)


@contextlib.contextmanager
def _started(command: list[str]) -> Generator[subprocess.Popen[bytes]]:
    """Starts a driver in its own session, and kills it with all its processes at the end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def _wait_for(condition: Any, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _BOUND_S
    while not condition():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)


def _train_workers(session: int) -> list[int]:
    """Returns the process ids of Ray Train's workers of the job whose driver leads this session."""
    pids: list[int] = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            name = (entry / "cmdline").read_bytes()
            if name.startswith(b"ray::RayTrainWorker") and os.getsid(int(entry.name)) == session:
                pids.append(int(entry.name))
    return pids


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"data": {"classes": ["0", "nine"]}}, "no pictures of: nine"),
        ({"data": {"val": "nowhere"}}, "there is nothing at .*nowhere"),
        ({"data": {"classes": ["0"]}}, "two or more"),
        ({"loss": {"class_weights": {"zero": 2.0, "1": 3.0}}}, "there is no class 'zero'"),
        ({"input": {"steps": 'grayscale | blur_background(mask_column="mask")', "size": 28}}, "lacks; it has key"),
        ({"model": "lenet5(in_chans=3)", "input": {"steps": "grayscale", "size": 28}}, r"add rgb to .* in_chans=1"),
        ({"weights": "nowhere"}, "weights: there is nothing at .*nowhere"),
        ({"model": "resnet9(width=4)", "batch_size": 1, "input": {"steps": "rgb"}}, "resnet9.* has batch norms"),
    ],
)
def test_impossible_trainings_are_refused_before_ray_is_started(
    digits: Path, tmp_path: Path, fields: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        plan_train(recipe(digits, **fields), str(tmp_path / "out"))
