"""A job that writes one dataset from the shards of another: its plan, and how a plan is carried out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cluster.shared_paths import check_shared
from jobs.shards.pool_size import WorkerPool
from jobs.shards.results import DatasetResults
from library import storage
from library.dataset.destination import check_unchanged, claim, committed, finish, shard_stem
from library.dataset.manifest import Job, Manifest, ShardReport
from library.dataset.shards import ShardReader
from library.dataset.task import ShardJob, ShardTask
from library.pipeline.annotations import Annotations, Wanted, find_annotations
from library.steps.base import Step
from library.steps.plugins import Plugin

WorkT = TypeVar("WorkT", bound=ShardJob[ShardReport])


@dataclass(frozen=True)
class ShardPlan(Generic[WorkT]):
    """The plan of a job.

    Attributes:
        source: URI of the dataset that is read.
        destination: URI of the dataset that is written.
        jobs: history of the destination; the last is this job.
        tasks: every shard.
        work: what is done to each.
        facts: the options, for --dry-run.
        overwrite: whether to replace what another job left at the destination.
        unit: what is counted: `pictures` or `copies`.
        units_per_picture: number of units that are written for each picture.
        used_plugins: the plugins whose steps run.
    """

    source: str
    destination: str
    jobs: Sequence[Job]
    tasks: Sequence[ShardTask]
    work: WorkT
    facts: Mapping[str, Any]
    overwrite: bool = False
    unit: str = "pictures"
    units_per_picture: int = 1
    used_plugins: Sequence[Plugin] = ()

    def described(self) -> dict[str, Any]:
        """Returns the plan for --dry-run: options, and shards done and to do."""
        done = {(task.dataset, task.stem) for task, _ in committed(self.tasks, self.work)}
        todo = [task for task in self.tasks if (task.dataset, task.stem) not in done]
        return {
            "source": self.source,
            "destination": self.destination,
            **self.facts,
            "shards": len(self.tasks),
            "shards_done": len(done),
            "shards_to_do": len(todo),
            f"{self.unit}_to_do": sum(task.pictures for task in todo) * self.units_per_picture,
        }


def make_shards(
    command: str, plan: ShardPlan[WorkT], pool: WorkerPool, reads: Sequence[str] = (), bundle_id: str = ""
) -> Manifest:
    """Carries out a plan on the connected Ray; resumes a killed job.

    Args:
        command: for the progress display and the metrics.
        plan: what to do.
        pool: the workers.
        reads: URIs that workers read besides the source.
        bundle_id: of the classifier, for log lines; empty for none.

    Returns:
        The manifest of the finished destination.

    Raises:
        StriateError: when a shard fails, or a source was changed meanwhile; finished shards are kept.
        UsageError: for a path that not all nodes share.
    """
    check_shared(reads=[plan.source, *reads], writes=[plan.destination])
    pictures = sum(task.pictures for task in plan.tasks) * plan.units_per_picture
    planned = {"shards_planned": len(plan.tasks), "pictures_planned": pictures}
    claim(plan.destination, plan.jobs, overwrite=plan.overwrite, planned=planned)
    results = run_tasks(command, plan.work, plan.tasks, pool, bundle_id, plan.used_plugins)
    check_unchanged(plan.jobs[-1])
    return finish(plan.destination, plan.jobs, results.totals[plan.destination], run=results.summary(plan.destination))


def run_tasks(
    command: str,
    work: ShardJob[ShardReport],
    tasks: Sequence[ShardTask],
    pool: WorkerPool,
    bundle_id: str = "",
    used_plugins: Sequence[Plugin] = (),
) -> DatasetResults:
    """Writes every shard that has no report yet.

    Args:
        command: for the progress display, the metrics and Ray's dashboard.
        work: what to do with each.
        tasks: all shards of the job.
        pool: the workers.
        bundle_id: of the classifier, for log lines; empty for none.
        used_plugins: the plugins whose steps run.

    Raises:
        StriateError: from the first failed shard; finished shards are kept.
    """
    from jobs.shards.runner import run_shards

    results, done = DatasetResults(pool), set[tuple[str, str]]()
    for task, report in committed(tasks, work):
        done.add((task.dataset, task.stem))
        results.resumed[task.dataset] += 1
        results.totals[task.dataset].add(report)
    todo = [task for task in tasks if (task.dataset, task.stem) not in done]
    results.run = run_shards(
        command, work, todo, pool, results, done=results.resumed, bundle_id=bundle_id, used_plugins=used_plugins
    )
    return results


def annotations_of(dataset: str, manifest: Manifest, steps: Sequence[Step], wanted: Wanted) -> Annotations:
    """Returns the columns of a dataset that follow what the steps do to a picture; raises as `find_annotations`."""
    if not manifest.shards:
        return Annotations()
    schema = ShardReader(storage.join(dataset, manifest.shards[0].name)).schema()
    return find_annotations(schema, steps, wanted)


def shard_tasks(manifest: Manifest, destination: str, limit: int | None) -> list[ShardTask]:
    """Returns one task for each shard, or for the first ones that hold `limit` pictures."""
    tasks: list[ShardTask] = []
    left = manifest.rows if limit is None else limit
    for shard in manifest.shards:
        if limit is not None and left <= 0 and tasks:
            break
        max_rows = left if left < shard.rows else None
        tasks.append(ShardTask(destination, shard_stem(shard.name), shard.digest, shard.rows, max_rows))
        left -= shard.rows
    return tasks
