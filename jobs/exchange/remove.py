"""Removes pictures from a dataset: `striate remove`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.connection.session import connect
from jobs.choosing.selection import select_dataset
from jobs.shards.dataset_job import ShardPlan, make_shards
from jobs.shards.pool_size import pool_for_shards
from library import storage
from library.choosing.measures.side_table import FOLDER as MEASURES_FOLDER
from library.dataset.destination import check_apart, check_claim
from library.dataset.lease import hold
from library.dataset.manifest import (
    DECISIONS,
    FEATURES,
    Job,
    Manifest,
    digest_of,
    find_manifest,
    load_manifest,
    save_manifest,
)
from library.errors import UsageError
from library.exchange.provenance import (
    Use,
    are_related,
    around,
    earlier_digests,
    find_below,
    first_keys,
    lineage,
)
from library.exchange.removal import (
    REMOVED,
    STAGE,
    Concerned,
    complete,
    find_concerned,
    histograms_after,
    remove_beside,
    remove_stage,
    swap,
    without,
)
from library.work.remove_shard import RemoveJob, removal_task

#: Folders below a dataset with what was computed from each shard's pictures: their keys, measures and embeddings.
DERIVED = (MEASURES_FOLDER, FEATURES, DECISIONS)

_MOST_NAMED = 5


@dataclass(frozen=True)
class RemovePlan:
    """The plan of a removal.

    Attributes:
        dataset: URI.
        destination: URI of a dataset without the pictures; None to change `dataset` itself.
        manifest: of the dataset before the removal; while a removal is being finished, the one that it will have.
        job: what the history records.
        asked: the keys that were asked for.
        concerned: the shards that hold them.
        unknown: keys that the dataset does not hold.
        begun: whether an earlier run has begun to replace files, or has done so.
        overwrite: whether to replace what another job left at the destination.
    """

    dataset: str
    destination: str | None
    manifest: Manifest
    job: Job
    asked: Sequence[str]
    concerned: Sequence[Concerned]
    unknown: Sequence[str]
    begun: bool = False
    overwrite: bool = False

    def described(self) -> dict[str, Any]:
        """Returns the plan for --dry-run."""
        return {
            "dataset": self.dataset,
            "destination": self.destination or self.dataset,
            "pictures_to_remove": sum(one.counted.rows_out for one in self.concerned),
            "rejects_to_remove": 0 if self.destination else sum(sum(one.rejected.values()) for one in self.concerned),
            "unknown_keys": len(self.unknown),
            "shards": len(self.manifest.shards),
            "shards_to_do": len(self.manifest.shards if self.destination else self.concerned),
            "classes": {
                name: sum(one.counted.classes.get(name, 0) for one in self.concerned)
                for name in sorted({name for one in self.concerned for name in one.counted.classes})
            },
        }


def plan_remove(
    dataset: str,
    keys: Sequence[str],
    *,
    destination: str | None = None,
    ignore_unknown: bool = False,
    overwrite: bool = False,
) -> RemovePlan:
    """Finds the pictures and checks everything that can be checked before Ray starts; writes nothing.

    Args:
        dataset: URI.
        keys: of the pictures and rejects to remove.
        destination: URI of a new dataset; None to change the dataset itself.
        ignore_unknown: accept keys that the dataset does not hold.
        overwrite: replace what another job left at the destination.

    Raises:
        UsageError: when the request is not valid, or keys are unknown.
    """
    dataset = storage.normalize(dataset)
    current = find_manifest(dataset)
    options = {"keys": len(keys), "keys_digest": digest_of(sorted(keys))}
    if destination is None:
        if overwrite:
            raise UsageError("--overwrite has no effect without a destination")
        last = current.jobs[-1] if current is not None and current.jobs else None
        if current is not None and last is not None and _is_removal(last, dataset, options):
            return RemovePlan(dataset, None, current, last, keys, (), (), begun=True)
    else:
        destination = storage.normalize(destination)
        check_apart(dataset, destination)
    manifest = load_manifest(dataset)
    job = Job(kind="remove", source=dataset, source_digest=manifest.digest, options=options)
    concerned, unknown = find_concerned(dataset, manifest, keys)
    if unknown and (not ignore_unknown or not concerned):
        named = ", ".join(repr(key) for key in unknown[:_MOST_NAMED]) + (", ..." if len(unknown) > _MOST_NAMED else "")
        advice = "" if not concerned else "; --ignore-unknown removes the others"
        raise UsageError(f"{dataset} does not hold {len(unknown):,} of the {len(keys):,} keys: {named}{advice}")
    if destination is not None:
        check_claim(destination, job, overwrite=overwrite)
    return RemovePlan(dataset, destination, manifest, job, keys, concerned, unknown, overwrite=overwrite)


def _is_removal(job: Job, dataset: str, options: Mapping[str, Any]) -> bool:
    """Whether a job removed these keys from the dataset in place; another may have written it without them."""
    return job.kind == "remove" and job.source == dataset and job.options == options


def remove_pictures(plan: RemovePlan, *, workers: str = "auto", address: str | None = None) -> Manifest:
    """Carries out a plan; called again, it resumes a killed job.

    Returns:
        The manifest of the dataset without the pictures.

    Raises:
        UsageError: when another command is writing there, or has changed the dataset since it was planned.
        StriateError: when a shard fails; the dataset is then as it was.
    """
    if plan.destination is not None:
        # Rejects stay where they are: a new dataset gets none.
        dropped = {key: REMOVED for one in plan.concerned for key in one.pictures}
        return select_dataset(
            "remove",
            plan.dataset,
            plan.destination,
            plan.manifest,
            dropped,
            plan.job,
            workers=workers,
            address=address,
            overwrite=plan.overwrite,
        )
    with hold(plan.dataset, tidy=lambda _: None):
        _check_current(plan)
        if not plan.begun:
            _stage(plan, workers, address)
        return finish_removal(plan.dataset, plan.asked)


def _check_current(plan: RemovePlan) -> None:
    """Refuses a plan of which another command has changed the dataset meanwhile; call it while the lease is held."""
    current = find_manifest(plan.dataset)
    planned = plan.manifest
    if current is not None and (current.jobs, current.shards, current.rejects) == (
        planned.jobs,
        planned.shards,
        planned.rejects,
    ):
        return
    raise UsageError(
        f"{plan.dataset} was changed by another command since this one read it, so nothing was removed; run the same "
        "command again"
    )


def _stage(plan: RemovePlan, workers: str, address: str | None) -> None:
    """Writes the new versions of the shards concerned, and then the manifest that names them."""
    stage = storage.join(plan.dataset, STAGE)
    tasks = [removal_task(stage, one.shard, one.rejects, one.keys) for one in plan.concerned]
    work = RemoveJob(plan.dataset, measure=plan.manifest.histograms is not None)
    jobs = [*plan.manifest.jobs, plan.job]
    earlier = find_manifest(stage)  # of another removal, which was given up
    shards = ShardPlan(
        plan.dataset, stage, jobs, tasks, work, {}, overwrite=earlier is not None and earlier.jobs != jobs
    )
    with connect(address) as session:
        staged = make_shards("remove", shards, pool_for_shards(session, workers, None))
    commit_stage(plan, staged)


def commit_stage(plan: RemovePlan, staged: Manifest) -> None:
    """Writes the manifest that the dataset will have, not complete: from here on only files are moved.

    Args:
        plan: the plan.
        staged: the manifest of the new versions.
    """
    histograms = histograms_after(plan.dataset, plan.manifest, plan.concerned)
    save_manifest(plan.dataset, without(plan.manifest, plan.job, plan.concerned, staged, histograms))


def finish_removal(dataset: str, keys: Collection[str]) -> Manifest:
    """Moves the new versions to their places and completes the manifest; does nothing where that is done.

    Args:
        dataset: URI of a dataset whose last job is the removal.
        keys: that were asked for.
    """
    target = load_manifest(dataset, must_be_complete=False)
    if target.complete:
        remove_stage(dataset)
        return target
    staged = load_manifest(storage.join(dataset, STAGE))
    swap(dataset, staged)
    remove_beside(dataset, DERIVED, {shard.name for shard in staged.shards}, keys)
    return complete(dataset, target)


@dataclass(frozen=True)
class Affected:
    """What else is concerned by removed pictures.

    Attributes:
        uses: the bundles that were trained or validated on them.
        datasets: other datasets that hold them, or copies of them, with the number.
        exports: folders in formats of other tools that were made from a dataset that holds them.
        problems: sentences about what could not be read.
    """

    uses: Sequence[Use]
    datasets: Mapping[str, int]
    exports: Sequence[str]
    problems: Sequence[str]

    def described(self) -> dict[str, Any]:
        """Returns this as plain data, for --json."""
        return {
            "bundles": [asdict(use) for use in self.uses],
            "datasets": dict(self.datasets),
            "exports": list(self.exports),
            "problems": list(self.problems),
        }


def find_affected(plan: RemovePlan, folders: Sequence[str]) -> Affected:
    """Finds bundles trained on the pictures, and datasets and exports that hold them; call it before the removal.

    Args:
        plan: the plan.
        folders: where to look; empty for the folder that holds the dataset, unless that is a whole bucket.
    """
    catalogue = find_below(folders or [around(plan.dataset)])
    if not folders and around(plan.dataset) == plan.dataset:
        catalogue.problems.append(f"only {plan.dataset} was looked at, not all that is beside it; --in names folders")
    bases = first_keys(plan.asked, plan.manifest.jobs)
    digests = {plan.manifest.digest} | lineage(plan.manifest.jobs)
    without_them = set[str]()
    holding: dict[str, int] = {}
    for uri, manifest in catalogue.datasets.items():
        if uri in (plan.dataset, plan.destination) or not are_related(plan.manifest, manifest):
            continue
        places = catalogue.places(uri, bases)
        if places is not None and not places:
            without_them.add(manifest.digest)  # perhaps one of the sources, but not of these pictures
            continue
        digests |= earlier_digests(manifest)  # also of one that cannot be read, which may hold them
        if places:
            holding[uri] = len(places)
    digests -= without_them
    exports = [uri for uri, record in sorted(catalogue.exports.items()) if record.jobs[-1].source_digest in digests]
    return Affected(catalogue.uses(digests), holding, exports, catalogue.problems)
