"""Workers that wait for a place say so."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import ray

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
