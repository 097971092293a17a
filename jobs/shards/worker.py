"""The actor of a shard job. It imports as little as possible, because every worker waits for the imports."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import ray

from cluster.logging_setup import WorkLog
from jobs.progress import status
from jobs.progress.job_metrics import WorkerMetrics
from jobs.progress.status import Count
from library import storage
from library.dataset.manifest import Report, Tally, manifest_uri
from library.dataset.task import ShardJob, ShardTask
from library.errors import StriateError
from library.steps.plugins import Plugin, install

_BEAT_EVERY_S = 1.0
# A picture that crashes a library crashes it again. Only started shards count, not tasks queued at a worker that died.
_MAX_ATTEMPTS = 4
_GIVEN_UP = (
    "shard {task.dataset}/{task.stem}: its worker died {times} times while it worked on this shard; a picture in it "
    "crashes a library, or the worker ran out of memory. Finished shards are kept, and the same command resumes"
)


@dataclass(frozen=True)
class ShardResult:
    """The result of one task: a row of the dataset that Ray Data maps.

    Attributes:
        number: index of the task in the job.
        report: the shard's report as JSON; empty if the shard failed.
        error: why the shard failed; empty if it did not.
        waited_s: seconds without work before this shard.
        rss: largest resident size of the worker so far, in bytes.
        node: Ray's id of the worker's node.
    """

    number: int
    report: str
    error: str
    waited_s: float
    rss: int
    node: str


class ShardWorker:
    """Processes one shard after another; a failure becomes a row, so that the driver reports it once and in full."""

    def __init__(
        self,
        job: ShardJob[Report],
        run: str,
        command: str,
        used_plugins: Sequence[Plugin] = (),
        bundle_id: str = "",
    ) -> None:
        import cv2

        self._job = job
        self._used_plugins = used_plugins
        self._run = run
        self._metrics = WorkerMetrics(command)
        context = ray.get_runtime_context()
        self._node = context.get_node_id()
        names = {"command": command, "run": run, "ray_job": context.get_job_id(), "node": self._node}
        self._log = WorkLog(**names, **({"bundle_id": bundle_id} if bundle_id else {}))
        self._checked: set[str] = set()
        self._heartbeat = _Heartbeat(run)
        self._idle_since = time.perf_counter()
        # One worker a CPU: threads inside the libraries would only compete with the other workers.
        cv2.setNumThreads(1)
        pa.set_cpu_count(1)
        # Imported modules need not be scanned by every garbage collection.
        gc.freeze()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Runs the task of a row (`task_row`) and returns a `ShardResult` as a row."""
        number, task = row.pop("number"), ShardTask(**row)
        start = time.perf_counter()
        waited_s = start - self._idle_since
        report, error = "", ""
        try:
            report = self._commit(task, start)
        except StriateError as failure:
            error = str(failure)
        except Exception:  # the driver reports any error with its shard
            error = f"shard {task.dataset}/{task.stem}: {traceback.format_exc()}"
        if error:
            self._log.error("shard failed", extra={"shard": f"{task.dataset}/{task.stem}", "error": error})
        _give_back_memory()
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._idle_since = time.perf_counter()
        return asdict(ShardResult(number, report, error, waited_s, rss, self._node))

    def _commit(self, task: ShardTask, start: float) -> str:
        """Runs a task; returns its report as JSON."""
        shard = f"{task.dataset}/{task.stem}"
        begun = status.begin_shard(self._run, shard)
        if begun > _MAX_ATTEMPTS:
            raise StriateError(_GIVEN_UP.format(task=task, times=begun - 1))
        self._check_visible(task.dataset)
        install(self._used_plugins)
        with self._heartbeat.shard(shard) as progress:
            report = self._job.run(task, progress)
        self._metrics.shard(task.dataset, report)
        status.end_shard(self._run, shard)
        counts = asdict(count_of(report.tally, shards=1)) | {"kept": report.tally.rows_out}
        del counts["beats"]
        took = round(time.perf_counter() - start, 3)
        names = {"shard": shard, "dataset_id": storage.uri_id(task.dataset)}
        self._log.info("shard done", extra={**names, **counts, "seconds": took})
        return report.model_dump_json()

    def _check_visible(self, dataset: str) -> None:
        """Raises StriateError if this node does not see the dataset's folder, which may exist on one machine only.

        The driver checks the nodes that are up when it starts; this node may have joined later.
        """
        if dataset in self._checked or storage.is_remote(dataset):
            return
        if not storage.exists(manifest_uri(dataset)):
            raise StriateError(
                f"node {self._node[:8]} does not see {dataset}: with several nodes, datasets must be on storage that "
                "all nodes share: s3://BUCKET/..., or a file system that is mounted at the same path on all nodes"
            )
        self._checked.add(dataset)


def _give_back_memory() -> None:
    """Returns freed memory to the system: glibc keeps it per thread, and threads come and go with tasks."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class _Heartbeat:
    """Publishes the counts of the worker's shard once a second, which also shows that the worker is alive."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._lock = threading.Lock()  # a finished shard must not be published again
        self._shard: str | None = None
        self._tallies: list[Tally] = []
        self._beats = 0
        threading.Thread(target=self._beat, daemon=True).start()

    @contextlib.contextmanager
    def shard(self, name: str) -> Generator[Callable[[Tally], None]]:
        """Publishes the counts of a shard during the block; yields the function that adds those of a batch."""
        with self._lock:
            self._shard, self._tallies, self._beats = name, [], 0
        try:
            yield self._tallies.append
        finally:
            with self._lock:
                self._shard = None

    def _beat(self) -> None:
        while True:
            time.sleep(_BEAT_EVERY_S)  # the thread ends with the worker's process
            with self._lock:
                if self._shard is not None:
                    self._beats += 1
                    count = count_of(Tally.total(list(self._tallies)), beats=self._beats)
                    status.put_count(self._run, self._shard, count)


def worker_class(command: str) -> type[ShardWorker]:
    """Returns `ShardWorker` under a name that Ray's dashboard and process titles show for a command's workers."""
    return type(f"striate_{command}", (ShardWorker,), {})


def task_row(number: int, task: ShardTask) -> dict[str, Any]:
    """Returns a task as a row of the dataset that Ray Data maps."""
    return {"number": number, **asdict(task)}


def count_of(tally: Tally, *, shards: int = 0, beats: int = 0) -> Count:
    """Returns the counts of a shard for the progress display."""
    dropped, rejected = sum(tally.dropped.values()), sum(tally.rejected.values())
    return Count(shards, tally.rows_in, tally.image_bytes_in, dropped, rejected, beats)
