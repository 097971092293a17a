"""Writes the chosen pictures of a dataset as a new one: what dedup, split and remove have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate

import pyarrow as pa

from cluster.connection.session import connect
from cluster.shared_paths import check_shared
from jobs.shards.dataset_job import shard_tasks
from jobs.shards.pool_size import WorkerPool, pool_for_shards
from jobs.shards.results import DatasetResults
from library import storage
from library.dataset.destination import (
    check_apart,
    check_claim,
    check_unchanged,
    claim,
    committed,
    finish,
    remove_uncommitted,
    shard_stem,
)
from library.dataset.lease import hold
from library.dataset.manifest import Job, Manifest, ShardReport
from library.dataset.shards import read_columns
from library.dataset.task import ShardTask
from library.errors import StriateError, UsageError
from library.work.select_shard import DECISION_SCHEMA, SelectJob, SelectReport, decisions_file, decisions_uri

_PARALLEL_WRITES = 16
_MOST_NAMED = 3


def select_dataset(
    command: str,
    source: str,
    destination: str,
    manifest: Manifest,
    decisions: pa.Table | Mapping[str, str],
    job: Job,
    *,
    workers: str = "auto",
    address: str | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Copies the kept pictures of a dataset, bytes untouched; called again with the same decisions, it resumes.

    A shard whose decisions have changed is written again. The decisions stay below the destination, in `_decisions/`.

    Args:
        command: for the progress display and the metrics.
        source: URI of the dataset that is read, normalized.
        destination: URI of the dataset that is written, normalized.
        manifest: of the source.
        decisions: as `decisions_table` takes them.
        job: what the destination's manifest records; its history is put before it.
        workers: number of workers; `auto` is one per CPU.
        address: address of the Ray cluster.
        overwrite: replace the output of another job at the destination.

    Returns:
        The manifest of the destination.

    Raises:
        UsageError: when the request is not valid, or another command is writing there.
        StriateError: when a shard fails; finished shards are kept.
    """
    target = Target(destination, decisions, job)
    manifests = select_datasets(
        command, source, manifest, [target], workers=workers, address=address, overwrite=overwrite
    )
    return manifests[destination]


@dataclass(frozen=True)
class Target:
    """A dataset that a selection writes.

    Attributes:
        dataset: URI, normalized.
        decisions: as `decisions_table` takes them.
        job: what its manifest records; the history of the source is put before it.
    """

    dataset: str
    decisions: pa.Table | Mapping[str, str]
    job: Job


def select_datasets(
    command: str,
    source: str,
    manifest: Manifest,
    targets: Sequence[Target],
    *,
    workers: str = "auto",
    address: str | None = None,
    overwrite: bool = False,
) -> dict[str, Manifest]:
    """Copies pictures of one dataset to several, reading each shard once; otherwise as `select_dataset`.

    Returns:
        The manifest of each dataset that was written, by URI.
    """
    for target in targets:
        check_apart(source, target.dataset)
        check_claim(target.dataset, target.job, overwrite=overwrite)
    parts = {target.dataset: _by_stem(source, manifest, target.decisions) for target in targets}
    work = SelectJob(
        source,
        {uri: {stem: decisions_file(table)[1] for stem, table in tables.items()} for uri, tables in parts.items()},
    )
    tasks = {target.dataset: shard_tasks(manifest, target.dataset, None) for target in targets}
    with hold(*tasks, tidy=remove_uncommitted), connect(address) as session:
        from jobs.shards.runner import run_shards

        results = _Results(pool_for_shards(session, workers, None))
        check_shared(reads=[source], writes=list(tasks))
        for target in targets:
            planned = {"shards_planned": len(tasks[target.dataset]), "pictures_planned": manifest.rows}
            claim(target.dataset, [*manifest.jobs, target.job], overwrite=overwrite, planned=planned)
        todo = results.resume(tasks, work)
        with ThreadPoolExecutor(_PARALLEL_WRITES) as writers:
            files = (replace(task, dataset=uri) for task in todo for uri in tasks)
            list(writers.map(lambda task: _write_decisions(task, parts[task.dataset][task.stem]), files))
        results.run = run_shards(command, work, todo, results.pool, results, done=results.resumed)
        for target in targets:
            check_unchanged(target.job)
        return {
            target.dataset: finish(
                target.dataset,
                [*manifest.jobs, target.job],
                results.totals[target.dataset],
                run=results.summary(target.dataset),
            )
            for target in targets
        }


class _Results(DatasetResults):
    """Sums of the reports of every dataset that is written."""

    def __init__(self, pool: WorkerPool) -> None:
        super().__init__(pool)
        self.pool = pool

    def resume(self, tasks: Mapping[str, Sequence[ShardTask]], work: SelectJob) -> list[ShardTask]:
        """Adds the reports of shards that every dataset has; returns tasks of the first dataset for the others."""
        reports = {
            uri: {task.stem: report for task, report in committed(its_tasks, work)} for uri, its_tasks in tasks.items()
        }
        first = next(iter(tasks.values()))
        done = {task.stem for task in first if all(task.stem in found for found in reports.values())}
        for uri, found in reports.items():
            for stem in done:
                self.totals[uri].add(found[stem])
                self.resumed[uri] += 1
        return [task for task in first if task.stem not in done]

    def add(self, task: ShardTask, report: str) -> ShardReport:
        """Adds the reports of a shard, as JSON, and returns that of the task's dataset."""
        loaded = SelectReport.model_validate_json(report)
        for uri, one in {task.dataset: loaded, **loaded.others}.items():
            self.totals[uri].add(one)
        return loaded


def _by_stem(source: str, manifest: Manifest, decisions: pa.Table | Mapping[str, str]) -> dict[str, pa.Table]:
    """Returns the decisions of each shard."""
    table = decisions_table(source, manifest, decisions)
    ends = accumulate(shard.rows for shard in manifest.shards)
    return {
        shard_stem(shard.name): table.slice(end - shard.rows, shard.rows)
        for shard, end in zip(manifest.shards, ends, strict=True)
    }


def decisions_table(source: str, manifest: Manifest, decisions: pa.Table | Mapping[str, str]) -> pa.Table:
    """Returns a decision for every picture of a dataset, in the order of its shards.

    Args:
        source: URI of the dataset.
        manifest: of the dataset.
        decisions: a table of that form, with the columns `key` and `reason` (null for a picture that is kept); or the
            reason by key of the pictures that are dropped.

    Raises:
        UsageError: a key is not in the dataset.
        StriateError: the table has not one row for each picture.
    """
    if not isinstance(decisions, Mapping):
        if decisions.num_rows != manifest.rows:
            raise StriateError(f"{decisions.num_rows:,} decisions for the {manifest.rows:,} pictures of {source}")
        return decisions.select(DECISION_SCHEMA.names).cast(DECISION_SCHEMA)
    if not manifest.shards:
        return DECISION_SCHEMA.empty_table()
    keys = read_columns(source, ["key"], [shard.name for shard in manifest.shards])["key"]
    reasons = pa.array((decisions.get(key) for key in keys.to_pylist()), pa.string())
    if len(reasons) - reasons.null_count < len(decisions):
        unknown = sorted(set(decisions) - set(keys.to_pylist()))
        named = ", ".join(unknown[:_MOST_NAMED]) + (", ..." if len(unknown) > _MOST_NAMED else "")
        raise UsageError(f"{source} has no picture for {len(unknown):,} of the {len(decisions):,} keys: {named}")
    return pa.table({"key": keys, "reason": reasons}, DECISION_SCHEMA)


def _write_decisions(task: ShardTask, decisions: pa.Table) -> None:
    storage.write_bytes(decisions_uri(task), decisions_file(decisions)[0])
