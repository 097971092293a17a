"""What a dataset holds and where it came from: `striate info`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.output import balance, counted, reasons, size, time_spent
from library import storage
from library.errors import UsageError
from library.manifest import MANIFEST, REJECTS, REPORTS, Manifest, Tally, find_manifest, load_report, splits_below
from library.storage import Span

_MOST_CLASSES = 20


def datasets_below(folder: str) -> dict[str, Manifest]:
    """The dataset at `folder`, or, where ingest made splits, each of them by URI. An unfinished one gets the counts of
    the shards that are done.

    Raises:
        UsageError: when there is none.
    """
    folder = storage.normalize(folder)
    held = find_manifest(folder)
    if held is not None:
        return {folder: _so_far(folder, held)}
    splits = splits_below(folder)
    if not splits:
        raise UsageError(f"{folder} is not a dataset: it has no {MANIFEST}; make one with `striate ingest`")
    return {uri: _so_far(uri, manifest) for uri in splits if (manifest := find_manifest(uri)) is not None}


def _so_far(dataset: str, manifest: Manifest) -> Manifest:
    if manifest.complete:
        return manifest
    reports = [file.uri for file in storage.list_files(storage.join(dataset, REPORTS)) if file.path.endswith(".json")]
    done = [report for data in storage.read_many([Span(uri) for uri in reports]) if (report := load_report(data))]
    return manifest.model_copy(
        update={"tally": Tally.total(report.tally for report in done), "shards": [report.output for report in done]}
    )


def print_info(dataset: str, manifest: Manifest) -> None:
    """For people, on stdout."""
    console = Console(highlight=False, emoji=False)
    tally = manifest.tally
    state = "" if manifest.complete else "  NOT FINISHED: run the command that makes it again, it goes on where it was"
    console.print(f"[bold]{escape(dataset)}[/]{state}", soft_wrap=True)
    pictures, shards = counted(tally.rows_out, "picture"), counted(len(manifest.shards), "shard")
    console.print(f"{pictures} in {shards}, {size(manifest.bytes)}")
    console.print(balance(manifest))
    for title, counts in (("dropped", tally.dropped), ("rejected", tally.rejected), ("skipped", manifest.skipped)):
        if counts:
            console.print(reasons(title, counts), markup=False, soft_wrap=True)
    if manifest.rejects:
        rejects = storage.join(dataset, REJECTS)
        console.print(f"the rejects lie in {rejects}, Parquet with `reason` and `detail`", markup=False, soft_wrap=True)
    console.print(_counts(manifest))
    console.print("made by:")
    for number, job in enumerate(manifest.jobs, 1):
        options = ", ".join(f"{name}={value}" for name, value in job.options.items() if value is not None)
        what = job.pipeline or options or "as it came"
        encode = f"  (encode {job.encode})" if job.pipeline else ""
        console.print(f"  {number}. {job.kind} {job.source}: {what}{encode}", markup=False, soft_wrap=True)
    console.print(f"digest {manifest.digest}")
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
        "classes", f"{len(tally.classes):,}" + (f" ({escape(_ranked(tally.classes))})" if tally.classes else "")
    )
    if labelled < tally.rows_out:
        table.add_row("without a label", f"{tally.rows_out - labelled:,}")
    table.add_row("formats", escape(_ranked(tally.formats)))
    table.add_row("channels", escape(_ranked(tally.channels)))
    sides = dict(sorted(tally.sides.items(), key=lambda item: int(item[0])))
    table.add_row("longer side", ", ".join(f"up to {side} px: {count:,}" for side, count in sides.items()))
    if manifest.histograms is not None:
        table.add_row("measured", _medians(manifest.histograms))
    return table


def _medians(histograms: Mapping[str, Any]) -> str:
    from library.drift import EDGES, Histograms

    made = Histograms.from_dict(histograms)
    found = {name: middle for name in EDGES if (middle := made.median(name)) is not None}
    return "medians: " + ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in found.items())


def _ranked(counts: Mapping[str, int]) -> str:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f", and {len(ranked) - _MOST_CLASSES} more" if len(ranked) > _MOST_CLASSES else ""
    return ", ".join(f"{name} {count:,}" for name, count in ranked[:_MOST_CLASSES]) + more
