"""Workers that wait for a place say so, and the work of one that is lost does not wait for one."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.state import actors

from jobs import worker_pool
from jobs.worker_pool import WorkerPool
from tests.waiting import until


class _Holder:
    """Something else that has all CPUs."""


class _Doubler:
    def run(self, task: int) -> int:
        return 2 * task


def test_a_pool_without_a_place_says_what_it_waits_for_and_works_once_it_has_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker_pool, "_WAITS_S", 0.2)
    cpus = ray.cluster_resources()["CPU"]
    holder: Any = ray.remote(num_cpus=cpus)(_Holder).remote()
    ray.get(holder.__ray_ready__.remote())
    pool: WorkerPool[int] = WorkerPool(_Doubler, (), 1)
    rows: list[int] = []
    thread = threading.Thread(target=lambda: rows.extend(pool.run([1, 2, 3])))
    thread.start()
    said: list[str] = []

    def told() -> bool:
        said.append(capsys.readouterr().err)
        return f"each asks for 1 CPU, and Ray has 0 of {cpus:g} CPUs free" in "".join(said)

    until(told)
    assert not rows
    ray.kill(holder)
    thread.join(60)
    pool.stop()
    assert sorted(rows) == [2, 4, 6]


class _Dies:
    """On its first try of the task 0, once `folder/go` is there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, task: int) -> int:
        if task == 0 and not (self._folder / "tried").exists():
            (self._folder / "tried").touch()
            until((self._folder / "go").exists)
            os._exit(1)
        return task


def test_who_has_no_work_left_takes_that_of_one_that_is_lost_and_finds_no_place_again(tmp_path: Path) -> None:
    half = ray.cluster_resources()["CPU"] / 2
    pool: WorkerPool[int] = WorkerPool(_Dies, (tmp_path,), 2, num_cpus=half)
    rows: list[int] = []
    thread = threading.Thread(target=lambda: rows.extend(pool.run([0, 1])), daemon=True)
    thread.start()
    until(lambda: rows == [1] and (tmp_path / "tried").exists())
    # First in the queue for what the lost one had.
    holder: Any = ray.remote(num_cpus=half)(_Holder).remote()
    try:
        until(lambda: actors(holder._actor_id.hex()).get("State") == "PENDING_CREATION")
        (tmp_path / "go").touch()
        ray.get(holder.__ray_ready__.remote(), timeout=60)
        thread.join(60)
        assert rows == [1, 0]
    finally:
        ray.kill(holder)
        pool.stop()
