"""Pictures of any source into shuffled shards: `striate ingest`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.connection.session import connect
from cluster.shared_paths import check_shared
from jobs.shards.dataset_job import run_tasks
from jobs.shards.pool_size import WorkerPool, pool_for_shards
from library import storage
from library.dataset.destination import check_apart, check_claim, claim, committed, finish, remove_uncommitted
from library.dataset.lease import hold
from library.dataset.manifest import Job, Manifest, digest_of, find_manifest, splits_below
from library.dataset.planning import Layout, parse_fractions, plan
from library.dataset.task import ShardTask
from library.errors import StriateError, UsageError
from library.sources import Listing, Options, list_source
from library.work.ingest_shard import IngestJob


@dataclass(frozen=True)
class IngestPlan:
    """The plan of an ingest.

    Attributes:
        job: the record that every manifest gets.
        tasks: every shard of every split.
        overwrite: whether to replace the results of another job at the destination.
    """

    source: str
    destination: str
    job: Job
    listing: Listing
    tasks: Sequence[ShardTask]
    work: IngestJob
    overwrite: bool = False

    @property
    def datasets(self) -> list[str]:
        """URIs of the destination, or of the splits below it."""
        return list(dict.fromkeys(task.dataset for task in self.tasks))

    def described(self) -> dict[str, Any]:
        """Returns what --dry-run prints: the pictures of the source, and how many shards are still to be written."""
        done = sum(1 for _ in committed(self.tasks, self.work))
        return {
            "source": self.source,
            "kind": self.listing.kind,
            "pictures": self.listing.index.num_rows,
            "classes": self.listing.classes,
            "without_a_class": self.listing.index["label"].null_count,
            "notes": list(self.listing.notes),
            "columns": self.listing.columns.names,
            "skipped": dict(self.listing.skipped),
            "datasets": {
                dataset: {
                    "shards": sum(task.dataset == dataset for task in self.tasks),
                    "pictures": sum(task.rows for task in self.tasks if task.dataset == dataset),
                }
                for dataset in self.datasets
            },
            "shards_to_do": len(self.tasks) - done,
        }


def plan_ingest(
    source: str,
    destination: str,
    *,
    options: Options = Options(),
    shard_mb: float | None = None,
    seed: int = 0,
    split: str = "found",
    verify: bool = False,
    repair: bool = False,
    measure: bool = False,
    overwrite: bool = False,
) -> IngestPlan:
    """Lists the source and decides where each picture goes; reads no picture and writes nothing.

    Args:
        source: folder, archive, list or Parquet, on disk or in a store.
        destination: URI of the new dataset.
        options: the meaning of the columns.
        shard_mb: size of a shard in MiB; None for 128, or less for a small source.
        seed: seed of the order in which pictures are stored.
        split: `found` for the splits of the source, `none` to join them, or fractions (`train=0.8,val=0.2`).
        verify: decode every picture.
        repair: decode every picture, and cut stray bytes out of JPEGs whose pixels are whole.
        measure: decode every picture, and store histograms of their properties.
        overwrite: replace the results of another job at the destination.

    Raises:
        UsageError: when the request is not valid.
        StriateError: when the source cannot be listed.
    """
    source, destination = storage.normalize(source), storage.normalize(destination)
    if shard_mb is not None and shard_mb <= 0:
        raise UsageError(f"--shard-mb {shard_mb:g}: must be above 0")
    fractions = None if split in ("found", "none") else parse_fractions(split)
    check_apart(source, destination)
    listing = list_source(source, options)
    index = listing.index
    if split == "none":
        index = index.set_column(index.schema.get_field_index("split"), "split", [[None] * index.num_rows])
    layout = Layout(None if shard_mb is None else int(shard_mb * 2**20), seed, fractions)
    tasks = plan(index, destination, layout)
    job = Job(
        kind="ingest",
        source=source,
        source_digest=digest_of([task.input_digest for task in tasks]),
        options={
            "shard_mb": shard_mb,
            "seed": seed,
            "split": split,
            "verify": verify,
            "label_column": options.label_column,
            "key_column": options.key_column,
            "image_column": options.image_column,
            "measure": measure,
            "repair": repair,
            "label_level": options.label_level,
        },
    )
    work = IngestJob.of(listing, options, verify=verify, measure=measure, repair=repair)
    planned = IngestPlan(source, destination, job, listing, tasks, work, overwrite)
    if destination not in planned.datasets and find_manifest(destination) is not None:
        raise UsageError(f"{destination} is a dataset itself and cannot hold splits; choose another folder")
    others = sorted(set(splits_below(destination)) - set(planned.datasets))
    if others:
        raise UsageError(f"{destination} has other splits: {', '.join(others)}; remove them, or choose another folder")
    for dataset in planned.datasets:
        check_claim(dataset, job, overwrite=overwrite)
    return planned


def ingest(planned: IngestPlan, *, workers: str = "auto", address: str | None = None) -> dict[str, Manifest]:
    """Carries out a plan; called again, it resumes a killed job.

    Returns:
        The manifest of each new dataset, by URI.

    Raises:
        UsageError: when another command is writing there.
        StriateError: when a shard fails; the shards done by then stay.
    """
    with hold(planned.destination, *planned.datasets, tidy=remove_uncommitted):
        with connect(address) as session:
            pool, work = _within_limits(planned, pool_for_shards(session, workers, None), auto=workers == "auto")
            check_shared(reads=[planned.source], writes=planned.datasets)
            for dataset in planned.datasets:
                rows = [task.rows for task in planned.tasks if task.dataset == dataset]
                counts = {"shards_planned": len(rows), "pictures_planned": sum(rows)}
                claim(dataset, [planned.job], overwrite=planned.overwrite, planned=counts)
            run = run_tasks("ingest", work, planned.tasks, pool)
        manifests: dict[str, Manifest] = {}
        for number, dataset in enumerate(planned.datasets):
            # Skipped files belong to no split; only the first manifest reports them.
            skipped = planned.listing.skipped if number == 0 else {}
            totals, summary = run.totals[dataset], run.summary(dataset)
            manifests[dataset] = finish(dataset, [planned.job], totals, skipped=skipped, run=summary)
        return manifests


def _within_limits(planned: IngestPlan, pool: WorkerPool, *, auto: bool) -> tuple[WorkerPool, IngestJob]:
    """Returns the workers and their work, changed so that all workers together respect the limits for links."""
    if planned.listing.kind != "links":
        return pool, planned.work
    limits = planned.work.options.links
    most = min(limits.per_host, limits.connections)
    if pool.number > most and not auto:
        raise UsageError(
            f"--workers {pool.number}: each needs a connection of its own, and the limit is {most}; use fewer workers, "
            "or raise --links-per-host and --link-connections"
        )
    pool = replace(pool, number=min(pool.number, most), grows=False)
    return pool, replace(planned.work, options=replace(planned.work.options, links=limits.share(pool.number)))


def check_bad_fraction(manifests: dict[str, Manifest], max_bad_fraction: float) -> None:
    """Fails when the share of rejected pictures is above the limit.

    Raises:
        StriateError: names their number, the folders with the rejects, and the option that would admit them, if any.
    """
    rows = sum(manifest.tally.rows_in for manifest in manifests.values())
    bad = sum(sum(manifest.tally.rejected.values()) for manifest in manifests.values())
    if bad > max_bad_fraction * rows:
        private = sum(manifest.tally.rejected.get("private_address", 0) for manifest in manifests.values())
        advice = (
            f"; {private:,} links lead to private addresses: --allow-address NETWORK with --overwrite fetches them"
            if private
            else ""
        )
        folders = ", ".join(f"{dataset}/_rejects" for dataset, manifest in manifests.items() if manifest.rejects)
        raise StriateError(
            f"{bad:,} of {rows:,} pictures ({bad / rows:.1%}) cannot be used, more than --max-bad-fraction "
            f"{max_bad_fraction:g}; the others are written; the rejects, with reasons, are in {folders}{advice}"
        )
