"""A dataset being made: claimed by one job, taken up again after a kill, finished once.

The claim is a manifest with `complete` false, written before the first shard. The same job may come back to it as
often as needed; another job is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from library import storage
from library.dataset.lease import LEASES
from library.dataset.manifest import (
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
#: What a job of ours writes below a dataset; nothing else is ever removed.
_OURS = re.compile(rf"(({REJECTS}/)?part-\d+\.parquet|{REPORTS}/part-\d+\.json|{_TEMPORARY})")
_NOTHING_YET = rf"{LEASES}/.*|{_TEMPORARY}"

_READ_AT_ONCE_BYTES = 16 * 2**20

#: Choices that only say how far a job goes, not what it makes.
_EXTENT = "limit"


def check_apart(source: str, destination: str) -> None:
    """Refuse a destination that is, holds, or lies inside the source.

    Raises:
        UsageError: says which.
    """
    if storage.contains(source, destination):
        raise UsageError(f"the destination {destination} lies in the source {source}; choose a folder outside it")
    if storage.contains(destination, source):
        raise UsageError(f"the source {source} lies in the destination {destination}; choose a folder outside it")


def remove_uncommitted(dataset: str) -> None:
    """Remove temporary files; and as long as the dataset is not complete, shards and rejects without a report.

    For a job that has failed. Workers that still write leave theirs: the next run of the job removes it.
    """
    held = find_manifest(dataset)
    if held is None:
        return
    files = storage.list_files(dataset)
    reports = {file.path for file in files if file.path.startswith(f"{REPORTS}/")}

    def is_left_over(path: str) -> bool:
        if held.complete or path in reports or not _OURS.fullmatch(path):
            return re.fullmatch(_TEMPORARY, path) is not None
        return f"{REPORTS}/{shard_stem(storage.name_of(path))}.json" not in reports

    storage.remove(file.uri for file in files if is_left_over(file.path))


def check_claim(dataset: str, job: Job, *, overwrite: bool) -> None:
    """See whether `job` may write to `dataset`; changes nothing.

    Raises:
        UsageError: when it holds something else.
    """
    held = find_manifest(dataset)
    if held is None:
        # A job killed before its claim was written may have left its lease or a temporary file.
        if any(not re.fullmatch(_NOTHING_YET, file.path) for file in storage.list_files(dataset)):
            raise UsageError(f"{dataset} is not empty and holds no dataset of ours; choose an empty folder")
        return
    if overwrite:
        return
    if _identity(held.job) != _identity(job):
        raise UsageError(
            f"{dataset} holds the output of another job:\n  there: {_described(held.job)}\n  this:  {_described(job)}\n"
            "choose another destination, or --overwrite to replace it"
        )
    before, now = held.job.options.get(_EXTENT), job.options.get(_EXTENT)
    if now is not None and (before is None or now < before):
        reach = "all pictures" if before is None else f"the first {before:,}"
        raise UsageError(f"{dataset} was made with {reach}; --limit {now} would take some away (--overwrite does so)")


def claim(dataset: str, jobs: Sequence[Job], *, overwrite: bool, planned: Mapping[str, int] | None = None) -> None:
    """Make `dataset` this job's, the last of `jobs`; with `overwrite`, empty it first, unless this job began already.

    Args:
        dataset: URI.
        jobs: what makes it; the last is its own.
        overwrite: whether what another job left there is replaced.
        planned: `shards_planned` and `pictures_planned`, for whoever asks how far the job is.

    Raises:
        UsageError: as `check_claim`: another job may have come first since then.
    """
    check_claim(dataset, jobs[-1], overwrite=overwrite)
    storage.check_writable(dataset)
    held = find_manifest(dataset)
    if held is not None and not held.complete and held.jobs == list(jobs):
        return
    if overwrite or held is None or held.jobs != list(jobs):
        # Before anything is removed: a kill in between must not leave a manifest that calls the rest complete.
        claimed = Manifest(complete=False, jobs=list(jobs), versions=VERSIONS, run=dict(planned or {}))
        save_manifest(dataset, claimed)
    if overwrite:
        found = storage.list_files(dataset)
        # Reports first: a shard without a report is not done, so a kill in between leaves nothing half true.
        storage.remove(file.uri for file in found if file.path.startswith(f"{REPORTS}/") and _OURS.fullmatch(file.path))
        storage.remove(file.uri for file in found if _OURS.fullmatch(file.path))


def committed(tasks: Iterable[ShardTask], job: ShardJob[ShardReport]) -> Iterator[tuple[ShardTask, ShardReport]]:
    """The shards that are done already: same input, same work, and the file is there."""
    wanted: dict[str, list[ShardTask]] = {}
    for task in tasks:
        wanted.setdefault(task.dataset, []).append(task)
    for dataset, mine in wanted.items():
        sizes = {file.path: file.size for file in storage.list_files(dataset)}
        for task, report in reports_below(dataset, sizes, mine, job, ShardReport):
            outputs = [report.output, *([report.rejects] if report.rejects else [])]
            if all(sizes.get(entry.name) == entry.bytes for entry in outputs):
                yield task, report


def reports_below(
    folder: str, sizes: Mapping[str, int], tasks: Iterable[ShardTask], job: ShardJob[ReportT], model: type[ReportT]
) -> Iterator[tuple[ShardTask, ReportT]]:
    """The tasks that have a report below a folder, of the same input and the same work, and these reports.

    Reports are read some at a time: those of a large job would not fit into memory together.

    Args:
        folder: URI.
        sizes: of the files below it in bytes, by path; at least of its reports.
        tasks: of one dataset.
        job: what is done to each.
        model: what its reports are.
    """
    some: list[ShardTask] = []
    size = 0
    for task in tasks:
        its_size = sizes.get(f"{REPORTS}/{task.stem}.json")
        if its_size is None:
            continue
        if some and size + its_size > _READ_AT_ONCE_BYTES:
            yield from _read(folder, some, job, model)
            some, size = [], 0
        some.append(task)
        size += its_size
    yield from _read(folder, some, job, model)


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
    made: Totals,
    *,
    skipped: Mapping[str, int] | None = None,
    run: Mapping[str, Any] | None = None,
) -> Manifest:
    """Remove what no report names (leftovers of killed attempts, shards of an earlier source), then write the manifest.

    Args:
        dataset: URI.
        jobs: what made it; the last is its own job.
        made: what the reports of every shard say together.
        skipped: files never taken for pictures, by reason.
        run: timings and the like.

    Raises:
        StriateError: when another job has taken the destination meanwhile.
    """
    held = find_manifest(dataset)
    if held is not None and held.jobs != list(jobs):
        raise StriateError(
            f"{dataset} was taken over while this job ran, by: {_described(held.job)}; run one at a time there"
        )
    shards, rejects = made.outputs, made.rejects
    kept = {entry.name for entry in (*shards, *rejects)}
    kept |= {f"{REPORTS}/{shard_stem(entry.name)}.json" for entry in shards}
    found = storage.list_files(dataset)
    storage.remove(file.uri for file in found if _OURS.fullmatch(file.path) and file.path not in kept)
    del found, kept  # of a large job more than everything else here
    manifest = Manifest(
        complete=True,
        jobs=list(jobs),
        tally=made.tally,
        skipped=dict(sorted((skipped or {}).items())),
        shards=shards,
        rejects=rejects,
        versions=VERSIONS,
        histograms=made.histograms,
        run=dict(run or {}),
    )
    nothing_made = manifest.run.get("pictures_made") == 0
    if nothing_made and held is not None and held.complete and held.digest == manifest.digest:
        return manifest  # what is on record tells how the dataset was made, and this run made nothing
    # A shard lost in a power cut is found by its size and made again, but only as long as the manifest is not complete.
    storage.flush(storage.join(dataset, entry.name) for entry in [*manifest.shards, *manifest.rejects])
    save_manifest(dataset, manifest)
    return manifest


def shard_stem(name: str) -> str:
    """`part-000000` of `part-000000.parquet`."""
    return name.removesuffix(SUFFIX)


def _identity(job: Job) -> dict[str, Any]:
    """What must be equal for two runs to be one job. The source may have grown: its digest is not part of it."""
    kept = job.model_dump(exclude={"source_digest"})
    kept["options"].pop(_EXTENT, None)
    return kept


def _described(job: Job) -> str:
    options = [f"{name}={value}" for name, value in job.options.items() if value is not None]
    steps = f" --steps '{job.pipeline}' --encode {job.encode}" if job.kind in ("filter", "augment") else ""
    return f"{job.kind} {job.source}{steps}" + (f" ({', '.join(options)})" if options else "")
