"""Takes pictures out of a dataset in place: which shards are concerned, and how their new versions replace them.

The new versions are first written to `_removing/` below the dataset, which stays whole and finished meanwhile. Then the
manifest is written as it will be, but not complete, the new files are moved to their places, and the manifest is
completed. So a kill leaves either the old dataset or one that is not finished, and the same command resumes.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from library import storage
from library.dataset.histograms import Histograms
from library.dataset.manifest import (
    DUPLICATES,
    REJECTS,
    REPORTS,
    VERSIONS,
    FileEntry,
    Job,
    Manifest,
    ShardReport,
    Tally,
    load_report,
    report_uri,
    save_manifest,
    save_report,
)
from library.dataset.shards import SUFFIX, ShardReader, write_table
from library.errors import StriateError, UsageError

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them

#: Reason for which removed pictures are counted as dropped.
REMOVED = "removed"
#: Folder of the new versions below a dataset.
STAGE = "_removing"

_MAX_LIST_BYTES = 2 * 2**30
_PARALLEL_READS = 8
# Columns whose values a tally counts.
_COUNTED = ("key", "label", "format", "channels", "width", "height")


def read_keys(uri: str, column: str | None = None) -> list[str]:
    """Reads keys from a text file, one a line, or from a column of a CSV or Parquet file.

    Args:
        uri: the file.
        column: name of the column; None for `key`.

    Raises:
        UsageError: there is no such column, no key, or `column` is given for a text file.
        StriateError: the file cannot be read.
    """
    data = storage.read_bytes(storage.normalize(uri), _MAX_LIST_BYTES)
    name = column or "key"
    try:
        if uri.lower().endswith((".parquet", ".pq")):
            schema = pq.read_schema(pa.BufferReader(data)).names
            keys = pq.read_table(pa.BufferReader(data), columns=[name])[name].to_pylist() if name in schema else None
            names = schema
        elif uri.lower().endswith((".csv", ".tsv")):
            delimiter = "\t" if uri.lower().endswith(".tsv") else ","
            rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=delimiter)
            names = list(rows.fieldnames or ())
            keys = [row[name] for row in rows] if name in names else None
        else:
            if column is not None:
                raise UsageError(f"--key-column {column} has no effect: {uri} is a text file with one key a line")
            names, keys = [], data.decode("utf-8-sig").split("\n")
            keys = [key.removesuffix("\r") for key in keys]
    except (pa.ArrowException, UnicodeDecodeError, csv.Error, OSError) as error:
        raise StriateError(f"{uri} cannot be read: {error}") from error
    if keys is None:
        raise UsageError(f"{uri} has no column '{name}'; it has {', '.join(names)}; --key-column names another")
    keys = list(dict.fromkeys(str(key) for key in keys if key))
    if not keys:
        raise UsageError(f"{uri} names no key")
    return keys


@dataclass(frozen=True)
class Concerned:
    """One shard, or its rejects, that hold keys to be removed.

    Attributes:
        shard: the shard.
        rejects: its file of rejects, if there is one.
        keys: those of the keys that it or its rejects hold.
        pictures: those that the shard itself holds.
        counted: counts of the pictures that the shard loses.
        rejected: how many rejects are lost, by reason.
    """

    shard: FileEntry
    rejects: FileEntry | None
    keys: list[str]
    pictures: list[str]
    counted: Tally
    rejected: Mapping[str, int]


def find_concerned(dataset: str, manifest: Manifest, keys: Collection[str]) -> tuple[list[Concerned], list[str]]:
    """Finds the shards that hold some keys, and the keys that none holds.

    Args:
        dataset: URI.
        manifest: of the dataset.
        keys: to look for.
    """
    wanted = pa.array(sorted(keys), pa.string())
    rejects = {storage.name_of(entry.name): entry for entry in manifest.rejects}

    def search(shard: FileEntry) -> Concerned:
        beside = rejects.get(shard.name)
        rows = _rows(storage.join(dataset, shard.name), _COUNTED, wanted)
        rejected = None if beside is None else _rows(storage.join(dataset, beside.name), ("key", "reason"), wanted)
        pictures = rows["key"].to_pylist()
        held = pictures + ([] if rejected is None else rejected["key"].to_pylist())
        reasons = Counter([] if rejected is None else rejected["reason"].to_pylist())
        return Concerned(shard, beside, sorted(set(held)), pictures, _tally(rows), reasons)

    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        concerned = [one for one in pool.map(search, manifest.shards) if one.keys]
    held = {key for one in concerned for key in one.keys}
    return concerned, [key for key in keys if key not in held]


def _rows(uri: str, columns: Sequence[str], wanted: pa.Array[Any]) -> pa.Table:
    table = ShardReader(uri).columns(list(columns))
    return table.filter(_compute.is_in(table["key"].cast(pa.string()), wanted))


def _tally(rows: pa.Table) -> Tally:
    """Counts rows by class, format, channels and side; their bytes are not known."""
    sides = np.maximum(rows["width"].to_numpy(), rows["height"].to_numpy()) if rows.num_rows else np.zeros(0)
    rounded = (2 ** np.ceil(np.log2(np.maximum(sides, 1)))).astype(np.int64)
    return Tally(
        rows_out=rows.num_rows,
        classes=_counts(rows["label"].to_pylist()),
        formats=_counts(rows["format"].to_pylist()),
        channels=_counts(rows["channels"].to_pylist()),
        sides=_counts(rounded.tolist()),
    )


def _counts(values: Sequence[Any]) -> dict[str, int]:
    return {str(value): number for value, number in Counter(values).items() if value is not None}


def without(
    before: Manifest, job: Job, concerned: Sequence[Concerned], staged: Manifest, histograms: dict[str, Any] | None
) -> Manifest:
    """Returns the manifest of a dataset after the removal, not complete yet.

    Its counts are those of the dataset's whole history: what is removed moves from kept or rejected to dropped.

    Args:
        before: the manifest of the dataset.
        job: the removal.
        concerned: the shards that change.
        staged: the manifest of their new versions.
        histograms: of the pictures that stay.
    """
    tally = before.tally
    lost = Tally.total(one.counted for one in concerned)
    rejected = sum((Counter(one.rejected) for one in concerned), Counter[str]())
    less = staged.tally.image_bytes_in - staged.tally.image_bytes_out
    removed = Counter(tally.dropped) + Counter({REMOVED: lost.rows_out + rejected.total()})
    names = ("classes", "formats", "channels", "sides")
    after = tally.model_copy(
        update={
            "rows_out": tally.rows_out - lost.rows_out,
            "image_bytes_out": tally.image_bytes_out - less,
            "dropped": dict(sorted(removed.items())),
            "rejected": _minus(tally.rejected, rejected),
            **{name: _minus(getattr(tally, name), getattr(lost, name)) for name in names},
        }
    )
    changed = {one.shard.name for one in concerned}
    changed |= {one.rejects.name for one in concerned if one.rejects is not None}
    return Manifest(
        complete=False,
        jobs=[*before.jobs, job],
        tally=after,
        skipped=before.skipped,
        shards=_replaced(before.shards, changed, staged.shards),
        rejects=_replaced(before.rejects, changed, staged.rejects),
        versions=VERSIONS,
        histograms=histograms,
        run=staged.run,
    )


def _minus(counts: Mapping[str, int], less: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted((Counter(counts) - Counter(less)).items()))


def _replaced(entries: Sequence[FileEntry], changed: Collection[str], new: Sequence[FileEntry]) -> list[FileEntry]:
    return sorted([*(entry for entry in entries if entry.name not in changed), *new], key=lambda entry: entry.name)


def histograms_after(dataset: str, before: Manifest, concerned: Sequence[Concerned]) -> dict[str, Any] | None:
    """Returns the sum of the histograms of the new versions and of the shards that stay.

    Returns:
        None where the dataset was not measured, or a report of a shard that stays has been lost.
    """
    if before.histograms is None:
        return None
    total = Histograms()
    changed = {one.shard.name for one in concerned}
    for shard in before.shards:
        folder = storage.join(dataset, STAGE) if shard.name in changed else dataset
        report = _report(folder, shard.name)
        if report is None or report.histograms is None:
            return None
        if shard.name not in changed and report.output.digest != shard.digest:
            return None
        total.merge(Histograms.from_dict(report.histograms))
    return total.to_dict()


def _report(folder: str, name: str) -> ShardReport | None:
    [data] = storage.read_many([storage.Span(report_uri(folder, name.removesuffix(SUFFIX)))])
    return load_report(data, ShardReport)


def swap(dataset: str, staged: Manifest) -> None:
    """Moves the new versions to their places, with their reports; those that were moved before a kill stay.

    Args:
        dataset: URI; its manifest is not complete.
        staged: the manifest of the new versions.
    """
    stage = storage.join(dataset, STAGE)
    waiting = {file.path for file in storage.list_files(stage)}
    kept = {entry.name for entry in staged.rejects}
    for entry in (*staged.shards, *staged.rejects):
        if entry.name in waiting:
            storage.move(storage.join(stage, entry.name), storage.join(dataset, entry.name))
    storage.remove(
        storage.join(dataset, f"{REJECTS}/{entry.name}")
        for entry in staged.shards
        if f"{REJECTS}/{entry.name}" not in kept
    )
    for entry in staged.shards:
        report = _report(stage, entry.name)
        if report is not None:
            save_report(dataset, report)


def remove_beside(dataset: str, folders: Collection[str], shards: Collection[str], keys: Collection[str]) -> None:
    """Removes what other commands computed from the pictures of some shards, and keys in the table of duplicates.

    Args:
        dataset: URI.
        folders: below it, each with a file for each shard, or with folders of such files.
        shards: names of the shards.
        keys: of the pictures that are removed.
    """
    for folder in folders:
        files = storage.list_files(storage.join(dataset, folder))
        storage.remove(file.uri for file in files if storage.name_of(file.path) in shards)
    uri = storage.join(dataset, DUPLICATES)
    if not storage.exists(uri):
        return
    table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
    removed = pa.array(sorted(keys), pa.string())
    named = _compute.or_(_compute.is_in(table["key"], removed), _compute.is_in(table["kept"], removed))
    if _compute.any(named).as_py():
        write_table(uri, table.filter(_compute.invert(named)))


def complete(dataset: str, target: Manifest) -> Manifest:
    """Completes the manifest of a dataset whose files are in place, and removes the folder of new versions.

    Raises:
        StriateError: a file is missing or has another size.
    """
    sizes = {file.path: file.size for file in storage.list_files(dataset)}
    for entry in (*target.shards, *target.rejects):
        if sizes.get(entry.name) != entry.bytes:
            raise StriateError(
                f"{storage.join(dataset, entry.name)} is missing or was changed while pictures were removed; restore "
                "it, or create the dataset again"
            )
    storage.flush(storage.join(dataset, entry.name) for entry in (*target.shards, *target.rejects))
    manifest = target.model_copy(update={"complete": True})
    save_manifest(dataset, manifest)
    remove_stage(dataset)
    return manifest


def remove_stage(dataset: str) -> None:
    """Removes the folder of new versions, the files that make it resumable last."""
    files = storage.list_files(storage.join(dataset, STAGE))
    storage.remove(file.uri for file in files if not file.path.startswith((REPORTS, "_manifest")))
    storage.remove(file.uri for file in files)
    for folder in (REJECTS, REPORTS, ""):
        storage.remove_empty_folder(storage.join(dataset, STAGE, folder).rstrip("/"))
