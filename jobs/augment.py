"""Random copies of a dataset's pictures, shard by shard: `striate augment`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.session import connect
from jobs.filter import shard_tasks
from library import storage
from library.augment_work import AugmentJob
from library.augmentation import Augmenter, parse_augmentation
from library.codec import Encoding
from library.destination import check_apart, check_claim, claim, committed, finish
from library.errors import UsageError
from library.manifest import Job, Manifest, load_manifest
from library.shard_work import ShardTask

_MOST_COPIES = 10_000


@dataclass(frozen=True)
class AugmentPlan:
    """What an augment job is going to do.

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
    work: AugmentJob
    overwrite: bool = False

    def described(self) -> dict[str, Any]:
        """For --dry-run: what is there, what is done, what is to do."""
        done = committed(self.tasks, self.work)
        todo = [task for task in self.tasks if (task.dataset, task.stem) not in done]
        pictures = sum(min(task.rows, task.max_rows or task.rows) for task in todo)
        return {
            "source": self.source,
            "destination": self.destination,
            "pipeline": self.work.pipeline,
            "encode": self.work.encode,
            "seed": self.work.seed,
            "copies": self.work.copies,
            "keep_original": self.work.keep_original,
            "shards": len(self.tasks),
            "shards_done": len(done),
            "shards_to_do": len(todo),
            "copies_to_do": pictures * (self.work.copies + self.work.keep_original),
        }


def plan_augment(
    source: str,
    destination: str,
    steps: str,
    *,
    copies: int,
    keep_original: bool = False,
    seed: int = 0,
    encode: str = "keep",
    limit: int | None = None,
    overwrite: bool = False,
) -> AugmentPlan:
    """Check everything that can be checked before Ray is started; writes nothing.

    Args:
        source: URI of a dataset.
        destination: URI of the dataset to make.
        steps: augmentations, with filters among them.
        copies: of each picture, under the keys `key#1`, `key#2`, ...
        keep_original: write each picture, unchanged, under its own key too.
        seed: of all randomness.
        encode: how changed pictures are stored.
        limit: only the first so many pictures.
        overwrite: replace what another job left at the destination.

    Raises:
        UsageError: whatever is wrong with the request.
    """
    source, destination = storage.normalize(source), storage.normalize(destination)
    pipeline = parse_augmentation(steps)
    Augmenter(pipeline, seed)
    encoding = str(Encoding.parse(encode))
    if not 1 <= copies <= _MOST_COPIES:
        raise UsageError(f"--copies {copies}: from 1 to {_MOST_COPIES:,} a picture")
    if seed < 0:
        raise UsageError(f"--seed {seed}: from 0")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: at least 1 picture")
    check_apart(source, destination)
    manifest = load_manifest(source)
    if keep_original and any(job.kind == "augment" for job in manifest.jobs):
        raise UsageError(
            f"{source} holds copies already, and with --keep-original two pictures could get one key: leave it out, or "
            "augment what that dataset was made from"
        )
    job = Job(
        kind="augment",
        source=source,
        source_digest=manifest.digest,
        pipeline=str(pipeline),
        pipeline_digest=pipeline.digest,
        encode=encoding,
        options={"copies": copies, "keep_original": keep_original, "seed": seed, "limit": limit},
    )
    check_claim(destination, job, overwrite=overwrite)
    work = AugmentJob(source, str(pipeline), copies, seed, keep_original, encoding)
    tasks = shard_tasks(manifest, destination, limit)
    return AugmentPlan(source, destination, (*manifest.jobs, job), tasks, work, overwrite)


def augment_dataset(plan: AugmentPlan, *, workers: str = "auto", address: str | None = None) -> Manifest:
    """Carry out a plan; a killed job goes on where it was when this is called again.

    Returns:
        The manifest of the finished destination; its counts are in copies.

    Raises:
        StriateError: when a shard fails; those done by then stay.
    """
    with connect(address) as session:
        from jobs.shard_runner import run_shards

        num_workers = session.workers(workers)
        claim(plan.destination, plan.jobs, overwrite=plan.overwrite)
        run = run_shards("augment", plan.work, plan.tasks, num_workers)
    reports = [run.reports[task.dataset, task.stem] for task in plan.tasks]
    return finish(plan.destination, plan.jobs, reports, run=run.summary(plan.destination, num_workers))
