"""The filter job on a real local Ray."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import ray

from jobs.filter import filter_dataset, plan_filter
from jobs.inspection.info import datasets_below, how_far
from jobs.shards.dataset_job import make_shards, run_tasks
from jobs.shards.pool_size import WorkerPool
from library.dataset.destination import claim
from library.dataset.manifest import Job, Manifest, ShardReport, load_manifest, save_manifest
from library.dataset.task import Progress, ShardTask
from library.errors import StriateError, UsageError
from library.imaging import codec
from library.pipeline import Pipeline
from library.work.filter_shard import FilterJob
from tests.datasets import content, rows
from tests.waiting import until

STEPS = 'not_blank(min_std=0.08) | grayscale | gaussian_blur(sigma=1.5) | edges(direction="vertical")'


@pytest.fixture(scope="module")
def edges(photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos, filtered by one worker."""
    destination = tmp_path_factory.mktemp("filtered") / "edges"
    filter_dataset(plan_filter(photos, str(destination), STEPS, encode="png"), workers="1")
    return destination


def test_every_picture_is_accounted_for_and_has_the_librarys_pixels(photos: str, edges: Path) -> None:
    manifest = load_manifest(str(edges))
    assert manifest.complete
    assert manifest.tally.balanced
    assert manifest.tally.rows_in == 86
    assert 0 < manifest.tally.dropped["blank"] < 20
    filters = Pipeline.parse(STEPS.partition("|")[2])
    before = {row["key"]: row for row in rows(photos).to_pylist()}
    after = rows(edges).to_pylist()
    assert len(after) == manifest.rows
    for row in after[:10]:
        expected = filters.apply(codec.decode(before[row["key"]]["image"]["bytes"]))
        np.testing.assert_array_equal(codec.decode(row["image"]["bytes"]), expected)
        assert (row["label"], row["format"], row["channels"]) == (before[row["key"]]["label"], "png", 1)


def test_each_shard_has_a_line_of_json_in_the_log_of_its_worker(edges: Path) -> None:
    manifest = load_manifest(str(edges))
    context = ray.get_runtime_context()
    logs = Path(context.get_temp_dir(), context.get_session_name(), "logs")
    lines = [
        line for path in logs.glob("worker-*.err") for line in path.read_text().splitlines() if "shard done" in line
    ]
    logged = [one for one in map(json.loads, lines) if one["shard"].startswith(str(edges))]
    assert {one["shard"].rpartition("/")[2] + ".parquet" for one in logged} == {shard.name for shard in manifest.shards}
    assert sum(one["pictures"] for one in logged) == manifest.tally.rows_in
    assert {(one["command"], one.get("bundle_id")) for one in logged} == {("filter", None)}
    assert {one["ray_job"] for one in logged} == {ray.get_runtime_context().get_job_id()}


def test_the_output_is_the_same_for_one_worker_and_for_two(photos: str, edges: Path, tmp_path: Path) -> None:
    filter_dataset(plan_filter(photos, str(tmp_path / "two"), STEPS, encode="png"), workers="2")
    assert content(tmp_path / "two") == content(edges)


def test_pictures_that_only_selectors_saw_keep_their_exact_bytes(photos: str, tmp_path: Path) -> None:
    manifest = filter_dataset(
        plan_filter(photos, str(tmp_path / "kept"), 'keep_labels(["china"]) | not_blank(0.08)'), workers="1"
    )
    before = {row["key"]: row for row in rows(photos).to_pylist()}
    assert 0 < manifest.rows < 86
    for row in rows(tmp_path / "kept").to_pylist():
        assert row == before[row["key"]]


def test_a_second_run_does_nothing_and_a_lost_shard_is_made_again(photos: str, edges: Path, tmp_path: Path) -> None:
    destination = shutil.copytree(edges, tmp_path / "edges")
    whole = content(destination)
    times = {path: path.stat().st_mtime_ns for path in destination.glob("*.parquet")}
    plan = plan_filter(photos, str(destination), STEPS, encode="png")
    again = filter_dataset(plan, workers="1")
    assert again.run["shards_resumed"] == len(again.shards) > 2
    (destination / "part-000001.parquet").unlink()
    third = filter_dataset(plan, workers="1")
    assert third.run["shards_resumed"] == len(third.shards) - 1
    assert content(destination) == whole
    unchanged = [path for path, time in times.items() if path.stat().st_mtime_ns == time]
    assert len(unchanged) == len(times) - 1


def test_a_limit_takes_the_first_pictures_and_a_larger_one_resumes(photos: str, tmp_path: Path) -> None:
    destination = str(tmp_path / "some")
    first = filter_dataset(plan_filter(photos, destination, "invert", limit=20), workers="1")
    assert first.tally.rows_in == 20
    whole = filter_dataset(plan_filter(photos, destination, "invert"), workers="1")
    assert whole.tally.rows_in == 86
    assert whole.run["shards_resumed"] >= 1
    with pytest.raises(UsageError, match="would remove some"):
        plan_filter(photos, destination, "invert", limit=5)


def test_another_pipeline_at_a_used_destination_needs_overwrite(photos: str, edges: Path, tmp_path: Path) -> None:
    destination = shutil.copytree(edges, tmp_path / "out")
    with pytest.raises(UsageError, match=r"holds the output of another job(.|\n)*edges(.|\n)*invert"):
        plan_filter(photos, str(destination), "invert")
    plan_filter(photos, str(destination), "invert", overwrite=True)
    assert content(destination) == content(edges), "planning removes nothing"


def test_a_killed_job_that_overwrites_is_resumed_and_not_restarted(photos: str, edges: Path, tmp_path: Path) -> None:
    destination = str(shutil.copytree(edges, tmp_path / "out"))
    plan = plan_filter(photos, destination, "invert", overwrite=True)
    claim(destination, plan.jobs, overwrite=True)
    assert not list(Path(destination).glob("*.parquet"))
    run_tasks("filter", plan.work, plan.tasks[:2], WorkerPool(1))
    manifest = filter_dataset(plan_filter(photos, destination, "invert", overwrite=True), workers="1")
    assert manifest.run["shards_resumed"] == 2
    assert set(manifest.tally.channels) == {"3"}
    again = filter_dataset(plan_filter(photos, destination, "invert", overwrite=True))
    assert again.run["shards_resumed"] == 0


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(photos: str, tmp_path: Path) -> None:
    facts = plan_filter(photos, str(tmp_path / "none"), "invert").described()
    assert (facts["shards_to_do"], facts["pictures_to_do"]) == (facts["shards"], 86)
    assert not (tmp_path / "none").exists()


def test_a_filtered_dataset_can_be_filtered_again_and_lists_all_jobs(edges: Path, tmp_path: Path) -> None:
    filter_dataset(plan_filter(str(edges), str(tmp_path / "again"), "invert"), workers="1")
    jobs = load_manifest(str(tmp_path / "again")).jobs
    assert [job.kind for job in jobs] == ["ingest", "filter", "filter"]
    assert [job.pipeline for job in jobs[1:]] == [str(Pipeline.parse(STEPS)), "invert"]


def test_a_pipeline_works_in_a_users_own_ray_data_program(photos: str) -> None:
    pipeline = Pipeline.parse("resize(32) | grayscale")
    results = ray.data.read_parquet(photos).map_batches(pipeline, batch_format="pyarrow").take_all()
    assert len(results) == 86
    assert {(row["channels"], min(row["width"], row["height"])) for row in results} == {(1, 32)}
    assert codec.decode(results[0]["image"]["bytes"]).shape[:2] == (results[0]["height"], results[0]["width"])


def test_a_users_program_writes_rejects_as_rows_beside_the_others(photos: str, tmp_path: Path) -> None:
    damaged_rows = rows(photos).slice(0, 4).to_pylist()
    damaged_rows[0]["image"]["bytes"] = damaged_rows[0]["image"]["bytes"][:40]
    pipeline = Pipeline.parse('keep_labels(["china", "flower", "hopper"]) | grayscale')
    source = ray.data.from_arrow(pa.Table.from_pylist(damaged_rows, rows(photos).schema))
    checked = source.map_batches(pipeline, batch_format="pyarrow", fn_kwargs={"rejects": True})
    checked.write_parquet(str(tmp_path / "checked"))
    written = {row["key"]: row for row in ds.dataset(tmp_path / "checked").to_table().to_pylist()}
    assert len(written) == 4
    damaged = written.pop(damaged_rows[0]["key"])
    assert (damaged["reason"], damaged["image"]["bytes"]) == ("damaged", damaged_rows[0]["image"]["bytes"])
    assert {(row["reason"], row["channels"]) for row in written.values()} == {(None, 1)}


def test_filters_work_on_the_arrays_of_read_images(photo_folder: Path) -> None:
    pipeline = Pipeline.parse("grayscale | resize(32)")
    folder = str(photo_folder / "china")
    read = ray.data.read_images(folder, include_paths=True, file_extensions=["jpg"], mode="RGB")
    small = read.map(lambda row: row | {"image": pipeline.apply(row["image"])}).take(3)
    assert {min(row["image"].shape[:2]) for row in small} == {32}
    assert all(row["path"].endswith(".jpg") for row in small)


@dataclass(frozen=True)
class DiesOnce:
    """Kills its own worker at the first attempt of each shard."""

    work: FilterJob
    marks: str

    def work_digest(self, task: ShardTask) -> str:
        return self.work.work_digest(task)

    def run(self, task: ShardTask, progress: Progress) -> ShardReport:
        mark = Path(self.marks) / task.stem
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.work.run(task, progress)


@dataclass(frozen=True)
class Fails:
    """Fails as a defective step does: with an error, or by the death of the process."""

    how: str

    def work_digest(self, task: ShardTask) -> str:
        return self.how

    def run(self, task: ShardTask, progress: Progress) -> ShardReport:
        if self.how == "dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        raise ZeroDivisionError("one over none")


@dataclass(frozen=True)
class Waits:
    """Filters the last shard only when a file appears."""

    work: FilterJob
    last: str
    release: str

    def work_digest(self, task: ShardTask) -> str:
        return self.work.work_digest(task)

    def run(self, task: ShardTask, progress: Progress) -> ShardReport:
        if task.stem == self.last:
            until(Path(self.release).exists)
        return self.work.run(task, progress)


def test_the_destination_of_a_running_job_shows_its_progress(photos: str, tmp_path: Path) -> None:
    plan = plan_filter(photos, str(tmp_path / "made"), "invert")
    shards, last = len(plan.tasks), plan.tasks[-1]
    slow = replace(plan, work=Waits(plan.work, last.stem, str(tmp_path / "release")))
    job = Thread(target=make_shards, args=("filter", slow, WorkerPool(2)))
    job.start()
    try:
        claimed = Path(plan.destination) / "_manifest.json"
        until(claimed.exists)
        until(lambda: len(datasets_below(plan.destination)[plan.destination].shards) == shards - 1)
        progress = how_far(datasets_below(plan.destination)[plan.destination])
        read = 86 - last.rows
        assert progress.startswith(f"{shards - 1} of {shards} shards, {read} of 86 pictures ({read / 86:.0%}), ")
    finally:
        (tmp_path / "release").touch()
        job.join()
    assert load_manifest(plan.destination).complete


@pytest.mark.faults
def test_killed_workers_come_back_and_nothing_is_lost_or_doubled(photos: str, tmp_path: Path) -> None:
    plan = plan_filter(photos, str(tmp_path / "calm"), "invert")
    filter_dataset(plan)
    killed = plan_filter(photos, str(tmp_path / "killed"), "invert")
    marks = tmp_path / "marks"
    marks.mkdir()
    claim(killed.destination, killed.jobs, overwrite=False)
    run = run_tasks("filter", DiesOnce(killed.work, str(marks)), killed.tasks[:3], WorkerPool(2))
    assert run.totals[killed.destination].shards == len(list(marks.iterdir())) == 3
    filter_dataset(killed)
    assert {k: v for k, v in content(tmp_path / "killed").items() if k.endswith("parquet")} == {
        k: v for k, v in content(tmp_path / "calm").items() if k.endswith("parquet")
    }


@pytest.mark.faults
def test_a_shard_that_kills_its_worker_every_time_is_named(tmp_path: Path) -> None:
    save_manifest(str(tmp_path), Manifest(complete=False, jobs=[Job(kind="filter", source="/nowhere")]))
    task = ShardTask(str(tmp_path), "part-000007", "digest", 1)
    with pytest.raises(StriateError, match=r"part-000007: its worker died 4 times"):
        run_tasks("filter", Fails("dies"), [task], WorkerPool(1))


def test_an_unexpected_error_in_a_worker_is_shown_in_full_with_its_shard(tmp_path: Path) -> None:
    save_manifest(str(tmp_path), Manifest(complete=False, jobs=[Job(kind="filter", source="/nowhere")]))
    task = ShardTask(str(tmp_path), "part-000007", "digest", 1)
    with pytest.raises(StriateError, match=r"part-000007(.|\n)*ZeroDivisionError: one over none"):
        run_tasks("filter", Fails("raises"), [task], WorkerPool(1))


@pytest.mark.parametrize(
    ("workers", "message"), [("99", "Ray has 2 CPUs"), ("0", "from 1, or auto"), ("many", "from 1")]
)
def test_workers_that_could_never_be_placed_are_refused(
    photos: str, tmp_path: Path, workers: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        filter_dataset(plan_filter(photos, str(tmp_path / "x"), "invert"), workers=workers)
