"""The actor that makes shards. What a worker imports, each worker waits for at its start: so no more than it needs."""

from __future__ import annotations

import gc
import resource
import time
import traceback
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray

from jobs import board
from jobs.board import Count
from jobs.metrics import WorkMetrics
from library import storage
from library.errors import StriateError
from library.json_lines import WorkLog
from library.manifest import ShardReport, Tally
from library.shard_work import ShardJob, ShardTask

_REPORT_EVERY_S = 1.0
# A picture that crashes a decoder crashes it again. Only what was really begun counts, not what waited at a worker
# that died.
_MAX_ATTEMPTS = 4
_GIVEN_UP = (
    "shard {task.dataset}/{task.stem}: its worker died {times} times while it was in work; a picture in it crashes a "
    "library, or the worker ran out of memory. The shards that are done stay, the same command goes on from there"
)


class ShardWorker:
    """An actor that makes one shard after another; a failure comes back as a row, so that it is told once and whole."""

    def __init__(self, job: ShardJob[ShardReport], run: str, command: str) -> None:
        import cv2

        self._job = job
        self._run = run
        self._metrics = WorkMetrics(command)
        context = ray.get_runtime_context()
        self._node = context.get_node_id()
        names = {"command": command, "run": run, "ray_job": context.get_job_id(), "node": self._node}
        bundle_id = getattr(job, "bundle_id", None)
        self._log = WorkLog(**names, **({"bundle_id": bundle_id} if bundle_id else {}))
        self._idle_since = time.perf_counter()
        # One worker a CPU: threads inside the libraries would only take turns with the other workers.
        cv2.setNumThreads(1)
        pa.set_cpu_count(1)
        # What was imported stays: the garbage collector need not walk it again and again.
        gc.freeze()

    def run(self, task: ShardTask) -> dict[str, Any]:
        """Make one shard; returns its report, or the error, with what the driver counts."""
        start = time.perf_counter()
        waited, shard = start - self._idle_since, f"{task.dataset}/{task.stem}"
        result: dict[str, Any] = {"dataset": task.dataset, "report": "", "error": "", "waited_s": waited}
        result["node"] = self._node
        begun = board.begin(self._run, shard)
        try:
            if begun > _MAX_ATTEMPTS:
                raise StriateError(_GIVEN_UP.format(task=task, times=begun - 1))
            report = self._job.run(task, self._teller(task))
            result["report"] = report.model_dump_json()
            self._metrics.shard(task.dataset, report)
            board.end(self._run, shard)
            counts = asdict(count_of(report.tally, shards=1)) | {"kept": report.tally.rows_out}
            took = round(time.perf_counter() - start, 3)
            named = {"shard": shard, "dataset_id": storage.uri_id(task.dataset)}
            self._log.info("shard done", extra={**named, **counts, "seconds": took})
        except StriateError as error:
            result["error"] = str(error)
        except Exception:  # the driver tells of it, whatever it is, and this worker goes on
            result["error"] = f"shard {shard}: {traceback.format_exc()}"
        if result["error"]:
            self._log.error("shard failed", extra={"shard": shard, "error": result["error"]})
        result["rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._idle_since = time.perf_counter()
        return result

    def _teller(self, task: ShardTask) -> Any:
        """Tells the board at most once a second how far this shard is."""
        tallies: list[Tally] = []
        told = time.monotonic()

        def tell(tally: Tally) -> None:
            nonlocal told
            tallies.append(tally)
            if time.monotonic() - told >= _REPORT_EVERY_S:
                told = time.monotonic()
                board.put(self._run, f"{task.dataset}/{task.stem}", count_of(Tally.total(tallies)))

        return tell


def count_of(tally: Tally, shards: int = 0) -> Count:
    """A shard's counts for the progress display."""
    dropped, rejected = sum(tally.dropped.values()), sum(tally.rejected.values())
    return Count(shards, tally.rows_in, tally.image_bytes_in, dropped, rejected)
