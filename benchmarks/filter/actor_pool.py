"""The shards of a filter job through `ray.util.ActorPool`: the steady state without Ray Data.

It does the same work on each shard as `striate filter`, commit included, but without plan, claim, display, metrics and
manifest; a lost worker ends it.
"""

from __future__ import annotations

import time
from typing import Any

import cv2
import pyarrow as pa
import ray
from ray.util import ActorPool

from benchmarks.common.measuring import Run, Setup, fresh_folder
from benchmarks.common.striate_runs import BLUR, ENCODE, Commit, connected, steady_rate
from jobs.shards.dataset_job import shard_tasks
from library.dataset.manifest import Tally, load_manifest
from library.dataset.task import ShardTask
from library.work.filter_shard import FilterJob


class _Worker:
    def __init__(self, job: FilterJob) -> None:
        self._job = job
        cv2.setNumThreads(1)
        pa.set_cpu_count(1)

    def run(self, task: ShardTask) -> Commit:
        report = self._job.run(task, _ignore)
        return Commit(time.time(), sum(report.seconds.values()), report.tally.rows_in)


def _ignore(_tally: Tally) -> None: ...


def filter_blur(setup: Setup) -> Run:
    """The blur of `striate_runs.filter_blur`."""
    with connected(setup.cores), fresh_folder(setup.work / "actor-pool") as out:
        clock, start = time.time(), time.perf_counter()
        tasks = shard_tasks(load_manifest(setup.dataset), str(out), None)
        worker: Any = ray.remote(num_cpus=1)(_Worker)
        pool = ActorPool([worker.remote(FilterJob(setup.dataset, BLUR, ENCODE)) for _ in range(setup.cores)])
        unordered: Any = list(pool.map_unordered(lambda actor, task: actor.run.remote(task), tasks))
        seconds = time.perf_counter() - start
    commits: list[Commit] = sorted(unordered, key=lambda commit: commit.at)
    steady = steady_rate(commits, setup.cores)
    details = {
        "steady_pictures_per_s": steady and round(steady, 2),
        "first_shard_s": round(commits[0].at - clock, 3),
        "shards": len(commits),
    }
    return Run(sum(commit.pictures for commit in commits), seconds, details)
