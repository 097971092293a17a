"""Describes a dataset, its history and the progress of the job that writes it: `striate info`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from cluster.console import Terminal
from jobs.output import balance, counted, left_out, ranked, size, time_spent
from jobs.progress.display import duration
from library import storage
from library.dataset.manifest import (
    REJECTS,
    REPORTS,
    Manifest,
    ShardReport,
    Tally,
    find_manifest,
    load_report,
    no_dataset,
    splits_below,
)
from library.errors import UsageError
from library.evaluation.report.templates import PAGE
from library.storage import Span

# The speed is that of the last minutes: a job may have been stopped for days before it was resumed.
_RECENT_S = 300


def datasets_below(folder: str) -> dict[str, Manifest]:
    """Returns the manifest of the dataset at `folder`, or of each split below it, by URI.

    The manifest of an unfinished dataset has the counts of the shards that are done.

    Raises:
        UsageError: when there is no dataset.
    """
    folder = storage.normalize(folder)
    manifest = find_manifest(folder)
    if manifest is not None:
        return {folder: _so_far(folder, manifest)}
    splits = splits_below(folder)
    if not splits:
        page = storage.join(folder, PAGE)
        if storage.exists(page):
            raise UsageError(f"{folder} is not a dataset; it holds a page: open {page} in a browser")
        raise no_dataset(folder)
    return {uri: _so_far(uri, manifest) for uri in splits if (manifest := find_manifest(uri)) is not None}


def _so_far(dataset: str, manifest: Manifest) -> Manifest:
    if manifest.complete:
        return manifest
    files = [file for file in storage.list_files(storage.join(dataset, REPORTS)) if file.path.endswith(".json")]
    read = zip(files, storage.read_many([Span(file.uri) for file in files]), strict=True)
    done = [(file.modified, report) for file, data in read if (report := load_report(data, ShardReport))]
    return manifest.model_copy(
        update={
            "tally": Tally.total(report.tally for _, report in done),
            "shards": [report.output for _, report in done],
            "run": manifest.run | _pace([(when, report.tally.rows_in) for when, report in done]),
        }
    )


def _pace(done: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """Returns the speed of the last minutes, and how long ago the last shard was committed.

    Args:
        done: for each shard, the Unix time of its commit and the number of pictures that were read for it.
    """
    if not done:
        return {}
    last = max(when for when, _ in done)
    recent = [(when, pictures) for when, pictures in done if when >= last - _RECENT_S]
    first = min(when for when, _ in recent)
    # The pictures of the first shard were read before the measured time begins.
    pictures = sum(pictures for when, pictures in recent if when > first)
    rate = round(pictures / (last - first), 1) if pictures else None
    return {"pictures_per_s": rate, "last_shard_s_ago": round(max(0.0, time.time() - last), 1)}


def how_far(manifest: Manifest) -> str:
    """Returns `412 of 1,000 shards, 51,200 of 128,000 pictures (40%), 652/s, 58 s left, the last shard 3 s ago`."""
    run, pictures = manifest.run, manifest.tally.rows_in
    planned, rate = run.get("pictures_planned"), run.get("pictures_per_s")
    shards = counted(len(manifest.shards), "shard")
    parts = [f"{len(manifest.shards):,} of {run['shards_planned']:,} shards" if "shards_planned" in run else shards]
    parts.append(f"{pictures:,} pictures" if planned is None else f"{pictures:,} of {planned:,} pictures")
    if planned:
        parts[-1] += f" ({pictures / planned:.0%})"
    if rate is not None:
        parts.append(f"{rate:,.0f}/s")
        if planned is not None:
            parts.append(f"{duration(max(0, planned - pictures) / rate)} left")
    if "last_shard_s_ago" in run:
        parts.append(f"the last shard {duration(run['last_shard_s_ago'])} ago")
    return ", ".join(parts)


def print_info(dataset: str, manifest: Manifest) -> None:
    """Prints a dataset's manifest for people, on stdout."""
    console = Terminal()
    tally = manifest.tally
    state = "" if manifest.complete else "  NOT FINISHED; if no job is running, the same command resumes it"
    console.print(f"[bold]{escape(dataset)}[/]{state}", soft_wrap=True)
    if not manifest.complete:
        console.print(how_far(manifest), markup=False, soft_wrap=True)
    pictures, shards = counted(tally.rows_out, "picture"), counted(len(manifest.shards), "shard")
    console.print(f"{pictures} in {shards}, {size(manifest.bytes)}")
    console.print(balance(manifest))
    for line in left_out(manifest):
        console.print(line, markup=False, soft_wrap=True)
    if manifest.rejects:
        rejects = storage.join(dataset, REJECTS)
        console.print(f"the rejects are in {rejects}, Parquet with `reason` and `detail`", markup=False, soft_wrap=True)
    console.print(_counts(manifest))
    console.print("made by:")
    for number, job in enumerate(manifest.jobs, 1):
        options = ", ".join(f"{name}={value}" for name, value in job.options.items() if value is not None)
        what = job.pipeline or options or "unchanged"
        encode = f"  (encode {job.encode})" if job.pipeline else ""
        source = f"{len(job.origins)} datasets" if job.origins else job.source
        console.print(f"  {number}. {job.kind} {source}: {what}{encode}", markup=False, soft_wrap=True)
        for origin in job.origins:
            kinds = ", ".join(earlier.kind for earlier in origin.jobs)
            console.print(f"     {origin.source} ({kinds}; digest {origin.digest[:12]})", markup=False, soft_wrap=True)
    console.print(f"digest {manifest.digest}")
    console.print(f"in metrics: dataset_id {storage.uri_id(dataset)}")
    table = time_spent([manifest.run])
    if table is not None:
        console.print(table)
    console.print()


def _counts(manifest: Manifest) -> Table:
    tally = manifest.tally
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    labelled = sum(tally.classes.values())
    table.add_row(
        "classes", f"{len(tally.classes):,}" + (f" ({escape(ranked(tally.classes))})" if tally.classes else "")
    )
    if labelled < tally.rows_out:
        table.add_row("without a label", f"{tally.rows_out - labelled:,}")
    table.add_row("formats", escape(ranked(tally.formats)))
    table.add_row("channels", escape(ranked(tally.channels)))
    sides = dict(sorted(tally.sides.items(), key=lambda item: int(item[0])))
    table.add_row("longer side", ", ".join(f"up to {side} px: {count:,}" for side, count in sides.items()))
    if manifest.histograms is not None:
        from library.dataset.histograms import Histograms

        table.add_row("measured", Histograms.from_dict(manifest.histograms).medians())
    return table
