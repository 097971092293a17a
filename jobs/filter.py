"""Runs a pipeline over a dataset, shard by shard: `striate filter`."""

from __future__ import annotations

from cluster.connection.session import connect
from jobs.shards.dataset_job import ShardPlan, annotations_of, make_shards, shard_tasks
from jobs.shards.pool_size import pool_for_shards
from library import storage
from library.dataset.destination import check_apart, check_claim, remove_uncommitted
from library.dataset.lease import hold
from library.dataset.manifest import Job, Manifest, load_manifest
from library.errors import UsageError
from library.imaging.codec import Encoding
from library.pipeline import Pipeline
from library.pipeline.annotations import Wanted
from library.steps import plugins
from library.work.filter_shard import FilterJob

_BY_NAME = Wanted()


def plan_filter(
    source: str,
    destination: str,
    steps: str,
    *,
    encode: str = "keep",
    limit: int | None = None,
    measure: bool = False,
    wanted: Wanted = _BY_NAME,
    overwrite: bool = False,
) -> ShardPlan[FilterJob]:
    """Checks everything that can be checked before Ray starts; writes nothing.

    Args:
        source: URI of a dataset.
        destination: URI of the new dataset.
        steps: the pipeline; empty for a plain copy.
        encode: the encoding of changed pictures.
        limit: how many pictures to take, from the first on; None for all.
        measure: decode every picture that is written, and store histograms of their properties.
        wanted: the columns of masks and boxes that follow the pictures.
        overwrite: replace the results of another job at the destination.

    Raises:
        UsageError: when the request is not valid.
    """
    source, destination = storage.normalize(source), storage.normalize(destination)
    pipeline = Pipeline.parse(steps, refuse="augmentation") if steps.strip() else Pipeline()
    encoding = str(Encoding.parse(encode))
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: must be at least 1")
    check_apart(source, destination)
    manifest = load_manifest(source)
    annotations = annotations_of(source, manifest, pipeline.steps, wanted)
    used_plugins = plugins.used_by(pipeline.steps)
    used = plugins.digests(used_plugins)
    job = Job(
        kind="filter",
        source=source,
        source_digest=manifest.digest,
        pipeline=str(pipeline),
        pipeline_digest=pipeline.digest,
        encode=encoding,
        options={"limit": limit, "measure": measure} | plugins.recorded(used) | annotations.recorded(),
    )
    check_claim(destination, job, overwrite=overwrite)
    return ShardPlan(
        source,
        destination,
        (*manifest.jobs, job),
        shard_tasks(manifest, destination, limit),
        FilterJob(source, str(pipeline), encoding, measure, used, annotations),
        {"pipeline": str(pipeline), "encode": encoding} | annotations.recorded(),
        overwrite,
        used_plugins=used_plugins,
    )


def filter_dataset(
    plan: ShardPlan[FilterJob], *, workers: str = "auto", size: str | None = None, address: str | None = None
) -> Manifest:
    """Carries out a plan; called again, it resumes a killed job.

    Args:
        plan: from `plan_filter`.
        workers: number of workers; `auto` is one per CPU.
        size: a named size instead of `workers`.
        address: address of the Ray cluster.

    Returns:
        The manifest of the finished destination.

    Raises:
        UsageError: when another command is writing there.
        StriateError: when a shard fails; the shards done by then stay.
    """
    with hold(plan.destination, tidy=remove_uncommitted), connect(address) as session:
        return make_shards("filter", plan, pool_for_shards(session, workers, size))
