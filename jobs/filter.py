"""A dataset through a pipeline, shard by shard: `striate filter`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.session import connect
from library import storage
from library.codec import Encoding
from library.destination import check_apart, check_claim, claim, committed, finish, shard_stem
from library.errors import UsageError
from library.manifest import Job, Manifest, load_manifest
from library.pipeline import Pipeline
from library.shard_work import FilterJob, ShardTask


@dataclass(frozen=True)
class FilterPlan:
    """What a filter job is going to do.

    Attributes:
        jobs: history of the destination; the last is this job.
        tasks: every shard.
        work: what is done to each.
        overwrite: whether to replace what another job left at the destination.
    """

    source: str
    destination: str
    jobs: Sequence[Job]
    tasks: Sequence[ShardTask]
    work: FilterJob
    overwrite: bool = False

    def described(self) -> dict[str, Any]:
        """For --dry-run: what is there, what is done, what is to do."""
        done = committed(self.tasks, self.work)
        todo = [task for task in self.tasks if (task.dataset, task.stem) not in done]
        return {
            "source": self.source,
            "destination": self.destination,
            "pipeline": self.work.pipeline,
            "encode": self.work.encode,
            "shards": len(self.tasks),
            "shards_done": len(done),
            "shards_to_do": len(todo),
            "pictures_to_do": sum(min(task.rows, task.max_rows or task.rows) for task in todo),
        }


def plan_filter(
    source: str,
    destination: str,
    steps: str,
    *,
    encode: str = "keep",
    limit: int | None = None,
    overwrite: bool = False,
) -> FilterPlan:
    """Check everything that can be checked before Ray is started; writes nothing.

    Args:
        source: URI of a dataset.
        destination: URI of the dataset to make.
        steps: the pipeline; empty for a plain copy.
        encode: how changed pictures are stored.
        limit: only the first so many pictures.
        overwrite: replace what another job left at the destination.

    Raises:
        UsageError: whatever is wrong with the request.
    """
    source, destination = storage.normalize(source), storage.normalize(destination)
    pipeline = Pipeline.parse(steps, refuse="augmentation") if steps.strip() else Pipeline()
    encoding = str(Encoding.parse(encode))
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: at least 1 picture")
    check_apart(source, destination)
    manifest = load_manifest(source)
    job = Job(
        kind="filter",
        source=source,
        source_digest=manifest.digest,
        pipeline=str(pipeline),
        pipeline_digest=pipeline.digest,
        encode=encoding,
        options={"limit": limit},
    )
    check_claim(destination, job, overwrite=overwrite)
    return FilterPlan(
        source,
        destination,
        (*manifest.jobs, job),
        shard_tasks(manifest, destination, limit),
        FilterJob(source, str(pipeline), encoding),
        overwrite,
    )


def filter_dataset(plan: FilterPlan, *, workers: str = "auto", address: str | None = None) -> Manifest:
    """Carry out a plan; a killed job goes on where it was when this is called again.

    Returns:
        The manifest of the finished destination.

    Raises:
        StriateError: when a shard fails; those done by then stay.
    """
    with connect(address) as session:
        from jobs.shard_runner import run_shards

        num_workers = session.workers(workers)
        claim(plan.destination, plan.jobs, overwrite=plan.overwrite)
        run = run_shards("filter", plan.work, plan.tasks, num_workers)
    reports = [run.reports[task.dataset, task.stem] for task in plan.tasks]
    return finish(plan.destination, plan.jobs, reports, run=run.summary(plan.destination, num_workers))


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
