"""Maps a shard job over its tasks on Ray, and keeps count."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import uuid
from collections import Counter
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


@dataclasses.dataclass
class ShardRun:
    """What came of running a job's tasks.

    Attributes:
        reports: of every task, also those done before, by dataset and stem.
        resumed: those that were done before.
        waited_s: seconds the workers had no shard to work on, summed over workers, by dataset of the next shard.
        wall_s: seconds from the first task handed out to the last report.
        first_report_s: seconds to the first report.
        peak_rss: largest resident size of a worker, in bytes.
        nodes: shards made on each node, by dataset and Ray's id of the node.
    """

    reports: dict[tuple[str, str], ShardReport]
    resumed: frozenset[tuple[str, str]]
    waited_s: Counter[str] = dataclasses.field(default_factory=Counter[str])
    wall_s: float = 0.0
    first_report_s: float | None = None
    peak_rss: int = 0
    nodes: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter[tuple[str, str]])

    def summary(self, dataset: str, num_workers: int) -> dict[str, Any]:
        """How the making of one dataset went, for its manifest's `run` and the closing message.

        `seconds` counts every shard, whenever it was made; the rest this run only.
        """
        mine = {where: report for where, report in self.reports.items() if where[0] == dataset}
        seconds: Counter[str] = Counter()
        for report in mine.values():
            seconds.update(report.seconds)
        seconds["waiting"] = self.waited_s[dataset]
        made = [report for where, report in mine.items() if where not in self.resumed]
        return {
            "workers": num_workers,
            "shards": len(mine),
            "shards_resumed": len(mine) - len(made),
            "pictures_made": sum(report.tally.rows_in for report in made),
            "wall_s": round(self.wall_s, 3),
            "first_shard_s": self.first_report_s and round(self.first_report_s, 3),
            "seconds": {stage: round(spent, 3) for stage, spent in seconds.items()},
            "worker_rss_bytes": self.peak_rss,
            "shards_by_node": {
                node: shards for (where, node), shards in sorted(self.nodes.items()) if where == dataset
            },
        }


def run_shards(
    title: str, job: ShardJob, tasks: Sequence[ShardTask], num_workers: int, *, num_cpus: int = 1, num_gpus: int = 0
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
    done = committed(tasks, job)
    todo = [task for task in tasks if (task.dataset, task.stem) not in done]
    run = ShardRun(dict(done), frozenset(done))
    if not todo:
        return run
    name, finished = uuid.uuid4().hex, dict[str, Count]()
    metrics = PlanMetrics(title, Counter(task.dataset for task in tasks), Counter(dataset for dataset, _ in done))

    def unfinished() -> dict[str, Count]:
        return board.take(name, {f"{task.dataset}/{task.stem}" for task in todo} - finished.keys())

    def snapshot() -> Count:
        return _sum([*unfinished().values(), *finished.values()], len(finished))

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
                run.reports[row["dataset"], report.stem] = report
                run.waited_s[row["dataset"]] += row["waited_s"]
                run.peak_rss = max(run.peak_rss, row["rss"])
                run.nodes[row["dataset"], row["node"]] += 1
                finished[f"{row['dataset']}/{report.stem}"] = count_of(report.tally)
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


def _sum(values: Sequence[Count], shards: int) -> Count:
    return Count(
        shards,
        sum(count.pictures for count in values),
        sum(count.image_bytes for count in values),
        sum(count.dropped for count in values),
        sum(count.rejected for count in values),
    )
