"""Joins several datasets into one: `striate merge`."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from cluster.connection.session import connect
from jobs.shards.dataset_job import ShardPlan, make_shards
from jobs.shards.pool_size import pool_for_shards
from library import storage
from library.dataset.destination import check_apart, check_claim, remove_uncommitted
from library.dataset.lease import hold
from library.dataset.manifest import Job, Manifest, Origin, digest_of, find_manifest, load_manifest
from library.dataset.shards import ShardReader, shard_name
from library.dataset.task import ShardTask
from library.errors import UsageError
from library.exchange.merging import OnClash, Part, repeated_keys, union_schema, with_prefixes
from library.work.merge_shard import KEY_CLASH, MergeJob, SourceShard, task_of


def plan_merge(
    sources: Sequence[str], destination: str, *, on_clash: OnClash = "error", overwrite: bool = False
) -> ShardPlan[MergeJob]:
    """Reads the keys and columns of the datasets and checks that they fit together; writes nothing.

    Args:
        sources: URIs of the datasets, in order of precedence.
        destination: URI of the new dataset.
        on_clash: what happens to a key that several datasets have: `error`, `keep-first`, or `prefix`, which puts the
            name of its dataset before every key.
        overwrite: replace the results of another job at the destination.

    Raises:
        UsageError: when the request is not valid, columns do not fit together, or keys clash.
    """
    sources, destination = [storage.normalize(source) for source in sources], storage.normalize(destination)
    if len(sources) < 2:
        raise UsageError(f"only one dataset, {sources[0]}, is given to be merged into {destination}; name two or more")
    repeated = next((source for source in sources if sources.count(source) > 1), None)
    if repeated is not None:
        raise UsageError(f"{repeated} is given twice; name each dataset once")
    for source in sources:
        check_apart(source, destination)
    present = None if overwrite else find_manifest(destination)
    if present is not None and present.job.kind != "merge":
        raise UsageError(
            f"the last argument is the dataset to write, and {destination} is one already, by {present.job.kind}; "
            "to join it with the others, add the path of a new dataset"
        )
    parts = [Part(source, load_manifest(source)) for source in sources]
    if on_clash == "prefix":
        parts = with_prefixes(parts)
    columns = union_schema({part.uri: _schema(part) for part in parts if part.manifest.shards})
    masks = repeated_keys(parts, on_clash)
    job = Job(
        kind="merge",
        source=sources[0],
        source_digest=digest_of([part.manifest.digest for part in parts]),
        origins=[Origin(source=part.uri, digest=part.manifest.digest, jobs=part.manifest.jobs) for part in parts],
        options={"on_clash": on_clash},
    )
    check_claim(destination, job, overwrite=overwrite)
    tasks: list[ShardTask] = []
    for part, part_masks in zip(parts, masks, strict=True):
        for shard, mask in zip(part.manifest.shards, part_masks, strict=True):
            source = SourceShard.of(part.uri, shard, part.prefix, mask)
            tasks.append(task_of(source, destination, shard_name(len(tasks)), shard.rows))
    measure = all(part.manifest.histograms is not None for part in parts)
    return ShardPlan(
        sources[0],
        destination,
        (job,),
        tasks,
        MergeJob(columns, measure),
        {
            "sources": sources,
            "on_clash": on_clash,
            "pictures": sum(part.manifest.rows for part in parts),
            KEY_CLASH: sum(int(mask.sum()) for part_masks in masks for mask in part_masks),
            "columns": columns.names,
        },
        overwrite,
    )


def _schema(part: Part) -> pa.Schema:
    return ShardReader(storage.join(part.uri, part.manifest.shards[0].name)).schema()


def merge_datasets(plan: ShardPlan[MergeJob], *, workers: str = "auto", address: str | None = None) -> Manifest:
    """Carries out a plan; called again, it resumes a killed job.

    Returns:
        The manifest of the finished destination.

    Raises:
        UsageError: when another command is writing there.
        StriateError: when a shard fails; the shards done by then stay.
    """
    reads = [origin.source for origin in plan.jobs[-1].origins]
    with hold(plan.destination, tidy=remove_uncommitted), connect(address) as session:
        return make_shards("merge", plan, pool_for_shards(session, workers, None), reads)
