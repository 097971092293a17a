"""Runs a shard job on Ray Data: one dataset of tasks, one `map` over a pool of actors, and passes over what is left.

A report on disk is the commit of its shard, so Ray Data need not be reliable. Ray Data restarts a worker that dies and
sends it its tasks again; where it cannot be scheduled the pass ends, and what has no report is mapped in the next pass.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import logging
import sys
import time
import uuid
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Protocol

import ray.data
from ray.exceptions import RayError

from cluster.console import say
from jobs.progress import status
from jobs.progress.display import Progress
from jobs.progress.job_metrics import JobMetrics
from jobs.progress.status import Count
from jobs.shards.pool_size import WorkerPool
from jobs.shards.worker import ShardResult, count_of, task_row, worker_class
from library.dataset.manifest import Report
from library.dataset.task import ShardJob, ShardTask
from library.errors import StriateError
from library.steps import plugins

# A worker that can be scheduled is up long before, and a user would take silence for a fault.
_WAITS_S = 15.0
# Without a heartbeat or a report from any worker, at as many looks at least: what is left waits at workers that cannot
# be scheduled again.
_STALLED_S, _STALLED_LOOKS = 30.0, 3


class Results(Protocol):
    """Takes up the reports of a job's shards, in any order."""

    def add(self, task: ShardTask, report: str) -> Report:
        """Add the report of a shard, given as JSON; returns it."""
        ...


@dataclasses.dataclass
class ShardRun:
    """How a job's tasks were run.

    Attributes:
        pictures: read in this run, by dataset.
        waited_s: seconds the workers had no shard to work on, summed over workers, by dataset of the next shard.
        wall_s: seconds from the first task handed out to the last report.
        first_report_s: seconds to the first report.
        peak_rss: largest resident size of a worker, in bytes.
        nodes: shards done on each node, by dataset and Ray's id of the node.
        ray_data: Ray Data's statistics of the passes, as `Dataset.stats` prints them.
    """

    pictures: Counter[str] = dataclasses.field(default_factory=Counter[str])
    waited_s: Counter[str] = dataclasses.field(default_factory=Counter[str])
    wall_s: float = 0.0
    first_report_s: float | None = None
    peak_rss: int = 0
    nodes: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter[tuple[str, str]])
    ray_data: list[str] = dataclasses.field(default_factory=list[str])


def run_shards(
    command: str,
    job: ShardJob[Report],
    tasks: Sequence[ShardTask],
    pool: WorkerPool,
    results: Results,
    *,
    done: Mapping[str, int] | None = None,
) -> ShardRun:
    """Run tasks until each has a report.

    Args:
        command: for the progress display, the metrics and Ray's dashboard.
        job: what to do with each task.
        tasks: those that have no report yet.
        pool: the workers.
        results: takes up the reports.
        done: shards that had a report before, by dataset; for the metrics.

    Raises:
        StriateError: from the first shard that failed; the shards done by then stay.
    """
    if not tasks:
        return ShardRun()
    engine = _Engine(command, job, tasks, pool, results, done or {})
    try:
        with Progress(command, len(tasks), sum(task.pictures for task in tasks), engine.look):
            engine.work()
    except RayError as error:
        cause = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
        raise StriateError(
            f"Ray could not run the job: {cause}; is the same version of striate installed on every node? Finished "
            "shards are kept, and the same command resumes"
        ) from error
    finally:
        with contextlib.suppress(RayError, RuntimeError):  # the head may be lost
            status.clear(engine.name)
    return engine.run


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
    ) -> None:
        self.name = uuid.uuid4().hex
        self.run = ShardRun()
        self._command, self._job, self._tasks, self._pool, self._results = command, job, tasks, pool, results
        planned = Counter(task.dataset for task in tasks) + Counter(done)
        self._metrics = JobMetrics(command, planned, done)
        self._finished = Count()
        self._changed_at = time.monotonic()
        self._last: Count | None = None
        self._unchanged = 0
        self._begun = self._said = False

    def work(self) -> None:
        """Pass over the tasks until each has a report.

        Raises:
            StriateError: from the first shard that failed.
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
        """Map what is left once; yields the results, which are not all where the pass stalls."""
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
                fn_constructor_args=(self._job, self.name, self._command, plugins.loaded()),
                compute=self._pool.strategy(len(rows)),
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
        """Count a shard that is done."""
        report, run = self._results.add(task, result.report), self.run
        run.pictures[task.dataset] += report.tally.rows_in
        run.waited_s[task.dataset] += result.waited_s  # pyright: ignore[reportArgumentType] -- sums floats as well
        run.peak_rss = max(run.peak_rss, result.rss)
        run.nodes[task.dataset, result.node] += 1
        self._finished = Count.total([self._finished, count_of(report.tally, shards=1)])
        self._metrics.one_more(task.dataset)

    def look(self) -> Count:
        """The work done by now; also says what a job waits for that has no worker yet."""
        count, now = Count.total([*status.counts_in_progress(self.name), self._finished]), time.monotonic()
        self._unchanged += 1
        if count != self._last:
            self._begun, self._last, self._changed_at, self._unchanged = self._last is not None, count, now, 0
        elif not self._begun and not self._said and now - self._changed_at > _WAITS_S:
            self._said = True
            say(self._pool.waiting(), file=sys.stderr, flush=True)
        return count

    def check_stalled(self) -> None:
        """Raise _StalledError where the pass cannot end."""
        unchanged_s = time.monotonic() - self._changed_at
        if self._begun and self._unchanged >= _STALLED_LOOKS and unchanged_s > _STALLED_S:
            raise _StalledError


_engine: contextvars.ContextVar[_Engine] = contextvars.ContextVar("_engine")


@contextlib.contextmanager
def _watched(engine: _Engine) -> Generator[None]:
    """Names the engine whose passes `_StallWatch` looks at."""
    token = _engine.set(engine)
    try:
        yield
    finally:
        _engine.reset(token)


class _StallWatch:
    """Ends a pass that has stalled: Ray Data calls `on_execution_step` again and again, in a thread of its own.

    A worker whose node is lost restarts elsewhere, but where no CPU is free it waits, and with it the task that Ray had
    sent there meanwhile. A class on its own, since Ray Data sends it to the workers by name.
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
