"""Writes the chosen pictures of a dataset as a new one: what dedup, split and remove have in common."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import pyarrow as pa

from cluster.connection.session import connect
from cluster.shared_paths import check_shared
from jobs.shards.dataset_job import run_tasks, shard_tasks
from jobs.shards.pool_size import pool_for_shards
from library import storage
from library.dataset.destination import check_apart, check_claim, claim, committed, finish, remove_uncommitted
from library.dataset.lease import hold
from library.dataset.manifest import Job, Manifest
from library.dataset.shards import read_columns
from library.dataset.task import ShardTask
from library.errors import StriateError, UsageError
from library.work.select_shard import DECISION_SCHEMA, SelectJob, decisions_file, decisions_uri

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
    size: str | None = None,
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
        size: a named size instead of `workers`.
        address: address of the Ray cluster.
        overwrite: replace the output of another job at the destination.

    Returns:
        The manifest of the destination.

    Raises:
        UsageError: when the request is not valid, or another command is writing there.
        StriateError: when a shard fails; finished shards are kept.
    """
    check_apart(source, destination)
    check_claim(destination, job, overwrite=overwrite)
    table = decisions_table(source, manifest, decisions)
    tasks, jobs = shard_tasks(manifest, destination, None), [*manifest.jobs, job]
    ends = list(accumulate(task.rows for task in tasks))
    by_stem = {task.stem: table.slice(end - task.rows, task.rows) for task, end in zip(tasks, ends, strict=True)}
    work = SelectJob(source, {stem: decisions_file(part)[1] for stem, part in by_stem.items()})
    with hold(destination, tidy=remove_uncommitted), connect(address) as session:
        pool = pool_for_shards(session, workers, size)
        check_shared(reads=[source], writes=[destination])
        planned = {"shards_planned": len(tasks), "pictures_planned": manifest.rows}
        claim(destination, jobs, overwrite=overwrite, planned=planned)
        done = {task.stem for task, _ in committed(tasks, work)}
        with ThreadPoolExecutor(_PARALLEL_WRITES) as writers:
            missing = (task for task in tasks if task.stem not in done)
            list(writers.map(lambda task: _write_decisions(task, by_stem[task.stem]), missing))
        results = run_tasks(command, work, tasks, pool)
        return finish(destination, jobs, results.totals[destination], run=results.summary(destination))


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
