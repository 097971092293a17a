"""Writes random copies of a dataset's pictures, shard by shard: `striate augment`."""

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
from library.pipeline.annotations import Wanted
from library.pipeline.augmentation import Augmenter, parse_augmentation
from library.steps import plugins
from library.work.augment_shard import AugmentJob

_MOST_COPIES = 10_000
_BY_NAME = Wanted()


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
    wanted: Wanted = _BY_NAME,
    overwrite: bool = False,
) -> ShardPlan[AugmentJob]:
    """Checks everything that can be checked before Ray starts; writes nothing.

    Args:
        source: URI of a dataset.
        destination: URI of the new dataset.
        steps: augmentations, with filters among them.
        copies: number of copies of each picture; their keys are `key#1`, `key#2`, ...
        keep_original: write each picture, unchanged, under its own key too.
        seed: seed of all randomness.
        encode: the encoding of changed pictures.
        limit: how many pictures to take, from the first on; None for all.
        wanted: the columns of masks and boxes that follow the pictures.
        overwrite: replace the results of another job at the destination.

    Raises:
        UsageError: when the request is not valid.
    """
    source, destination = storage.normalize(source), storage.normalize(destination)
    pipeline = parse_augmentation(steps)
    Augmenter(pipeline, seed)
    encoding = str(Encoding.parse(encode))
    if not 1 <= copies <= _MOST_COPIES:
        raise UsageError(f"--copies {copies}: must be from 1 to {_MOST_COPIES:,}")
    if seed < 0:
        raise UsageError(f"--seed {seed}: must be at least 0")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: must be at least 1")
    check_apart(source, destination)
    manifest = load_manifest(source)
    if keep_original and any(job.kind == "augment" for job in manifest.jobs):
        raise UsageError(
            f"{source} already contains copies, and with --keep-original two pictures could get the same key: leave it "
            "out, or augment the dataset from which these copies were made"
        )
    annotations = annotations_of(source, manifest, pipeline.steps, wanted)
    used_plugins = plugins.used_by(pipeline.steps)
    used = plugins.digests(used_plugins)
    job = Job(
        kind="augment",
        source=source,
        source_digest=manifest.digest,
        pipeline=str(pipeline),
        pipeline_digest=pipeline.digest,
        encode=encoding,
        options={"copies": copies, "keep_original": keep_original, "seed": seed, "limit": limit}
        | plugins.recorded(used)
        | annotations.recorded(),
    )
    check_claim(destination, job, overwrite=overwrite)
    work = AugmentJob(source, str(pipeline), copies, seed, keep_original, encoding, used, annotations)
    return ShardPlan(
        source,
        destination,
        (*manifest.jobs, job),
        shard_tasks(manifest, destination, limit),
        work,
        {
            "pipeline": str(pipeline),
            "encode": encoding,
            "seed": seed,
            "copies": copies,
            "keep_original": keep_original,
        }
        | annotations.recorded(),
        overwrite,
        unit="copies",
        units_per_picture=copies + keep_original,
        used_plugins=used_plugins,
    )


def augment_dataset(plan: ShardPlan[AugmentJob], *, workers: str = "auto", address: str | None = None) -> Manifest:
    """Carries out a plan; called again, it resumes a killed job.

    Returns:
        The manifest of the finished destination; its counts are of copies.

    Raises:
        UsageError: when another command is writing there.
        StriateError: when a shard fails; the shards done by then stay.
    """
    with hold(plan.destination, tidy=remove_uncommitted), connect(address) as session:
        return make_shards("augment", plan, pool_for_shards(session, workers, None))
