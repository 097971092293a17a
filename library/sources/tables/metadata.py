"""Reads tables beside pictures that describe each picture: metadata.csv, .jsonl or .parquet, and val_annotations.txt.

Hugging Face's imagefolder has such a table in the folder or in that of each split: its column `file_name` is a path
from the table's folder, the others describe the picture (https://huggingface.co/docs/datasets/image_dataset). Tiny
ImageNet lists the classes of its validation set in a text with tabs. COCO's annotations are a JSON document.
"""

from __future__ import annotations

import io
import posixpath
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from library.errors import StriateError
from library.sources.entries import Entries
from library.sources.labels import split_of
from library.sources.tables import coco
from library.sources.tables.sidecars import MARK
from library.sources.tables.text_tables import LISTS, narrow, read_table

_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_ANNOTATIONS = "_annotations.txt"
_FILE_NAME = "file_name"
_MAX_BYTES, _MAX_ROWS = 512 * 2**20, 50_000_000
_MAX_LISTED = 3


@dataclass
class Metadata:
    """The content of the tables of one folder or archive.

    Attributes:
        tables: row numbers of the entries that are such tables.
        notes: sentences for the user.
    """

    tables: list[int] = field(default_factory=list[int])
    notes: list[str] = field(default_factory=list[str])
    _columns: list[Mapping[str, list[Any]]] = field(default_factory=list[Mapping[str, list[Any]]])
    _where: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    def fields(self, path: str) -> dict[str, Any]:
        """The fields of one picture, which is then no longer in `unclaimed`."""
        table, number = self._where.pop(path, (-1, 0))
        if table < 0:
            return {}
        return {name: values[number] for name, values in self._columns[table].items() if values[number] is not None}

    @property
    def unclaimed(self) -> Iterable[str]:
        """The paths in tables whose `fields` were never read."""
        return self._where

    def add(self, paths: Iterable[str], columns: Mapping[str, list[Any]]) -> None:
        """Adds a table: the path of each row, and the other columns."""
        self._where |= {path: (len(self._columns), number) for number, path in enumerate(paths)}
        self._columns.append(columns)


def find_metadata(entries: Entries, read: Callable[[int], bytes]) -> Metadata:
    """Reads the tables among the files of a folder or archive.

    Args:
        entries: the files.
        read: returns the content of an entry by its row number.

    Raises:
        StriateError: a table is damaged (names it).
    """
    metadata = Metadata()
    suffixes = (*_NAMES, _ANNOTATIONS, *LISTS)
    rows = [
        row
        for row, path in enumerate(entries.path)
        if path.lower().endswith(suffixes) or coco.is_coco_name(posixpath.basename(path))
    ]
    rows.sort(key=lambda row: entries.path[row].count("/"))  # deeper tables come later and win
    lists: list[str] = []
    paths: set[str] | None = None
    for row in rows:
        path = entries.path[row]
        folder, name = posixpath.split(path)
        if name.lower() in _NAMES:
            columns = _columns(path, _content(entries, row, read))
            if _FILE_NAME in columns:
                names = columns[_FILE_NAME] if MARK in columns else columns.pop(_FILE_NAME)
                metadata.tables.append(row)
                metadata.add((_joined(folder, str(name)) for name in names), columns)
            else:
                metadata.notes.append(
                    f"{path} is not used: it has no column {_FILE_NAME}, but {', '.join(columns)}; rename the one "
                    "with the paths of the pictures"
                )
        elif coco.is_coco_name(name):
            paths = set(entries.path) if paths is None else paths
            table = coco.read_coco(path, _content(entries, row, read), paths)
            if table is not None:
                metadata.tables.append(row)
                metadata.notes += table.notes
                metadata.add(table.paths, table.columns)
        elif name.lower().endswith(_ANNOTATIONS) and split_of(name[: -len(_ANNOTATIONS)]) is not None:
            paths = set(entries.path) if paths is None else paths
            labels = _annotations(folder, _content(entries, row, read), paths)
            if labels:
                metadata.tables.append(row)
                metadata.add(labels, {"label": [*labels.values()]})
        elif entries.uri[row].lower().endswith(LISTS):  # a file, not a member of an archive
            lists.append(entries.uri[row])
    if lists:
        more = f" (and {len(lists) - _MAX_LISTED:,} more)" if len(lists) > _MAX_LISTED else ""
        metadata.notes.append(
            f"tables beside the pictures are not used: {', '.join(lists[:_MAX_LISTED])}{more}; if one lists pictures "
            f"and classes, ingest it instead of the folder: striate ingest {lists[0]} DESTINATION"
        )
    return metadata


def _content(entries: Entries, row: int, read: Callable[[int], bytes]) -> bytes:
    if entries.size[row] > _MAX_BYTES:
        raise StriateError(f"{entries.path[row]} is larger than {_MAX_BYTES:,} bytes; ingest it as a list")
    return read(row)


def _columns(path: str, data: bytes) -> dict[str, list[Any]]:
    if not path.lower().endswith(".parquet"):
        table = read_table(path, io.BytesIO(data))
        return {
            name: values if isinstance(values, list) else narrow(values).to_pylist() for name, values in table.items()
        }
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
        if sum(group.total_byte_size for group in groups) > _MAX_BYTES or file.metadata.num_rows > _MAX_ROWS:
            raise StriateError(f"{path} unpacks to more than {_MAX_BYTES:,} bytes or {_MAX_ROWS:,} rows")
        table = file.read(use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise StriateError(f"{path} is damaged, or not a Parquet file: {error}") from error
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _annotations(folder: str, data: bytes, paths: set[str]) -> dict[str, str]:
    """The class of each picture by its path, from lines with file name, class and a box, separated by tabs."""
    labels: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        name, *cells = line.split("\t")
        if not cells or not cells[0].strip():
            return {}
        in_folder, in_images = _joined(folder, name), _joined(folder, f"images/{name}")
        labels[in_images if in_images in paths else in_folder] = cells[0].strip()
    return labels if 2 * len(paths.intersection(labels)) > len(labels) else {}


def _joined(folder: str, name: str) -> str:
    return posixpath.normpath(posixpath.join(folder, name.strip().replace("\\", "/")))
