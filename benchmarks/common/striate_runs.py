"""Runs of Striate within an open connection, and the rates that follow from the commits of their shards."""

from __future__ import annotations

import importlib
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.measuring import RATE, STEADY
from cluster.connection.session import connect
from jobs.ingest import ingest, plan_ingest
from library.dataset.manifest import REPORTS, Manifest, ShardReport
from library.errors import StriateError

SIGMA, QUALITY = 2, 90
BLUR = f"gaussian_blur(sigma={SIGMA})"
ENCODE = f"jpeg:{QUALITY}"


@contextmanager
def connected(cores: int) -> Generator[float]:
    """Starts Ray with `cores` CPUs; yields the seconds that this took. Its worker processes are still starting then."""
    start = time.perf_counter()
    with connect("local", num_cpus=cores):
        took = time.perf_counter() - start
        # Imported after `connect`, which sets variables that Ray reads when it is imported, and before the time is
        # taken, because only the first round would pay for it. The command line is measured with all imports.
        importlib.import_module("jobs.shards.runner")
        yield took


def make_dataset(folder: Path, destination: Path, cores: int, shard_mb: float | None) -> dict[str, Any]:
    """Ingests a folder; returns pictures, seconds, rate and number of shards.

    Raises:
        StriateError: pictures were rejected.
    """
    with connected(cores):
        start = time.perf_counter()
        manifests = ingest(plan_ingest(str(folder), str(destination), shard_mb=shard_mb), workers=str(cores))
        seconds = time.perf_counter() - start
    manifest = manifests[str(destination)]
    if manifest.tally.rejected:
        raise StriateError(
            f"photos were rejected ({manifest.tally.rejected}), so the contestants would not process the same pictures"
        )
    return {
        "pictures": manifest.rows,
        "seconds": round(seconds, 3),
        RATE: round(manifest.rows / seconds, 1),
        "shards": len(manifest.shards),
    }


@dataclass(frozen=True)
class Commit:
    """One finished shard.

    Attributes:
        at: time of its commit, in seconds since the epoch.
        busy_s: seconds that a worker needed for it.
        pictures: number of pictures read.
    """

    at: float
    busy_s: float
    pictures: int


def commits_of(dataset: Path, manifest: Manifest) -> list[Commit]:
    """Returns the commits of a finished dataset in order of time.

    A shard is committed when its report is written, so the time is the report's modification time.
    """
    commits: list[Commit] = []
    for entry in manifest.shards:
        path = dataset / REPORTS / f"{Path(entry.name).stem}.json"
        report = ShardReport.model_validate_json(path.read_bytes())
        commits.append(Commit(path.stat().st_mtime, sum(report.seconds.values()), report.tally.rows_in))
    return sorted(commits, key=lambda commit: commit.at)


def steady_rate(commits: Sequence[Commit], workers: int) -> float | None:
    """Returns the pictures per second while all workers are busy, waits between shards included.

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


def shard_figures(commits: Sequence[Commit], workers: int, started_at: float) -> dict[str, Any]:
    """Returns the steady rate, the seconds to the first commit, and the number of shards.

    Args:
        commits: of all shards, in order of time.
        workers: number of workers.
        started_at: time when the run began, in seconds since the epoch.
    """
    steady = steady_rate(commits, workers)
    return {
        STEADY: steady and round(steady, 2),
        "first_shard_s": round(commits[0].at - started_at, 3),
        "shards": len(commits),
    }
