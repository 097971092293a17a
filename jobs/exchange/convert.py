"""Writes a dataset in the format of another tool: `striate convert`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.connection.session import connect
from cluster.shared_paths import check_shared
from jobs.shards.dataset_job import shard_tasks
from jobs.shards.pool_size import pool_for_shards
from library import storage
from library.dataset.destination import check_apart, check_unchanged, reports_below
from library.dataset.lease import hold
from library.dataset.manifest import REPORTS, Job, load_manifest
from library.dataset.shards import ShardReader, read_columns
from library.dataset.task import ShardTask
from library.errors import UsageError
from library.exchange.exports import (
    TARGETS,
    ExportRecord,
    ExportReport,
    Target,
    check_export,
    claim_export,
    find_record,
    remove_temporary,
    state_folder,
)
from library.exchange.finishing import ExportTotals, finish_export
from library.exchange.names import NAMINGS, Naming, are_unique, file_path, sample_key
from library.exchange.tables import check_columns
from library.work.convert_shard import ConvertJob


@dataclass(frozen=True)
class ConvertPlan:
    """The plan of a conversion.

    Attributes:
        destination: URI of the folder that is written.
        jobs: the history of the dataset, and then this conversion.
        tasks: every shard.
        work: what is done to each.
        notes: sentences about columns that come back in another type.
        overwrite: replace what another conversion wrote, or write a finished one again.
    """

    destination: str
    jobs: Sequence[Job]
    tasks: Sequence[ShardTask]
    work: ConvertJob
    notes: Sequence[str]
    overwrite: bool

    def described(self) -> dict[str, Any]:
        """Returns the plan for --dry-run."""
        record = find_record(self.destination)
        afresh = self.overwrite and record is not None and record.complete
        todo = self.tasks if afresh else ConvertResults().resume(self)
        return {
            "source": self.work.source,
            "destination": self.destination,
            "to": self.work.to,
            "classes": len(self.work.classes),
            "notes": list(self.notes),
            "shards": len(self.tasks),
            "shards_to_do": len(todo),
            "pictures_to_do": sum(task.pictures for task in todo),
        }


def plan_convert(
    source: str, destination: str, to: Target, *, limit: int | None = None, overwrite: bool = False
) -> ConvertPlan:
    """Checks everything that can be checked before Ray starts; writes nothing.

    Args:
        source: URI of a dataset.
        destination: URI of the folder that is written.
        to: the format.
        limit: how many pictures to take, from the first on; None for all.
        overwrite: replace what another conversion wrote at the destination, or write a finished one again.

    Raises:
        UsageError: when the request is not valid, or a column cannot be written in this format.
    """
    source, destination = storage.normalize(source), storage.normalize(destination)
    if to not in TARGETS:
        raise UsageError(f"--to {to}: unknown format; choose {', '.join(TARGETS)}")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: must be at least 1")
    check_apart(source, destination)
    manifest = load_manifest(source)
    if not manifest.shards:
        raise UsageError(f"{source} holds no pictures")
    job = Job(kind="convert", source=source, source_digest=manifest.digest, options={"to": to, "limit": limit})
    check_export(destination, job, overwrite=overwrite)
    shards = [shard.name for shard in manifest.shards]
    notes = check_columns(ShardReader(storage.join(source, shards[0])).schema(), to)
    classes = tuple(sorted(manifest.tally.classes))
    naming = "long" if to == "huggingface" else _first_unique_naming(source, shards, to)
    return ConvertPlan(
        destination,
        (*manifest.jobs, job),
        shard_tasks(manifest, source, limit),
        ConvertJob(source, destination, to, classes, naming),
        notes,
        overwrite,
    )


def _first_unique_naming(source: str, shards: Sequence[str], to: Target) -> Naming:
    """Returns the shortest naming with which no two pictures, and no two classes, share a name on any disk."""
    table = read_columns(source, ["key", "label", "format"], shards)
    keys, labels, formats = (table[name].to_pylist() for name in ("key", "label", "format"))
    *some, last = NAMINGS
    for naming in some:
        if to == "webdataset":
            names = [sample_key(key, format_, naming) for key, format_ in zip(keys, formats, strict=True)]
        else:
            rows = zip(keys, labels, formats, strict=True)
            names = [file_path(key, label, format_, naming) for key, label, format_ in rows]
        folders = set() if to == "webdataset" else {name.partition("/")[0] for name in names}
        if are_unique(names) and are_unique(folders):
            return naming
    return last


class ConvertResults:
    """Collects the reports of shards.

    Attributes:
        totals: over all shards.
        resumed: number of shards with a report from an earlier run.
    """

    def __init__(self) -> None:
        self.totals = ExportTotals()
        self.resumed = 0

    def add(self, task: ShardTask, report: str) -> ExportReport:
        """Adds the report of a shard, as JSON, and returns it."""
        done = ExportReport.model_validate_json(report)
        self.totals.add(done)
        return done

    def resume(self, plan: ConvertPlan) -> list[ShardTask]:
        """Adds the reports of an earlier run of the same command; returns the tasks without one."""
        sizes = {file.path: file.size for file in storage.list_files(plan.destination)}
        state = storage.list_files(state_folder(plan.destination))
        reports = {file.path: file.size for file in state if file.path.startswith(f"{REPORTS}/")}
        done = set[str]()
        for task, report in reports_below(state_folder(plan.destination), reports, plan.tasks, plan.work, ExportReport):
            if all(sizes.get(name) == size for name, size in report.files.items()):
                self.totals.add(report)
                done.add(task.stem)
        self.resumed = len(done)
        return [task for task in plan.tasks if task.stem not in done]


def convert_dataset(plan: ConvertPlan, *, workers: str = "auto", address: str | None = None) -> ExportRecord:
    """Carries out a plan; called again, it resumes a killed job.

    Returns:
        The record of the finished folder.

    Raises:
        UsageError: when another command is writing there.
        StriateError: when a shard fails; the shards done by then stay.
    """
    work = plan.work
    with hold(plan.destination, tidy=remove_temporary), connect(address) as session:
        from jobs.shards.runner import run_shards

        check_shared(reads=[work.source], writes=[plan.destination])
        claim_export(plan.destination, list(plan.jobs), overwrite=plan.overwrite)
        results = ConvertResults()
        todo = results.resume(plan)
        pool = pool_for_shards(session, workers, None)
        run_shards("convert", work, todo, pool, results, done=Counter({work.source: results.resumed}))
        check_unchanged(plan.jobs[-1])
        return finish_export(plan.destination, plan.jobs, work.to, work.classes, results.totals)
