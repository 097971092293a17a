"""Runs of Striate: its functions within an open connection, and its command line."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from benchmarks.common.measuring import Run, Setup, fresh_folder
from benchmarks.filter.pools import QUALITY, SIGMA, blurred
from benchmarks.filter.worker_memory import WorkerMemory
from cluster.connection.session import connect
from jobs.filter import filter_dataset, plan_filter
from jobs.ingest import ingest, plan_ingest
from library.dataset.manifest import REPORTS, Manifest, ShardReport, load_manifest
from library.errors import StriateError

BLUR = f"gaussian_blur(sigma={SIGMA})"
ENCODE = f"jpeg:{QUALITY}"
SELECT = 'min_size(1) | keep_formats(["jpeg"])'
# The same work as benchmarks/filter/programs/daft_resize.py; Daft's encoder has a fixed quality of 75.
RESIZE, RESIZE_ENCODE = 'resize([256, 256], mode="exact")', "jpeg:75"
_COMPARED = 100
_ORIENTATION_TAG = 0x0112


@contextmanager
def connected(cores: int) -> Generator[float]:
    """Starts a Ray whose workers are still starting; yields the seconds that this took."""
    start = time.perf_counter()
    with connect("local", num_cpus=cores):
        took = time.perf_counter() - start
        # Imported after `connect`, which sets variables that Ray reads at import and before the first timed call: later
        # rounds do not import it again. The command line is measured with all imports.
        importlib.import_module("jobs.shards.runner")
        yield took


def make_dataset(folder: Path, destination: Path, cores: int, shard_mb: float | None) -> dict[str, Any]:
    """Ingests a folder and returns the rate."""
    with connected(cores):
        start = time.perf_counter()
        manifests = ingest(plan_ingest(str(folder), str(destination), shard_mb=shard_mb), workers=str(cores))
        seconds = time.perf_counter() - start
    manifest = manifests[str(destination)]
    if manifest.tally.rejected:
        raise StriateError(
            f"photos were rejected, so that the contestants would not do the same: {manifest.tally.rejected}"
        )
    return {
        "pictures": manifest.rows,
        "seconds": round(seconds, 3),
        "pictures_per_s": round(manifest.rows / seconds, 1),
        "shards": len(manifest.shards),
    }


def filter_blur(setup: Setup) -> Run:
    with connected(setup.cores) as ray_init_s, fresh_folder(setup.work / "striate") as out:
        run = _filtered(setup, setup.dataset, out, BLUR, ENCODE)
        same, compared = _same_as_limit(setup, out)
    if same < compared:
        raise StriateError(f"only {same} of {compared} pictures are byte for byte the limit's; no fair comparison")
    details = {"ray_init_s": round(ray_init_s, 3), "same_bytes_as_limit": f"{same}/{compared}"}
    return Run(run.pictures, run.seconds, {**run.details, **details})


def filter_blur_third(setup: Setup) -> Run:
    """A third of the photos: shows whether memory grows with the number of photos."""
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
    """The second job of a connection, which starts new worker processes."""
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
    """`striate filter` as a user types it, with interpreter start, imports and Ray."""
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
        raise StriateError(f"'{steps}' made {manifest.rows} pictures of {expected}, which is no fair comparison")
    commits = commits_of(out, manifest)
    steady = steady_rate(commits, setup.cores)
    details: dict[str, Any] = {
        "steady_pictures_per_s": steady and round(steady, 2),
        "first_shard_s": round(commits[0].at - clock, 3),
        "shards": len(commits),
        "worker_rss_mb": round(manifest.run["worker_rss_bytes"] / 1e6, 1),
        "worker_peak_mb": memory.peak_bytes and round(memory.peak_bytes / 1e6, 1),
        "stage_s": manifest.run["seconds"],
    }
    return Run(manifest.rows, seconds, details)


@dataclass(frozen=True)
class Commit:
    """One finished shard: its time (seconds since the epoch), seconds of work, pictures read."""

    at: float
    busy_s: float
    pictures: int


def commits_of(dataset: Path, manifest: Manifest) -> list[Commit]:
    """The commits of a finished dataset, by time: the modification time of each shard's report, which is its commit."""
    commits: list[Commit] = []
    for entry in manifest.shards:
        path = dataset / REPORTS / f"{Path(entry.name).stem}.json"
        report = ShardReport.model_validate_json(path.read_bytes())
        commits.append(Commit(path.stat().st_mtime, sum(report.seconds.values()), report.tally.rows_in))
    return sorted(commits, key=lambda commit: commit.at)


def steady_rate(commits: Sequence[Commit], workers: int) -> float | None:
    """Pictures per second while all workers are at work, waits between shards included.

    The window starts when as many shards are committed as there are workers, and ends when a worker finds no further
    shard. A shard that is partly inside the window counts by the part of its time inside.

    Returns:
        None if there are too few shards for a window.
    """
    if len(commits) <= 2 * workers:
        return None
    opens, closes = commits[workers - 1].at, commits[len(commits) - workers].at

    def pictures_by(at: float) -> float:
        parts = ((at - commit.at) / max(commit.busy_s, 1e-6) + 1 for commit in commits)
        return sum(c.pictures * min(max(part, 0.0), 1.0) for c, part in zip(commits, parts, strict=True))

    return (pictures_by(closes) - pictures_by(opens)) / (closes - opens)


def _same_as_limit(setup: Setup, out: Path) -> tuple[int, int]:
    """Number of pictures of a sample that equal the limit's output byte for byte, and the size of the sample.

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
