"""`striate info` reports the progress of a job from its destination alone, on any machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs.cli.app import run
from jobs.filter import plan_filter
from jobs.inspection.info import datasets_below, how_far
from library.dataset.destination import claim, finish
from library.dataset.manifest import report_uri
from library.dataset.totals import Totals
from library.recipe import Recipe
from tests.picture_examples import encoded, ingest, write_files

_PLANNED = {"shards_planned": 3, "pictures_planned": 12}


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Twelve pictures in three shards."""
    files = {f"{label}/{n}.png": encoded("png", 20 + n, 30) for label in ("cat", "dog") for n in range(6)}
    size = sum(map(len, files.values()))
    manifest = ingest(write_files(tmp_path / "raw", files), tmp_path / "source", shard_bytes=size // 3 + 1)
    assert [shard.rows for shard in manifest.shards] == [4, 4, 4]
    return str(tmp_path / "source")


def _begin_filter(source: str, destination: str, shards: int, planned: Mapping[str, int] | None = None) -> None:
    """Filters the first `shards` shards and stops."""
    plan = plan_filter(source, destination, "grayscale")
    claim(destination, plan.jobs, overwrite=False, planned=planned)
    for task in plan.tasks[:shards]:
        plan.work.run(task, lambda _: None)


def _progress(dataset: str) -> str:
    (manifest,) = datasets_below(dataset).values()
    return how_far(manifest)


def test_a_running_job_is_described_by_its_shards_pictures_and_speed(source: str, tmp_path: Path) -> None:
    dataset = str(tmp_path / "filtered")
    _begin_filter(source, dataset, 2, _PLANNED)
    now = time.time()
    for stem, ago in (("part-000000", 14), ("part-000001", 12)):
        os.utime(report_uri(dataset, stem), (now - ago, now - ago))
    progress = _progress(dataset)
    assert progress.startswith("2 of 3 shards, 8 of 12 pictures (67%), 2/s, 2 s left, the last shard ")
    assert progress.endswith(" s ago")


def test_shards_from_before_a_pause_do_not_count_for_the_speed(source: str, tmp_path: Path) -> None:
    dataset = str(tmp_path / "filtered")
    _begin_filter(source, dataset, 3, _PLANNED)
    now = time.time()
    for stem, ago in (("part-000000", 86400), ("part-000001", 7210), ("part-000002", 7200)):
        os.utime(report_uri(dataset, stem), (now - ago, now - ago))
    (manifest,) = datasets_below(dataset).values()
    assert manifest.run["pictures_per_s"] == 0.4
    assert how_far(manifest).endswith("the last shard 2 h 00 min ago")


@pytest.mark.parametrize("planned", [_PLANNED, None])
def test_unknown_numbers_are_left_out(source: str, tmp_path: Path, planned: Mapping[str, int] | None) -> None:
    dataset = str(tmp_path / "filtered")
    _begin_filter(source, dataset, 0, planned)
    none = "0 of 3 shards, 0 of 12 pictures (0%)" if planned else "0 shards, 0 pictures"
    assert _progress(dataset) == none
    _begin_filter(source, dataset, 1, planned)
    assert "/s" not in _progress(dataset)


def test_the_command_prints_progress_as_text_and_as_json(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = str(tmp_path / "filtered")
    _begin_filter(source, dataset, 2, _PLANNED)
    assert run(["info", dataset]) == 0
    out = capsys.readouterr().out
    assert "NOT FINISHED" in out
    assert "2 of 3 shards, 8 of 12 pictures (67%)" in out
    assert run(["info", dataset, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (document["complete"], document["shards"], document["rows"]) == (False, 2, 8)
    assert document["run"].keys() >= {"shards_planned", "pictures_planned", "pictures_per_s", "last_shard_s_ago"}


def test_in_a_bucket_the_time_of_a_shard_is_the_servers(source: str, bucket: str) -> None:
    _begin_filter(source, f"{bucket}/filtered", 1, _PLANNED)
    (manifest,) = datasets_below(f"{bucket}/filtered").values()
    assert manifest.run["last_shard_s_ago"] < 600
    assert how_far(manifest).startswith("1 of 3 shards, 4 of 12 pictures (33%), the last shard ")


def test_a_finished_dataset_no_longer_has_the_planned_numbers(source: str, tmp_path: Path) -> None:
    plan = plan_filter(source, str(tmp_path / "filtered"), "grayscale")
    claim(plan.destination, plan.jobs, overwrite=False, planned=_PLANNED)
    reports = (plan.work.run(task, lambda _: None) for task in plan.tasks)
    manifest = finish(plan.destination, plan.jobs, Totals.of(reports), run={"workers": 1})
    assert datasets_below(plan.destination)[plan.destination] == manifest
    assert manifest.run == {"workers": 1}


@pytest.mark.parametrize(("text", "code"), [("augment: no_such_step\nsteps: 20\n", 0), ("model: lenet5\n", 1)])
def test_a_training_is_shown_without_the_plugin_of_its_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, code: int
) -> None:
    (tmp_path / "train.json").write_text(json.dumps({"recipe": "0", "datasets": {}, "recipe_text": text}))
    assert run(["info", str(tmp_path)]) == code
    output = capsys.readouterr()
    assert "0 of 20" in output.out if code == 0 else "its recipe has neither epochs nor steps" in output.err


@pytest.mark.parametrize("text", ["[1, 2]", '"a text"', "3", "null", "{"])
def test_a_damaged_record_of_a_training_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "train.json").write_text(text)
    assert run(["info", str(tmp_path)]) == 1
    assert "train.json is damaged: " in " ".join(capsys.readouterr().err.split())


def test_a_training_is_described_by_its_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"data": {"train": "/data"}, "model": "lenet5", "optimizer": {"name": "sgd", "lr": 0.1}}
    recipe = Recipe.parse(json.dumps({**fields, "batch_size": 32, "epochs": 20}))
    record = {"recipe": recipe.digest, "datasets": {}, "recipe_text": recipe.dump()}
    (tmp_path / "train.json").write_text(json.dumps(record))
    assert run(["info", str(tmp_path)]) == 0
    assert "0 of 20" in capsys.readouterr().out
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "metrics.jsonl").write_text('{"epoch": 1, "step": 9}\n{"epoch": 2, "step": 18, "lr": 0.1}\n')
    assert run(["info", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["epochs"], document["finished"], document["last_epoch"]["lr"]) == ("2 of 20", False, 0.1)
