"""A job that turns the shards of one dataset into those of another, between its planning and its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cluster.shared_paths import check_shared
from jobs.places import Places
from library.destination import claim, committed, finish, shard_stem
from library.manifest import Job, Manifest, ShardReport
from library.shard_work import ShardJob, ShardTask

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


def make_shards(title: str, plan: ShardPlan[WorkT], places: Places, reads: Sequence[str] = ()) -> Manifest:
    """Carry out a plan on the Ray that this process is connected to; a killed job goes on where it was.

    Args:
        title: the command, for the progress display and the metrics.
        plan: what to do.
        places: who does it.
        reads: what workers read beside the source.

    Returns:
        The manifest of the finished destination.

    Raises:
        StriateError: when a shard fails; those done by then stay.
        UsageError: for a path that not all nodes share.
    """
    from jobs.shard_runner import run_shards

    check_shared(reads=[plan.source, *reads], writes=[plan.destination])
    pictures = sum(task.pictures for task in plan.tasks) * plan.made_of_each
    planned = {"shards_planned": len(plan.tasks), "pictures_planned": pictures}
    claim(plan.destination, plan.jobs, overwrite=plan.overwrite, planned=planned)
    run = run_shards(title, plan.work, plan.tasks, places.number, num_cpus=places.cpus, num_gpus=places.gpus)
    made = run.made[plan.destination]
    return finish(plan.destination, plan.jobs, made, run=run.summary(plan.destination, places.number))


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
