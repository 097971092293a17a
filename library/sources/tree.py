"""Builds the rows of folders and archives of picture files, with labels, splits and captions."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from library.errors import StriateError, UsageError
from library.sources.archives.reading import read_files, read_members
from library.sources.entries import MAX_SIDECAR_BYTES, Entries, is_picture_name
from library.sources.labels import from_folders
from library.sources.listing import INDEX_SCHEMA, MAX_BYTES, Listing, Options, finish, output_name
from library.sources.tables.columns import Columns
from library.sources.tables.metadata import Metadata, find_metadata
from library.sources.tables.sidecars import Facts, Sample, facts, samples

_BATCH = 4096  # samples whose sidecars are read together


class Tree:
    """Collects the rows of any number of folders and archives into one listing.

    Args:
        options: the options of `list_source`.
        kind: the kind of the listing: folder, tar, zip or archives; if samples are WebDataset's, `webdataset`.
    """

    def __init__(self, options: Options, kind: str) -> None:
        self._options = options
        self._kind = kind
        self._columns: dict[str, list[Any]] = {name: [] for name in INDEX_SCHEMA.names}
        self._folders: list[str] = []
        self._picture: list[bool] = []
        self._labelled: list[bool] = []  # whether the label is known, even where it is None
        self._extras = Columns()
        self._part_names: set[str] = set()
        self._label_found = False
        self._webdataset = False
        self.skipped: Counter[str] = Counter()
        self.gzip_indexes: dict[str, bytes] = {}
        self.notes: list[str] = []

    def add(
        self, entries: Entries, prefix: str = "", folder: str = "", split: str | None = None, tar: bool = False
    ) -> None:
        """Adds the files of one folder or archive.

        Args:
            entries: its files.
            prefix: prefix of the keys: an archive's path below the source, if it is one of several.
            folder: the folder that its root stands for when labels are found in folders.
            split: the split in its name.
            tar: whether the files may be WebDataset's samples.
        """
        main = self._options.image_column if tar else None
        webdataset, grouped = samples(entries, tar, main)
        metadata = Metadata() if webdataset else find_metadata(entries, lambda row: self._content(entries, row))
        self.notes += [*entries.notes, *metadata.notes]
        entries.skipped["beside"] -= len(metadata.tables)
        self.skipped += entries.skipped
        self._webdataset = self._webdataset or webdataset
        for sample, sidecar_facts in self._with_facts(entries, grouped, metadata):
            row = sample.row
            columns = self._columns
            own = sidecar_facts.key is not None
            columns["key"].append(sidecar_facts.key if own else posixpath.join(prefix, sample.key))
            columns["uri"].append(entries.uri[row])
            columns["at"].append(entries.at[row])
            columns["size"].append(entries.size[row])
            columns["block"].append(entries.block[row])
            columns["label"].append(sidecar_facts.label)
            columns["split"].append(sidecar_facts.split or split)
            columns["problem"].append(entries.problem[row] or sidecar_facts.problem or _part_problem(entries, sample))
            columns["stored"].append(_stored(entries, row))
            columns["parts"].append(_parts(entries, sample))
            self._part_names.update(sample.parts)
            self._extras.add(sidecar_facts.fields)
            inside = posixpath.dirname(entries.path[row])
            for _ in range(sidecar_facts.depth):
                inside = posixpath.dirname(inside)
            self._folders.append(posixpath.join(folder, inside))
            self._labelled.append(own and self._options.label_level is None)
            self._picture.append(is_picture_name(entries.path[row]))
            self._label_found = self._label_found or sidecar_facts.label is not None
        for path in metadata.unclaimed:
            self._add_missing(path, prefix, folder, entries.uri[metadata.tables[0]])

    def _add_missing(self, path: str, prefix: str, folder: str, uri: str) -> None:
        """Adds a row for a picture that is named in a table but does not exist."""
        row = {"key": posixpath.join(prefix, path), "uri": uri, "at": 0, "size": 0}
        row["problem"] = f"missing: a table beside the pictures names {path}, but there is no such file"
        for name, values in self._columns.items():
            values.append(row.get(name))
        self._extras.add({})
        self._folders.append(posixpath.join(folder, posixpath.dirname(path)))
        self._labelled.append(False)
        self._picture.append(False)

    def _content(self, entries: Entries, row: int) -> bytes:
        if row in entries.texts:
            return entries.texts[row]
        content = dict(_read(entries, [row], self.gzip_indexes, self._kind))
        if row not in content:
            raise StriateError(f"{entries.path[row]} in {entries.uri[row]} cannot be read")
        return content[row]

    def listing(self) -> Listing:
        """The listing of all rows; labels and splits that no sidecar gives come from the folders.

        Raises:
            StriateError: two rows have the same key.
            UsageError: --label-column names a field that no sidecar has.
        """
        if self._options.label_column is not None and not self._label_found:
            raise UsageError(
                f"--label-column {self._options.label_column}: no JSON or table beside a picture has this field; "
                f"there are {', '.join(self._extras.names) or 'none'}"
            )
        notes = self._add_labels()
        part_names = sorted(self._part_names)
        extras: dict[str, pa.Array[Any]] = {}
        for name, values in self._extras.arrays().items():
            extras[output_name(name, [*part_names, *extras])] = values
        return Listing(
            "webdataset" if self._webdataset else self._kind,
            finish(self._columns, extras),
            pa.schema([(name, pa.binary()) for name in part_names]),
            self.skipped,
            self.gzip_indexes,
            (*self.notes, *notes),
        )

    def _add_labels(self) -> tuple[str, ...]:
        pictures = {folder for folder, is_picture in zip(self._folders, self._picture, strict=True) if is_picture}
        labels, splits = self._columns["label"], self._columns["split"]
        known = [label is not None or own for label, own in zip(labels, self._labelled, strict=True)]
        wanting = {folder for folder, is_known in zip(self._folders, known, strict=True) if not is_known}
        from_path = from_folders(
            pictures or set(self._folders), set(self._folders), self._options.label_level, wanting=wanting
        )
        used = False
        for row, folder in enumerate(self._folders):
            if not known[row]:
                labels[row] = from_path.labels[folder]
                used = True
            if splits[row] is None:
                splits[row] = from_path.splits[folder]
        return from_path.notes if used else ()

    def _with_facts(self, entries: Entries, grouped: list[Sample], tables: Metadata) -> Iterator[tuple[Sample, Facts]]:
        """Each sample with the facts from its sidecars, which are read in batches."""
        for start in range(0, len(grouped), _BATCH):
            batch = grouped[start : start + _BATCH]
            rows = sorted({row for sample in batch for row in sample.sidecars.values()})
            too_large = {row for row in rows if entries.size[row] > MAX_SIDECAR_BYTES or entries.problem[row]}
            texts = {row: entries.texts.pop(row) for row in rows if row in entries.texts}
            missing = [row for row in rows if row not in texts and row not in too_large]
            texts |= dict(_read(entries, missing, self.gzip_indexes, self._kind))
            for sample in batch:
                if not too_large.isdisjoint(sample.sidecars.values()):
                    problem = f"bad_sidecar: larger than {MAX_SIDECAR_BYTES:,} bytes, or not readable in its archive"
                    yield sample, Facts(problem=problem)
                elif not all(row in texts for row in sample.sidecars.values()):
                    yield sample, Facts(problem="bad_sidecar: a file beside the picture cannot be read")
                else:
                    sidecars = {name: texts[row] for name, row in sample.sidecars.items()}
                    yield sample, facts(sidecars, self._options, tables.fields(entries.path[sample.row]))


def _read(
    entries: Entries, rows: list[int], gzip_indexes: Mapping[str, bytes], kind: str
) -> Iterable[tuple[int, bytes]]:
    if not rows:
        return
    table = pa.table(
        {
            "uri": [entries.uri[row] for row in rows],
            "at": [entries.at[row] for row in rows],
            "size": [entries.size[row] for row in rows],
            "stored": pa.array([_stored(entries, row) for row in rows], INDEX_SCHEMA.field("stored").type),
            "parts": pa.nulls(len(rows), INDEX_SCHEMA.field("parts").type),
        }
    )
    read = read_files if kind == "folder" else read_members
    for result in read(table, gzip_indexes, Options()):
        if result.data is not None and result.problem is None:
            yield rows[result.row], result.data


def _stored(entries: Entries, row: int) -> dict[str, int] | None:
    stored = entries.stored[row]
    return None if stored is None else dict(zip(("span", "size", "method", "crc"), stored, strict=True))


def _parts(entries: Entries, sample: Sample) -> list[dict[str, Any]] | None:
    return [
        {"column": name, "at": entries.at[row], "size": entries.size[row]} for name, row in sample.parts.items()
    ] or None


def _part_problem(entries: Entries, sample: Sample) -> str | None:
    total = sum(entries.size[row] for row in sample.parts.values())
    return f"too_large: {total:,} bytes in the sample's other members" if total > MAX_BYTES else None
