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
    """What an ingest is going to do.

    Attributes:
        job: goes into every manifest.
        tasks: every shard of every split.
        overwrite: whether to replace what another job left at the destination.
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
        """The destination, or with splits the datasets below it."""
        return list(dict.fromkeys(task.dataset for task in self.tasks))

    def described(self) -> dict[str, Any]:
        """For --dry-run: what was found, what is done, what is to do."""
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
    """List the source and decide where each picture goes; reads no picture, writes nothing.

    Args:
        source: folder, archive, list or Parquet, on disk or in a store.
        destination: URI of the dataset to make.
        options: which columns mean what.
        shard_mb: size of a shard in MiB; None for 128, less for a small source.
        seed: of the order in which pictures are stored.
        split: `found` for those of the source, `none` to join them, or fractions (`train=0.8,val=0.2`).
        verify: decode every picture.
        repair: decode every picture, and cut stray bytes out of JPEGs whose pixels are whole.
        measure: decode every picture, and keep histograms of what they look like.
        overwrite: replace what another job left at the destination.

    Raises:
        UsageError: whatever is wrong with the request.
        StriateError: when the source cannot be listed.
    """
    source, destination = storage.normalize(source), storage.normalize(destination)
    if shard_mb is not None and shard_mb <= 0:
        raise UsageError(f"--shard-mb {shard_mb:g}: a size above 0")
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
    made = IngestPlan(source, destination, job, listing, tasks, work, overwrite)
    if destination not in made.datasets and find_manifest(destination) is not None:
        raise UsageError(f"{destination} is a dataset, and this would make one a split below it; choose another folder")
    others = sorted(set(splits_below(destination)) - set(made.datasets))
    if others:
        raise UsageError(f"{destination} has other splits: {', '.join(others)}; remove them, or choose another folder")
    for dataset in made.datasets:
        check_claim(dataset, job, overwrite=overwrite)
    return made


def ingest(made: IngestPlan, *, workers: str = "auto", address: str | None = None) -> dict[str, Manifest]:
    """Carry out a plan; a killed job goes on where it was when this is called again.

    Returns:
        The manifest of each dataset made, by URI.

    Raises:
        UsageError: another command writes there now.
        StriateError: when a shard fails; those done by then stay.
    """
    with hold(made.destination, *made.datasets, tidy=remove_uncommitted):
        with connect(address) as session:
            pool, work = _shared_out(made, pool_for_shards(session, workers, None), auto=workers == "auto")
            check_shared(reads=[made.source], writes=made.datasets)
            for dataset in made.datasets:
                rows = [task.rows for task in made.tasks if task.dataset == dataset]
                planned = {"shards_planned": len(rows), "pictures_planned": sum(rows)}
                claim(dataset, [made.job], overwrite=made.overwrite, planned=planned)
            run = run_tasks("ingest", work, made.tasks, pool)
        manifests: dict[str, Manifest] = {}
        for number, dataset in enumerate(made.datasets):
            # What was skipped belongs to no split; it is told once.
            skipped = made.listing.skipped if number == 0 else {}
            totals, summary = run.totals[dataset], run.summary(dataset)
            manifests[dataset] = finish(dataset, [made.job], totals, skipped=skipped, run=summary)
        return manifests


def _shared_out(made: IngestPlan, pool: WorkerPool, *, auto: bool) -> tuple[WorkerPool, IngestJob]:
    """The workers, and what each does: all together keep the limits of links."""
    if made.listing.kind != "links":
        return pool, made.work
    limits = made.work.options.links
    most = min(limits.per_host, limits.connections)
    if pool.number > most and not auto:
        raise UsageError(
            f"--workers {pool.number}: each needs a connection of its own, and {most} are allowed at once; use fewer "
            "workers, or raise --links-per-host and --link-connections"
        )
    pool = replace(pool, number=min(pool.number, most), grows=False)
    return pool, replace(made.work, options=replace(made.work.options, links=limits.share(pool.number)))


def check_bad_fraction(manifests: dict[str, Manifest], max_bad_fraction: float) -> None:
    """Fail when more pictures than that could not be used.

    Raises:
        StriateError: says how many, why, and where they are.
    """
    rows = sum(manifest.tally.rows_in for manifest in manifests.values())
    bad = sum(sum(manifest.tally.rejected.values()) for manifest in manifests.values())
    if bad > max_bad_fraction * rows:
        private = sum(manifest.tally.rejected.get("private_address", 0) for manifest in manifests.values())
        way_out = (
            f"; {private:,} links lead to private addresses: --allow-address NETWORK with --overwrite fetches them"
            if private
            else ""
        )
        folders = ", ".join(f"{dataset}/_rejects" for dataset, manifest in manifests.items() if manifest.rejects)
        raise StriateError(
            f"{bad:,} of {rows:,} pictures ({bad / rows:.1%}) cannot be used, more than --max-bad-fraction "
            f"{max_bad_fraction:g}; what is good is written, the others lie in {folders} with their reasons{way_out}"
        )
