"""Maps a shard job over its tasks on Ray, and keeps count."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from ray.exceptions import RayError

from jobs import board
from jobs.board import Count
from jobs.metrics import PlanMetrics
from jobs.progress import Progress
from jobs.shard_worker import ShardWorker, count_of
from jobs.worker_pool import WorkerPool
from library.destination import committed
from library.errors import StriateError
from library.manifest import ShardReport
from library.shard_work import ShardJob, ShardTask
from library.totals import Totals


@dataclasses.dataclass
class ShardRun:
    """What came of running a job's tasks.

    Attributes:
        made: what the reports of all shards say, also of those done before, by dataset.
        resumed: shards that were done before, by dataset.
        pictures: read in this run, by dataset.
        waited_s: seconds the workers had no shard to work on, summed over workers, by dataset of the next shard.
        wall_s: seconds from the first task handed out to the last report.
        first_report_s: seconds to the first report.
        peak_rss: largest resident size of a worker, in bytes.
        nodes: shards made on each node, by dataset and Ray's id of the node.
    """

    made: defaultdict[str, Totals] = dataclasses.field(default_factory=lambda: defaultdict(Totals))
    resumed: Counter[str] = dataclasses.field(default_factory=Counter[str])
    pictures: Counter[str] = dataclasses.field(default_factory=Counter[str])
    waited_s: Counter[str] = dataclasses.field(default_factory=Counter[str])
    wall_s: float = 0.0
    first_report_s: float | None = None
    peak_rss: int = 0
    nodes: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter[tuple[str, str]])

    def summary(self, dataset: str, num_workers: int) -> dict[str, Any]:
        """How the making of one dataset went, for its manifest's `run` and the closing message.

        `seconds` counts every shard, whenever it was made; the rest this run only.
        """
        seconds = {**self.made[dataset].seconds, "waiting": self.waited_s[dataset]}
        return {
            "workers": num_workers,
            "shards": self.made[dataset].shards,
            "shards_resumed": self.resumed[dataset],
            "pictures_made": self.pictures[dataset],
            "wall_s": round(self.wall_s, 3),
            "first_shard_s": self.first_report_s and round(self.first_report_s, 3),
            "seconds": {stage: round(spent, 3) for stage, spent in seconds.items()},
            "worker_rss_bytes": self.peak_rss,
            "shards_by_node": {
                node: shards for (where, node), shards in sorted(self.nodes.items()) if where == dataset
            },
        }


def run_shards(
    title: str,
    job: ShardJob[ShardReport],
    tasks: Sequence[ShardTask],
    num_workers: int,
    *,
    num_cpus: int = 1,
    num_gpus: int = 0,
) -> ShardRun:
    """Make every shard that is not made yet.

    Args:
        title: the command, for the progress display and the metrics.
        job: what to do with each.
        tasks: all shards of the job.
        num_workers: how many actors.
        num_cpus: logical CPUs of each.
        num_gpus: GPUs of each.

    Raises:
        StriateError: from the first shard that failed; the shards done by then stay.
    """
    run, done = ShardRun(), set[tuple[str, str]]()
    for task, report in committed(tasks, job):
        done.add((task.dataset, task.stem))
        run.resumed[task.dataset] += 1
        run.made[task.dataset].add(report)
    todo = [task for task in tasks if (task.dataset, task.stem) not in done]
    if not todo:
        return run
    name, finished = uuid.uuid4().hex, Count()
    metrics = PlanMetrics(title, Counter(task.dataset for task in tasks), run.resumed)

    def snapshot() -> Count:
        return Count.total([*board.in_work(name), finished])

    start = time.monotonic()
    with Progress(title, len(todo), sum(task.pictures for task in todo), snapshot):
        workers: WorkerPool[ShardTask] = WorkerPool(
            ShardWorker, (job, name, title), min(num_workers, len(todo)), num_cpus=num_cpus, num_gpus=num_gpus
        )
        try:
            for row in workers.run(todo):
                if row["error"]:
                    raise StriateError(row["error"])
                report = ShardReport.model_validate_json(row["report"])
                run.made[row["dataset"]].add(report)
                run.pictures[row["dataset"]] += report.tally.rows_in
                run.waited_s[row["dataset"]] += row["waited_s"]
                run.peak_rss = max(run.peak_rss, row["rss"])
                run.nodes[row["dataset"], row["node"]] += 1
                finished = Count.total([finished, count_of(report.tally, shards=1)])
                metrics.one_more(row["dataset"])
                run.first_report_s = run.first_report_s or time.monotonic() - start
        except RayError as error:
            cause = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
            raise StriateError(
                f"Ray could not run the job: {cause}; is striate installed on every node, in one version? "
                "The shards that are done stay, the same command goes on from there"
            ) from error
        finally:
            with contextlib.suppress(RayError, RuntimeError):  # the head may be gone
                workers.stop()
                board.clear(name)
    run.wall_s = time.monotonic() - start
    return run
