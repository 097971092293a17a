"""Workers that cannot be scheduled are reported, and the task of one that is lost does not wait for it."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from jobs.shards import runner
from jobs.shards.pool_size import WorkerPool
from jobs.shards.runner import run_shards
from library.dataset.manifest import Job, Manifest, Report, Tally, save_manifest
from library.dataset.task import Progress, ShardTask
from library.errors import StriateError
from tests.processes import command, family
from tests.waiting import until


class _Holder:
    """Another program that occupies CPUs."""


@dataclass(frozen=True)
class Reports:
    """A job that writes nothing."""

    def work_digest(self, task: ShardTask) -> str:
        return "work"

    def run(self, task: ShardTask, progress: Progress) -> Report:
        return Report(stem=task.stem, input_digest=task.input_digest, work_digest="work", tally=Tally())


@dataclass(frozen=True)
class DiesOnSignal(Reports):
    """Kills its worker at the first attempt of the first task, once `folder/go` exists."""

    folder: str

    def run(self, task: ShardTask, progress: Progress) -> Report:
        tried = Path(self.folder, "tried")
        if task.stem == "part-000000" and not tried.exists():
            tried.touch()
            until(Path(self.folder, "go").exists)
            os._exit(1)
        return super().run(task, progress)


class Stems:
    """Collects the names of the reported shards, in order."""

    def __init__(self) -> None:
        self.stems: list[str] = []

    def add(self, task: ShardTask, report: str) -> Report:
        self.stems.append(task.stem)
        return Report.model_validate_json(report)


@pytest.fixture
def tasks(tmp_path: Path) -> list[ShardTask]:
    """Two shards of an unfinished dataset."""
    save_manifest(str(tmp_path), Manifest(complete=False, jobs=[Job(kind="filter", source="/nowhere")]))
    return [ShardTask(str(tmp_path), f"part-{number:06d}", "digest", 1) for number in range(2)]


def test_a_job_without_resources_says_what_it_waits_for(
    tasks: list[ShardTask], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "_WAITS_S", 0.2)
    monkeypatch.setattr("jobs.progress.display._LINE_EVERY_S", 0.2)
    cpus = ray.cluster_resources()["CPU"]
    holder: Any = ray.remote(num_cpus=cpus)(_Holder).remote()
    ray.get(holder.__ray_ready__.remote())
    results, printed = Stems(), list[str]()
    thread = threading.Thread(target=run_shards, args=("filter", Reports(), tasks, WorkerPool(1), results))
    thread.start()

    def waits() -> bool:
        printed.append(capsys.readouterr().err)
        return f"each worker needs 1 CPU, and 0 of {cpus:g} CPUs are free" in "".join(printed)

    until(waits)
    assert not results.stems
    ray.kill(holder)
    thread.join(60)
    assert sorted(results.stems) == [task.stem for task in tasks]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the processes from /proc")
def test_a_job_on_a_local_ray_starts_no_actors_for_a_dashboard(tasks: list[ShardTask]) -> None:
    unneeded = ("_StatsActor", "_AutoscalingCoordinator")

    def running() -> set[int]:
        return {pid for pid in family(os.getpid()) if any(name in command(pid) for name in unneeded)}

    before, results = running(), Stems()
    run_shards("filter", Reports(), tasks, WorkerPool(1), results)
    assert sorted(results.stems) == ["part-000000", "part-000001"]
    assert running() <= before


def test_tasks_of_a_lost_worker_are_done_without_its_cpu(
    tasks: list[ShardTask], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runner, "_STALLED_S", 3.0)
    monkeypatch.setattr("jobs.progress.display._LINE_EVERY_S", 0.2)
    half = int(ray.cluster_resources()["CPU"] / 2)
    results = Stems()
    job = DiesOnSignal(str(tmp_path))
    places = WorkerPool(2, cpus=half)
    thread = threading.Thread(target=run_shards, args=("filter", job, tasks, places, results), daemon=True)
    thread.start()
    until(lambda: len(results.stems) == 1 and (tmp_path / "tried").exists())
    # The holder is the first to wait for the CPU of the lost worker.
    holder: Any = ray.remote(num_cpus=half)(_Holder).remote()
    ready = holder.__ray_ready__.remote()
    try:
        (tmp_path / "go").touch()
        ray.get(ready, timeout=60)
        thread.join(120)
        assert sorted(results.stems) == [task.stem for task in tasks]
    finally:
        ray.kill(holder)


def test_a_node_that_does_not_see_the_dataset_is_named(tmp_path: Path) -> None:
    missing_task = ShardTask(str(tmp_path / "elsewhere"), "part-000000", "digest", 1)
    with pytest.raises(StriateError, match=r"node \w{8} does not see .*elsewhere"):
        run_shards("filter", Reports(), [missing_task], WorkerPool(1), Stems())
