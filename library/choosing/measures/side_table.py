"""The side table of a dataset: one small Parquet file of measures for each shard, in `_measures/` below the dataset.

A file has the rows of its shard in the same order: `key`, `reason` (why the pixels could not be measured) and a column
for each measure. Its schema's metadata names the shard's digest and what made each column. A file of another digest,
and a column that was made in another way, counts as missing. Readers of Parquet skip the folder, and so does every job
that reads or writes the dataset.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from library import storage
from library.choosing.measures.measuring import MEASURES, REASON, check_columns
from library.dataset.manifest import FileEntry, Manifest, find_manifest
from library.dataset.shards import SUFFIX
from library.errors import StriateError, UsageError

#: The folder below a dataset.
FOLDER = "_measures"

_METADATA = b"striate.measures"
_READ_AT_ONCE = 16
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, UnicodeDecodeError)


@dataclass(frozen=True)
class Origin:
    """From what a file of the side table was made.

    Attributes:
        digest: SHA-256 of the shard.
        rows: of the shard that were measured.
        made_by: what made each column, by the column's name.
        dataset: URI of the dataset when it was measured, as `recorded_dataset` says; it may lie elsewhere since, so it
            does not count for equality.
    """

    digest: str
    rows: int
    made_by: Mapping[str, str] = field(default_factory=dict[str, str])
    dataset: str = field(default="", compare=False)

    def current(self, digest: str, rows: int) -> frozenset[str]:
        """Returns the columns that are up to date for a shard of that digest and number of rows."""
        if (self.digest, self.rows) != (digest, rows):
            return frozenset()
        known = self.made_by.keys() & MEASURES.keys()
        return frozenset(name for name in known if MEASURES[name].made_by == self.made_by[name])

    def metadata(self) -> dict[bytes, bytes]:
        """Returns it as metadata of a Parquet schema."""
        facts = {"shard": self.digest, "rows": self.rows, "columns": dict(self.made_by), "dataset": self.dataset}
        return {_METADATA: json.dumps(facts, sort_keys=True).encode()}

    @classmethod
    def of(cls, schema: pa.Schema) -> Origin | None:
        """Reads the metadata of a file; None where it was not written by `striate measure`."""
        try:
            facts = json.loads((schema.metadata or {})[_METADATA])
            return cls(facts["shard"], facts["rows"], dict(facts["columns"]), facts.get("dataset", ""))
        except (KeyError, TypeError, ValueError):
            return None


def folder_of(dataset: str) -> str:
    """Returns the URI of the side table of a dataset where no other folder was chosen."""
    return storage.join(dataset, FOLDER)


def recorded_dataset(dataset: str, folder: str) -> str:
    """Returns the URI that files of a side table record; empty below the dataset, where a copy has the same bytes."""
    return "" if storage.contains(dataset, folder) else dataset


def schema_of(names: Sequence[str], origin: Origin) -> pa.Schema:
    """Returns the schema of a file with these measures."""
    measures = [pa.field(name, MEASURES[name].type) for name in names]
    return pa.schema(
        [pa.field("key", pa.string()), pa.field(REASON, pa.string()), *measures], metadata=origin.metadata()
    )


def read_origin(folder: str, name: str) -> Origin | None:
    """Reads what a file of the side table was made from; None where there is no such file, or it is damaged."""
    uri = storage.join(folder, name)
    try:
        with storage.open_read(uri) as file:
            return Origin.of(pq.read_schema(file))
    except (StriateError, *_DAMAGE):
        return None


def read_origins(folder: str, leave_out: Collection[str] = ()) -> dict[str, Origin | None]:
    """Reads what each file of a side table was made from.

    Args:
        folder: URI; files in folders below it do not count.
        leave_out: names of files that are not read.

    Returns:
        By the file's name; None for a file that `striate measure` did not write, or that is damaged.
    """
    parts = [file.path for file in storage.list_files(folder) if _is_part(file.path) and file.path not in leave_out]
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        return dict(zip(parts, pool.map(lambda name: read_origin(folder, name), parts), strict=True))


def check_folder(
    folder: str, dataset: str, shards: Sequence[FileEntry], option: str, model: str | None = None
) -> dict[str, Origin]:
    """Refuses a folder with files of shards that are not measures of a dataset, as they would be replaced or removed.

    Args:
        folder: URI that an option gives for the side table.
        dataset: URI.
        shards: of the dataset.
        option: for the message, such as `--out`.
        model: name of the folder below it, for what a model says about the pictures.

    Returns:
        From what each file was made, by its name.

    Raises:
        UsageError: says which file is of something else.
    """
    if storage.contains(dataset, folder) and folder != folder_of(dataset):
        raise UsageError(f"{option} {folder} lies in the dataset; choose a folder outside it, or leave out {option}")
    if find_manifest(folder) is not None:
        raise UsageError(f"{option} {folder} is a dataset; choose a folder of its own for the measures")
    where, known = folder if model is None else storage.join(folder, model), {shard.digest for shard in shards}
    origins = dict[str, Origin]()
    for name, origin in read_origins(where).items():
        if origin is None:
            raise UsageError(f"{option} {where} contains {name}, which holds no measures; choose another folder")
        if origin.dataset != recorded_dataset(dataset, where) and origin.digest not in known:
            raise UsageError(
                f"{option} {where} contains {name} with measures of {origin.dataset or 'another dataset'}, which would "
                "be replaced; choose another folder, or remove those measures"
            )
        origins[name] = origin
    return origins


def read_part(folder: str, name: str, digest: str, rows: int, columns: Sequence[str]) -> pa.Table | None:
    """Reads measures of one shard: `key`, `reason` and those of `columns` that are up to date.

    Args:
        folder: of the side table.
        name: of the shard, such as `part-000000.parquet`.
        digest: of the shard.
        rows: of the shard.
        columns: names of measures.

    Returns:
        A table in the order of the shard; None where nothing of it is up to date.
    """
    uri = storage.join(folder, name)
    if not storage.exists(uri):
        return None
    try:
        with storage.open_read(uri) as file:
            # Arrow's own threads may still hold a Python file when the interpreter ends (see ShardReader).
            parquet = pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)
            origin = Origin.of(parquet.schema_arrow)
            current = frozenset[str]() if origin is None else origin.current(digest, rows)
            chosen = [name for name in columns if name in current]
            if not chosen:
                return None
            return parquet.read(["key", REASON, *chosen], use_threads=False)
    except (StriateError, *_DAMAGE):
        return None


def read_measures(dataset: str, manifest: Manifest, columns: Sequence[str], folder: str | None = None) -> pa.Table:
    """Reads measures of a whole dataset.

    Args:
        dataset: its URI.
        manifest: its manifest.
        columns: names of measures.
        folder: of the side table; None for `_measures/` below the dataset.

    Returns:
        `key` and the columns, in the order of the shards and of their rows; null where a picture could not be measured.

    Raises:
        UsageError: a column is unknown, missing or not up to date.
    """
    check_columns(columns)
    where = folder_of(dataset) if folder is None else folder
    names = ["key", *columns]

    def read(shard: FileEntry) -> pa.Table | None:
        part = read_part(where, shard.name, shard.digest, shard.rows, columns)
        return part if part is None or set(names) <= set(part.column_names) else None

    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        parts = list(pool.map(read, manifest.shards))
    tables = [part.select(names) for part in parts if part is not None]
    if len(tables) < len(parts):
        missing = len(parts) - len(tables)
        raise UsageError(
            f"{dataset} has no measures of {', '.join(columns)}, or they are of earlier pictures, for {missing:,} of "
            f"{len(parts):,} shards; run `striate measure {shlex.quote(dataset)} --columns {','.join(columns)}`"
        )
    if not tables:
        return pa.schema([("key", pa.string()), *((name, MEASURES[name].type) for name in columns)]).empty_table()
    # The metadata differs from shard to shard.
    return pa.concat_tables([table.replace_schema_metadata(None) for table in tables])


@dataclass(frozen=True)
class Parts:
    """The files of a complete side table, read one after the other, so that memory does not grow with their number.

    Attributes:
        folder: URI of the side table.
        shards: of the dataset.
    """

    folder: str
    shards: Sequence[FileEntry]

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yields these columns of each file.

        Raises:
            StriateError: a file is missing or damaged, or lacks a column.
        """
        for shard in self.shards:
            uri = storage.join(self.folder, shard.name)
            try:
                with storage.open_read(uri) as file:
                    yield pq.ParquetFile(file, pre_buffer=False).read(list(columns), use_threads=False)
            except _DAMAGE as error:
                hint = "remove it, and run `striate measure` again"
                raise StriateError(f"{uri} cannot be read: {error}; {hint}") from error


def _is_part(path: str) -> bool:
    return path.startswith("part-") and path.endswith(SUFFIX)
