"""A job that turns the shards of one dataset into those of another, between its planning and its end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cluster.shared_paths import check_shared
from jobs.shards.pool_size import WorkerPool
from library.dataset.destination import claim, committed, finish, shard_stem
from library.dataset.manifest import Job, Manifest, ShardReport
from library.dataset.task import ShardJob, ShardTask
from library.dataset.totals import Totals

if TYPE_CHECKING:  # it imports Ray, and planning does not need it
    from jobs.shards.runner import ShardRun

WorkT = TypeVar("WorkT", bound=ShardJob[ShardReport])


@dataclass(frozen=True)
class ShardPlan(Generic[WorkT]):
    """What a job is going to do.

    Attributes:
        source: URI of the dataset that is read.
        destination: URI of the one that is made.
        jobs: history of the destination; the last is this job.
        tasks: every shard.
        work: what is done to each.
        facts: what is asked for, for --dry-run.
        overwrite: whether to replace what another job left at the destination.
        made: what `made_of_each` are called.
        made_of_each: how many are made of a picture.
    """

    source: str
    destination: str
    jobs: Sequence[Job]
    tasks: Sequence[ShardTask]
    work: WorkT
    facts: Mapping[str, Any]
    overwrite: bool = False
    made: str = "pictures"
    made_of_each: int = 1

    def described(self) -> dict[str, Any]:
        """For --dry-run: what is there, what is done, what is to do."""
        done = {(task.dataset, task.stem) for task, _ in committed(self.tasks, self.work)}
        todo = [task for task in self.tasks if (task.dataset, task.stem) not in done]
        return {
            "source": self.source,
            "destination": self.destination,
            **self.facts,
            "shards": len(self.tasks),
            "shards_done": len(done),
            "shards_to_do": len(todo),
            f"{self.made}_to_do": sum(task.pictures for task in todo) * self.made_of_each,
        }


def make_shards(title: str, plan: ShardPlan[WorkT], pool: WorkerPool, reads: Sequence[str] = ()) -> Manifest:
    """Carry out a plan on the Ray that this process is connected to; a killed job goes on where it was.

    Args:
        title: the command, for the progress display and the metrics.
        plan: what to do.
        pool: who does it.
        reads: what workers read beside the source.

    Returns:
        The manifest of the finished destination.

    Raises:
        StriateError: when a shard fails; those done by then stay.
        UsageError: for a path that not all nodes share.
    """
    check_shared(reads=[plan.source, *reads], writes=[plan.destination])
    pictures = sum(task.pictures for task in plan.tasks) * plan.made_of_each
    planned = {"shards_planned": len(plan.tasks), "pictures_planned": pictures}
    claim(plan.destination, plan.jobs, overwrite=plan.overwrite, planned=planned)
    made = run_tasks(title, plan.work, plan.tasks, pool)
    return finish(plan.destination, plan.jobs, made.totals[plan.destination], run=made.summary(plan.destination))


class DatasetResults:
    """What the reports of the shards of one or several datasets say together.

    Attributes:
        totals: over all shards, also those done before, by dataset.
        resumed: shards that were done before, by dataset.
    """

    def __init__(self, pool: WorkerPool) -> None:
        self.totals: defaultdict[str, Totals] = defaultdict(Totals)
        self.resumed: Counter[str] = Counter()
        self.run: ShardRun | None = None
        self._pool = pool

    def add(self, task: ShardTask, report: str) -> ShardReport:
        """Add the report of a shard, as JSON; returns it."""
        loaded = ShardReport.model_validate_json(report)
        self.totals[task.dataset].add(loaded)
        return loaded

    def summary(self, dataset: str) -> dict[str, Any]:
        """How the shards of one dataset were made, for the `run` of its manifest and the closing message.

        `seconds` counts every shard, whenever it was made; the rest this run only.
        """
        run, totals = self.run, self.totals[dataset]
        assert run is not None
        seconds = {**totals.seconds, "waiting": run.waited_s[dataset]}
        return {
            "workers": self._pool.number,
            "shards": totals.shards,
            "shards_resumed": self.resumed[dataset],
            "pictures_made": run.pictures[dataset],
            "wall_s": round(run.wall_s, 3),
            "first_shard_s": run.first_report_s and round(run.first_report_s, 3),
            "seconds": {stage: round(spent, 3) for stage, spent in seconds.items()},
            "worker_rss_bytes": run.peak_rss,
            "shards_by_node": {node: shards for (where, node), shards in sorted(run.nodes.items()) if where == dataset},
            "ray_data": run.ray_data,
        }


def run_tasks(command: str, job: ShardJob[ShardReport], tasks: Sequence[ShardTask], pool: WorkerPool) -> DatasetResults:
    """Make every shard that has no report yet.

    Args:
        command: for the progress display, the metrics and Ray's dashboard.
        job: what to do with each.
        tasks: all shards of the job.
        pool: the workers.

    Raises:
        StriateError: from the first shard that failed; the shards done by then stay.
    """
    from jobs.shards.runner import run_shards

    made, done = DatasetResults(pool), set[tuple[str, str]]()
    for task, report in committed(tasks, job):
        done.add((task.dataset, task.stem))
        made.resumed[task.dataset] += 1
        made.totals[task.dataset].add(report)
    todo = [task for task in tasks if (task.dataset, task.stem) not in done]
    made.run = run_shards(command, job, todo, pool, made, done=made.resumed)
    return made


def shard_tasks(manifest: Manifest, destination: str, limit: int | None) -> list[ShardTask]:
    """One task for each shard that is read: all of them, or the first ones that hold `limit` pictures."""
    tasks: list[ShardTask] = []
    left = manifest.rows if limit is None else limit
    for shard in manifest.shards:
        if left <= 0 and tasks:
            break
        max_rows = left if left < shard.rows else None
        tasks.append(ShardTask(destination, shard_stem(shard.name), shard.digest, shard.rows, max_rows))
        left -= shard.rows
    return tasks
