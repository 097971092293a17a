"""Runs a shard job on Ray Data: one dataset of tasks and one `map` over a pool of actors, repeated for what is left.

A report on disk is the commit of its shard, so Ray Data need not be reliable. Ray Data restarts a dead worker and sends
it its tasks again. If the worker cannot be scheduled, the pass ends, and the next pass maps tasks without a report.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import sys
import time
import uuid
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from cluster import ray_internals
from cluster.console import say
from jobs.progress import status
from jobs.progress.display import Progress
from jobs.progress.job_metrics import JobMetrics
from jobs.progress.status import Count
from jobs.shards.pool_size import WorkerPool
from jobs.shards.results import Results, ShardRun
from jobs.shards.worker import ShardResult, count_of, task_row, worker_class
from library.dataset.manifest import Report
from library.dataset.task import ShardJob, ShardTask
from library.errors import StriateError
from library.steps.plugins import Plugin

# After this long without a worker, a line says what the job waits for.
_WAITS_S = 15.0
# Without a heartbeat or report in this time and this many looks, the remaining tasks wait at workers that cannot be
# scheduled again.
_STALLED_S, _STALLED_LOOKS = 30.0, 3
# Below this many tasks per worker no task is queued at a worker, so that any idle worker can take it.
_FEW_TASKS = 4


def run_shards(
    command: str,
    job: ShardJob[Report],
    tasks: Sequence[ShardTask],
    pool: WorkerPool,
    results: Results,
    *,
    done: Mapping[str, int] | None = None,
    bundle_id: str = "",
    used_plugins: Sequence[Plugin] = (),
) -> ShardRun:
    """Runs tasks until each has a report.

    Args:
        command: for the progress display, the metrics and Ray's dashboard.
        job: what to do with each task.
        tasks: those that have no report yet.
        pool: the workers.
        results: collects the reports.
        done: number of shards with an earlier report, by dataset; for the metrics.
        bundle_id: of the classifier, for log lines; empty for none.
        used_plugins: the plugins whose steps run; each worker gets them.

    Raises:
        StriateError: from the first failed shard; finished shards are kept.
    """
    if not tasks:
        return ShardRun()
    engine = _Engine(command, job, tasks, pool, results, done or {}, bundle_id, used_plugins)
    try:
        with (
            ray_internals.lean_data(),
            Progress(command, len(tasks), sum(task.pictures for task in tasks), engine.look),
        ):
            engine.work()
    except RayError as error:
        cause = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
        raise StriateError(
            f"Ray could not run the job: {cause}; is the same version of striate installed on every node? Finished "
            "shards are kept, and the same command resumes"
        ) from error
    finally:
        engine.metrics.end()
        with contextlib.suppress(RayError, RuntimeError):  # the head may be lost
            status.clear(engine.name)
    return engine.run


def _strategy(pool: WorkerPool, tasks: int) -> ActorPoolStrategy:
    """Returns Ray Data's pool of actors for a number of tasks."""
    number = min(pool.number, tasks)
    # Each worker has one running and one queued task, so that it never waits for the driver. With few tasks none is
    # queued: another worker could run it. The queued task has its own thread, and starts before the other's result is
    # stored. A growing pool must not have that thread: Ray Data adds workers when there are more tasks than threads.
    few = tasks < _FEW_TASKS * number
    return ActorPoolStrategy(
        min_size=1 if pool.grows else number,
        max_size=tasks if pool.grows else number,
        initial_size=number,
        max_tasks_in_flight_per_actor=1 if few and not pool.grows else 2,
        max_concurrent_calls_per_actor=1 if few or pool.grows else 2,
    )


def _waiting(pool: WorkerPool) -> str:
    """Returns the message while no worker has started."""
    free, total = ray.available_resources(), ray.cluster_resources()
    gpus = f" and {pool.gpus} GPU" if pool.gpus else ""
    some = [f"{free.get('CPU', 0):g} of {total.get('CPU', 0):g} CPUs"]
    if pool.gpus:
        some.append(f"{free.get('GPU', 0):g} of {total.get('GPU', 0):g} GPUs")
    return (
        f"waiting for resources: each worker needs {pool.cpus} CPU{gpus}, and {' and '.join(some)} are free. Other "
        "jobs may be using them, or nodes are still starting (`ray status`)"
    )


class _StalledError(Exception):
    """Ends a pass whose last tasks wait at workers that cannot be scheduled again."""


class _Engine:
    """Maps the tasks of one call of `run_shards`."""

    def __init__(
        self,
        command: str,
        job: ShardJob[Report],
        tasks: Sequence[ShardTask],
        pool: WorkerPool,
        results: Results,
        done: Mapping[str, int],
        bundle_id: str,
        used_plugins: Sequence[Plugin],
    ) -> None:
        self.name = uuid.uuid4().hex
        self.run = ShardRun()
        self._bundle_id, self._used_plugins = bundle_id, used_plugins
        self._command, self._job, self._tasks, self._pool, self._results = command, job, tasks, pool, results
        planned = Counter(task.dataset for task in tasks) + Counter(done)
        self.metrics = JobMetrics(command, planned, done)
        self._finished = Count()
        self._changed_at = time.monotonic()
        self._last: Count | None = None
        self._unchanged = 0
        self._begun = self._waiting_reported = False

    def work(self) -> None:
        """Maps the tasks again and again until each has a report.

        Raises:
            StriateError: from the first failed shard.
        """
        start, left = time.monotonic(), dict(enumerate(self._tasks))
        while left:
            for result in self._pass(left):
                if result.error:
                    raise StriateError(result.error)
                self._take(left.pop(result.number), result)
                self.run.first_report_s = self.run.first_report_s or time.monotonic() - start
        self.run.wall_s = time.monotonic() - start

    def _pass(self, left: Mapping[int, ShardTask]) -> Iterator[ShardResult]:
        """Maps the remaining tasks once and yields their results; fewer than the tasks if the pass stalls."""
        # Ray Data reports each start and end on the terminal; everything stays in its log files.
        for handler in logging.getLogger("ray.data").handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.CRITICAL)
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        watch: Any = _StallWatch  # Ray Data calls its methods; their base class has no public name
        context.custom_execution_callback_classes = [watch]
        worker: Any = worker_class(self._command)
        self._changed_at, self._begun, self._unchanged = time.monotonic(), False, 0
        with ray.data.DataContext.current(context), _watched(self):
            rows = [task_row(number, task) for number, task in left.items()]
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                worker,
                fn_constructor_args=(self._job, self.name, self._command, self._used_plugins, self._bundle_id),
                compute=_strategy(self._pool, len(rows)),
                num_cpus=self._pool.cpus,
                num_gpus=self._pool.gpus,
            )
            dataset.set_name(f"striate {self._command}")
            batches: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
            with contextlib.suppress(_StalledError):
                for batch in batches:
                    yield from (ShardResult(**row) for row in batch.to_pylist())
            self.run.ray_data.append(dataset.stats())

    def _take(self, task: ShardTask, result: ShardResult) -> None:
        """Counts a finished shard."""
        report, run = self._results.add(task, result.report), self.run
        run.pictures[task.dataset] += report.tally.rows_in
        run.waited_s[task.dataset] += result.waited_s  # pyright: ignore[reportArgumentType] -- sums floats as well
        run.peak_rss = max(run.peak_rss, result.rss)
        run.nodes[task.dataset, result.node] += 1
        self._finished = Count.total([self._finished, count_of(report.tally, shards=1)])
        self.metrics.one_more(task.dataset)

    def look(self) -> Count:
        """Returns the work done so far. If no worker has started, prints once what the job waits for."""
        count, now = Count.total([*status.counts_in_progress(self.name), self._finished]), time.monotonic()
        self._unchanged += 1
        if count != self._last:
            self._begun, self._last, self._changed_at, self._unchanged = self._last is not None, count, now, 0
        elif not self._begun and not self._waiting_reported and now - self._changed_at > _WAITS_S:
            self._waiting_reported = True
            say(_waiting(self._pool), file=sys.stderr, flush=True)
        return count

    def check_stalled(self) -> None:
        """Raises _StalledError if the pass cannot end."""
        unchanged_s = time.monotonic() - self._changed_at
        if self._begun and self._unchanged >= _STALLED_LOOKS and unchanged_s > _STALLED_S:
            raise _StalledError


_engine: contextvars.ContextVar[_Engine] = contextvars.ContextVar("_engine")


@contextlib.contextmanager
def _watched(engine: _Engine) -> Generator[None]:
    """Sets the engine whose passes `_StallWatch` checks."""
    token = _engine.set(engine)
    try:
        yield
    finally:
        _engine.reset(token)


class _StallWatch:
    """Ends a stalled pass: Ray Data calls `on_execution_step` repeatedly in its own thread.

    A worker of a lost node restarts elsewhere, but if no CPU is free it waits, and so does the task that Ray has sent
    to it. This is a separate class because Ray Data sends it to the workers by name.
    """

    def __init__(self) -> None:
        self._engine = _engine.get()

    def before_execution_starts(self, executor: object) -> None:
        """Nothing to do."""

    def on_execution_step(self, executor: object) -> None:
        self._engine.check_stalled()

    def after_execution_succeeds(self, executor: object) -> None:
        """Nothing to do."""

    def after_execution_fails(self, executor: object, error: Exception) -> None:
        """Nothing to do."""
