"""A dataset through a pipeline, shard by shard: `striate filter`."""

from __future__ import annotations

from cluster.connection.session import connect
from jobs.shards.dataset_job import ShardPlan, make_shards, shard_tasks
from jobs.shards.pool_size import pool_for_shards
from library import storage
from library.dataset.destination import check_apart, check_claim, remove_uncommitted
from library.dataset.lease import hold
from library.dataset.manifest import Job, Manifest, load_manifest
from library.errors import UsageError
from library.imaging.codec import Encoding
from library.pipeline import Pipeline
from library.steps import plugins
from library.work.filter_shard import FilterJob


def plan_filter(
    source: str,
    destination: str,
    steps: str,
    *,
    encode: str = "keep",
    limit: int | None = None,
    measure: bool = False,
    overwrite: bool = False,
) -> ShardPlan[FilterJob]:
    """Check everything that can be checked before Ray is started; writes nothing.

    Args:
        source: URI of a dataset.
        destination: URI of the dataset to make.
        steps: the pipeline; empty for a plain copy.
        encode: how changed pictures are stored.
        limit: only the first so many pictures.
        measure: decode every picture that is kept, and keep histograms of what they look like.
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
    used = plugins.digests(plugins.used_by(pipeline.steps))
    job = Job(
        kind="filter",
        source=source,
        source_digest=manifest.digest,
        pipeline=str(pipeline),
        pipeline_digest=pipeline.digest,
        encode=encoding,
        options={"limit": limit, "measure": measure} | plugins.recorded(used),
    )
    check_claim(destination, job, overwrite=overwrite)
    return ShardPlan(
        source,
        destination,
        (*manifest.jobs, job),
        shard_tasks(manifest, destination, limit),
        FilterJob(source, str(pipeline), encoding, measure, used),
        {"pipeline": str(pipeline), "encode": encoding},
        overwrite,
    )


def filter_dataset(
    plan: ShardPlan[FilterJob], *, workers: str = "auto", size: str | None = None, address: str | None = None
) -> Manifest:
    """Carry out a plan; a killed job goes on where it was when this is called again.

    Args:
        plan: from `plan_filter`.
        workers: how many; `auto` is one a CPU.
        size: a named size instead of `workers`.
        address: of the Ray cluster.

    Returns:
        The manifest of the finished destination.

    Raises:
        UsageError: another command writes there now.
        StriateError: when a shard fails; those done by then stay.
    """
    with hold(plan.destination, tidy=remove_uncommitted), connect(address) as session:
        return make_shards("filter", plan, pool_for_shards(session, workers, size))
