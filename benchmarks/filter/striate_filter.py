"""The runs of Striate in filter_throughput.py: by its functions, by its command line, and without Ray Data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.common.measuring import Run, fresh_folder
from benchmarks.common.process_tree import WorkerMemory
from benchmarks.common.striate_runs import BLUR, ENCODE, Commit, commits_of, connected, shard_figures
from benchmarks.filter.contestant import Setup
from benchmarks.filter.pools import blurred
from jobs.filter import filter_dataset, plan_filter
from jobs.shards.dataset_job import shard_tasks
from library.dataset.manifest import Tally, load_manifest
from library.dataset.task import ShardTask
from library.errors import StriateError
from library.work.filter_shard import FilterJob

SELECT = 'min_size(1) | keep_formats(["jpeg"])'
# The same work as benchmarks/filter/programs/daft_resize.py; Daft's encoder has a fixed quality of 75.
RESIZE, RESIZE_ENCODE = 'resize([256, 256], mode="exact")', "jpeg:75"
_COMPARED = 100
_ORIENTATION_TAG = 0x0112


def filter_blur(setup: Setup) -> Run:
    with connected(setup.cores) as ray_init_s, fresh_folder(setup.work / "striate") as out:
        run = _filtered(setup, setup.dataset, out, BLUR, ENCODE)
        same, compared = _same_as_limit(setup, out)
    if same < compared:
        raise StriateError(
            f"only {same} of {compared} pictures equal the limit's output byte for byte, so rates are not comparable"
        )
    details = {"ray_init_s": round(ray_init_s, 3), "same_bytes_as_limit": f"{same}/{compared}"}
    return Run(run.pictures, run.seconds, {**run.details, **details})


def filter_blur_third(setup: Setup) -> Run:
    """Filters a third of the photos, to show whether memory grows with their number."""
    with connected(setup.cores), fresh_folder(setup.work / "third") as out:
        return _filtered(setup, setup.dataset, out, BLUR, ENCODE, limit=max(1, len(setup.photos.names) // 3))


def filter_select(setup: Setup) -> Run:
    with connected(setup.cores), fresh_folder(setup.work / "selected") as out:
        return _filtered(setup, setup.dataset, out, SELECT, "keep")


def filter_resize(setup: Setup) -> Run:
    with connected(setup.cores), fresh_folder(setup.work / "resized") as out:
        return _filtered(setup, setup.dataset, out, RESIZE, RESIZE_ENCODE)


def filter_tiny(setup: Setup) -> Run:
    with connected(setup.cores), fresh_folder(setup.work / "tiny-out") as out:
        return _filtered(setup, setup.tiny, out, BLUR, ENCODE)


def filter_tiny_again(setup: Setup) -> Run:
    """Measures the second job of a connection, which starts its own worker processes."""
    with connected(setup.cores):
        with fresh_folder(setup.work / "tiny-first") as out:
            _filtered(setup, setup.tiny, out, BLUR, ENCODE)
        with fresh_folder(setup.work / "tiny-again") as out:
            return _filtered(setup, setup.tiny, out, BLUR, ENCODE)


def command(setup: Setup) -> Run:
    return _command(setup, setup.dataset)


def command_tiny(setup: Setup) -> Run:
    return _command(setup, setup.tiny)


def _command(setup: Setup, dataset: str) -> Run:
    """Runs `striate filter` as a user types it; the time includes the start of the interpreter, imports and Ray."""
    striate = Path(sys.executable).with_name("striate")
    with fresh_folder(setup.work / "command") as out:
        arguments = ["filter", dataset, str(out), "--steps", BLUR, "--encode", ENCODE, "--workers", str(setup.cores)]
        start, clock = time.perf_counter(), time.time()
        # Without the address of a cluster that runs on this machine.
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        done = subprocess.run([striate, *arguments, "--json"], capture_output=True, text=True, env=environment)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise StriateError(f"striate {' '.join(arguments)} failed:\n{done.stderr.strip()[-2000:]}")
        commits = commits_of(out, load_manifest(str(out)))
        rows = json.loads(done.stdout)["rows"]
    return Run(rows, seconds, {"first_shard_s": round(commits[0].at - clock, 3)})


def _filtered(setup: Setup, dataset: str, out: Path, steps: str, encode: str, limit: int | None = None) -> Run:
    with WorkerMemory() as memory:
        clock, start = time.time(), time.perf_counter()
        plan = plan_filter(dataset, str(out), steps, encode=encode, limit=limit)
        manifest = filter_dataset(plan, workers=str(setup.cores))
        seconds = time.perf_counter() - start
    expected = sum(min(task.rows, task.max_rows or task.rows) for task in plan.tasks)
    if manifest.rows != expected:
        raise StriateError(
            f"'{steps}' wrote {manifest.rows} pictures instead of {expected}, so rates are not comparable"
        )
    commits = commits_of(out, manifest)
    details = {
        **shard_figures(commits, setup.cores, clock),
        "worker_rss_mb": round(manifest.run["worker_rss_bytes"] / 1e6, 1),
        "worker_peak_mb": memory.peak_mb,
        "stage_s": manifest.run["seconds"],
    }
    return Run(manifest.rows, seconds, details)


def _same_as_limit(setup: Setup, out: Path) -> tuple[int, int]:
    """Returns how many pictures of a sample equal the limit's output byte for byte, and the size of the sample.

    Pictures with an orientation tag are left out: the limit does not turn them upright.
    """
    shard = load_manifest(str(out)).shards[0].name
    table = pq.read_table(out / shard, columns=["key", "image"]).slice(0, _COMPARED)
    same: list[bool] = []
    for row in table.to_pylist():
        path = setup.photos.folder / row["key"]
        if Image.open(path).getexif().get(_ORIENTATION_TAG, 1) <= 1:
            same.append(row["image"]["bytes"] == blurred(path.read_bytes()))
    return sum(same), len(same)


# -- the same shards without Ray Data ------------------------------------------------------------------------------


class _Worker:
    """Processes shards as a worker of `striate filter` does."""

    def __init__(self, job: FilterJob) -> None:
        self._job = job
        cv2.setNumThreads(1)
        pa.set_cpu_count(1)

    def run(self, task: ShardTask) -> Commit:
        report = self._job.run(task, _ignore)
        return Commit(time.time(), sum(report.seconds.values()), report.tally.rows_in)


def _ignore(_tally: Tally) -> None: ...


def actor_pool(setup: Setup) -> Run:
    """Measures the blur through `ray.util.ActorPool`, to show what Ray Data costs.

    The work on each shard is that of `filter_blur`, commit included, but there is no plan, claim, display, metrics or
    manifest, and a lost worker ends the run.
    """
    with connected(setup.cores), fresh_folder(setup.work / "actor-pool") as out:
        # After `connected`, which sets variables that Ray reads when it is imported.
        import ray
        from ray.util import ActorPool

        clock, start = time.time(), time.perf_counter()
        tasks = shard_tasks(load_manifest(setup.dataset), str(out), None)
        worker: Any = ray.remote(num_cpus=1)(_Worker)
        pool = ActorPool([worker.remote(FilterJob(setup.dataset, BLUR, ENCODE)) for _ in range(setup.cores)])
        unordered: Any = list(pool.map_unordered(lambda actor, task: actor.run.remote(task), tasks))
        seconds = time.perf_counter() - start
    commits: list[Commit] = sorted(unordered, key=lambda commit: commit.at)
    return Run(sum(commit.pictures for commit in commits), seconds, shard_figures(commits, setup.cores, clock))
