"""A dataset that is being written: claimed by one job, resumed after a kill, finished once.

The claim is a manifest with `complete` false, written before the first shard. The same job may resume it as often as
needed; another job is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from library import storage
from library.dataset.lease import LEASES
from library.dataset.manifest import (
    DECISIONS,
    DUPLICATES,
    REJECTS,
    REPORTS,
    VERSIONS,
    Job,
    Manifest,
    ReportT,
    ShardReport,
    find_manifest,
    load_report,
    report_uri,
    save_manifest,
)
from library.dataset.shards import SUFFIX
from library.dataset.task import ShardJob, ShardTask
from library.dataset.totals import Totals
from library.errors import StriateError, UsageError
from library.storage import Span, read_many

_TEMPORARY = rf"(.*/)?{storage.TEMPORARY_PREFIX}[0-9a-f]+"
#: Files that a job writes below a dataset; nothing else is ever removed.
_JOB_FILE = re.compile(
    rf"(((?:{REJECTS}|{DECISIONS})/)?part-\d+\.parquet|{REPORTS}/part-\d+\.json|{DUPLICATES}|{_TEMPORARY})"
)
#: Files that a job may leave before it has claimed the dataset.
_BEFORE_CLAIM = rf"{LEASES}/.*|{_TEMPORARY}"

_MAX_REPORTS_BYTES = 16 * 2**20

#: The option that limits how many pictures a job processes and does not change the result for any picture.
_EXTENT = "limit"


def check_apart(source: str, destination: str) -> None:
    """Refuses a destination that is, holds, or lies inside the source.

    Raises:
        UsageError: one lies in the other; names both.
    """
    if storage.contains(source, destination):
        raise UsageError(f"the destination {destination} lies in the source {source}; choose a folder outside it")
    if storage.contains(destination, source):
        raise UsageError(f"the source {source} lies in the destination {destination}; choose a folder outside it")


def remove_uncommitted(dataset: str) -> None:
    """Removes temporary files, and in a dataset that is not complete the shards and rejects without a report.

    Called when a job has failed. The next run of the job removes what workers still write after that.
    """
    manifest = find_manifest(dataset)
    if manifest is None:
        return
    files = storage.list_files(dataset)
    reports = {file.path for file in files if file.path.startswith(f"{REPORTS}/")}

    def is_left_over(path: str) -> bool:
        if manifest.complete or path in reports or not _JOB_FILE.fullmatch(path):
            return re.fullmatch(_TEMPORARY, path) is not None
        return f"{REPORTS}/{shard_stem(storage.name_of(path))}.json" not in reports

    storage.remove(file.uri for file in files if is_left_over(file.path))


def remove_temporary(folder: str) -> None:
    """Removes temporary files that killed writers have left in a folder that is not a dataset."""
    files = storage.list_files(folder)
    storage.remove(file.uri for file in files if storage.name_of(file.path).startswith(storage.TEMPORARY_PREFIX))


def check_claim(dataset: str, job: Job, *, overwrite: bool) -> None:
    """Checks that `job` may write to `dataset`; changes nothing.

    Raises:
        UsageError: the folder holds other files, another job's dataset, or more pictures than `--limit` allows.
    """
    manifest = find_manifest(dataset)
    if manifest is None:
        # A job that was killed before it wrote its claim may have left its lease or a temporary file.
        if any(not re.fullmatch(_BEFORE_CLAIM, file.path) for file in storage.list_files(dataset)):
            raise UsageError(f"{dataset} is not empty and is not a dataset; choose an empty folder")
        return
    if overwrite:
        return
    if _identity(manifest.job) != _identity(job):
        raise UsageError(
            f"{dataset} holds the output of another job:\n"
            f"  that job: {_description(manifest.job)}\n"
            f"  this job: {_description(job)}\n"
            "choose another destination, or replace it with --overwrite"
        )
    before, now = manifest.job.options.get(_EXTENT), job.options.get(_EXTENT)
    if now is not None and (before is None or now < before):
        extent = "all pictures" if before is None else f"the first {before:,} pictures"
        raise UsageError(
            f"{dataset} was made from {extent}; --limit {now} would remove some (allow it with --overwrite)"
        )


def claim(dataset: str, jobs: Sequence[Job], *, overwrite: bool, planned: Mapping[str, int] | None = None) -> None:
    """Claims `dataset` for the last of `jobs`; with `overwrite`, empties it first unless the same job has begun it.

    Args:
        dataset: URI.
        jobs: the jobs that lead to it; the last writes it.
        overwrite: replace the output of another job.
        planned: `shards_planned` and `pictures_planned`, from which others compute the job's progress.

    Raises:
        UsageError: as `check_claim`, as another job may have claimed it since that was called.
    """
    check_claim(dataset, jobs[-1], overwrite=overwrite)
    storage.check_writable(dataset)
    manifest = find_manifest(dataset)
    if manifest is not None and not manifest.complete and manifest.jobs == list(jobs):
        return
    if overwrite or manifest is None or manifest.jobs != list(jobs):
        # Before anything is removed: a kill in between must not leave a manifest that calls the rest complete.
        claimed = Manifest(complete=False, jobs=list(jobs), versions=VERSIONS, run=dict(planned or {}))
        save_manifest(dataset, claimed)
    if overwrite:
        files = [file for file in storage.list_files(dataset) if _JOB_FILE.fullmatch(file.path)]
        # Reports first: a shard without a report does not count as done, so a kill in between does no harm.
        storage.remove(file.uri for file in files if file.path.startswith(f"{REPORTS}/"))
        storage.remove(file.uri for file in files)


def check_unchanged(job: Job) -> None:
    """Checks that the datasets that a job has read are still those that it was planned for; call it before it finishes.

    Shards may be replaced in place meanwhile (`striate remove`), and then reports name digests that were not read.

    Raises:
        StriateError: one was changed; names it.
    """
    read = [(one.source, one.digest) for one in job.origins] or [(job.source, job.source_digest)]
    for source, digest in read:
        manifest = find_manifest(source) if digest is not None else None
        if digest is not None and (manifest is None or manifest.digest != digest):
            raise StriateError(
                f"{source} was changed by another command while its pictures were read; run the same command again, "
                "which writes only the changed shards anew"
            )


def committed(tasks: Iterable[ShardTask], job: ShardJob[ShardReport]) -> Iterator[tuple[ShardTask, ShardReport]]:
    """Yields the tasks that are done already, with their reports: same input, same work, and the files exist."""
    by_dataset: dict[str, list[ShardTask]] = {}
    for task in tasks:
        by_dataset.setdefault(task.dataset, []).append(task)
    for dataset, its_tasks in by_dataset.items():
        sizes = {file.path: file.size for file in storage.list_files(dataset)}
        for task, report in reports_below(dataset, sizes, its_tasks, job, ShardReport):
            outputs = [report.output, *([report.rejects] if report.rejects else [])]
            if all(sizes.get(entry.name) == entry.bytes for entry in outputs):
                yield task, report


def reports_below(
    folder: str, sizes: Mapping[str, int], tasks: Iterable[ShardTask], job: ShardJob[ReportT], model: type[ReportT]
) -> Iterator[tuple[ShardTask, ReportT]]:
    """Yields the tasks that have a report below `folder` for the same input and the same work, with that report.

    Reports are read in groups, as those of a large job do not fit into memory together.

    Args:
        folder: URI.
        sizes: bytes of the files below it, by path; at least of its reports.
        tasks: tasks of one dataset.
        job: the work on each of them.
        model: type of its reports.
    """
    group: list[ShardTask] = []
    group_bytes = 0
    for task in tasks:
        report_bytes = sizes.get(f"{REPORTS}/{task.stem}.json")
        if report_bytes is None:
            continue
        if group and group_bytes + report_bytes > _MAX_REPORTS_BYTES:
            yield from _read(folder, group, job, model)
            group, group_bytes = [], 0
        group.append(task)
        group_bytes += report_bytes
    yield from _read(folder, group, job, model)


def _read(
    folder: str, tasks: Sequence[ShardTask], job: ShardJob[ReportT], model: type[ReportT]
) -> Iterator[tuple[ShardTask, ReportT]]:
    contents = read_many([Span(report_uri(folder, task.stem)) for task in tasks])
    for task, content in zip(tasks, contents, strict=True):
        report = load_report(content, model)
        if report is not None and (report.input_digest, report.work_digest) == (
            task.input_digest,
            job.work_digest(task),
        ):
            yield task, report


def finish(
    dataset: str,
    jobs: Sequence[Job],
    totals: Totals,
    *,
    skipped: Mapping[str, int] | None = None,
    run: Mapping[str, Any] | None = None,
) -> Manifest:
    """Removes files that no report names (of killed attempts or an earlier source), then writes the manifest.

    Args:
        dataset: URI.
        jobs: the jobs that lead to it; the last wrote it.
        totals: sum of the reports of all shards.
        skipped: files of the source that were not read as pictures, by reason.
        run: timings and the like.

    Raises:
        StriateError: another job has claimed the destination meanwhile.
    """
    earlier = find_manifest(dataset)
    if earlier is not None and earlier.jobs != list(jobs):
        raise StriateError(
            f"{dataset} was taken by another job while this one ran: {_description(earlier.job)}; run only one job at "
            "a time for a destination"
        )
    shards, rejects = totals.outputs, totals.rejects
    named = {entry.name for entry in (*shards, *rejects)}
    named |= {f"{REPORTS}/{shard_stem(entry.name)}.json" for entry in shards}
    named |= {f"{DECISIONS}/{entry.name}" for entry in shards}
    files = storage.list_files(dataset)
    storage.remove(file.uri for file in files if _JOB_FILE.fullmatch(file.path) and file.path not in named)
    del files, named  # for a large job these take more memory than everything else here
    manifest = Manifest(
        complete=True,
        jobs=list(jobs),
        tally=totals.tally,
        skipped=dict(sorted((skipped or {}).items())),
        shards=shards,
        rejects=rejects,
        versions=VERSIONS,
        histograms=totals.histograms,
        run=dict(run or {}),
    )
    unchanged = earlier is not None and earlier.complete and earlier.digest == manifest.digest
    if unchanged and manifest.run.get("pictures_made") == 0:
        return manifest  # the stored manifest has the timings of the run that wrote the dataset
    # A shard lost in a power cut is detected by its size and written again only while the manifest is not complete.
    storage.flush(storage.join(dataset, entry.name) for entry in [*manifest.shards, *manifest.rejects])
    save_manifest(dataset, manifest)
    return manifest


def shard_stem(name: str) -> str:
    """Returns `part-000000` for `part-000000.parquet`."""
    return name.removesuffix(SUFFIX)


def _identity(job: Job) -> dict[str, Any]:
    """Returns what must be equal for two runs to be the same job; the sources' digests are left out, as they may
    grow."""
    fields = job.model_dump(exclude={"source_digest", "origins"})
    fields["origins"] = [origin.source for origin in job.origins]
    fields["options"].pop(_EXTENT, None)
    return fields


def _description(job: Job) -> str:
    options = [f"{name}={value}" for name, value in job.options.items() if value is not None]
    steps = f" --steps '{job.pipeline}' --encode {job.encode}" if job.kind in ("filter", "augment") else ""
    sources = " ".join(origin.source for origin in job.origins) or job.source
    return f"{job.kind} {sources}{steps}" + (f" ({', '.join(options)})" if options else "")
