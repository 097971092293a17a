"""Shards: Parquet files that are read and written one row group at a time, with their digest."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from time import perf_counter
from types import TracebackType
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from library import storage
from library.dataset.manifest import FileEntry
from library.dataset.record import CORE_COLUMNS
from library.errors import StriateError, UsageError

#: A row group is closed once it holds this many bytes of pictures.
ROW_GROUP_BYTES = 12 * 2**20

SUFFIX = ".parquet"

#: An object store answers a request in some 50 ms, and a shard takes several requests.
_PARALLEL_SHARDS = 16

# A damaged footer may name types that Arrow lacks, and columns that are not UTF-8.
_DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)


def write_table(uri: str, table: pa.Table) -> None:
    """Writes a small table as Parquet, compressed with Zstandard; it appears whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


class ShardReader:
    """Iterates over the row groups of one shard as tables; reads the next one while the caller uses the current one.

    Args:
        uri: URI of the shard.
        max_rows: read at most this many rows; None for all.
        first_row: the first row to read; the row groups before it are skipped.
        rows: rows of the whole shard by its manifest; None if they are not known.

    Attributes:
        waited_s: seconds that the caller has waited for reading.

    Raises:
        StriateError: the file is damaged, lacks a core column or has other rows; raised by the reading methods, names
            the file.
    """

    def __init__(self, uri: str, max_rows: int | None = None, first_row: int = 0, *, rows: int | None = None) -> None:
        self.uri = uri
        self._max_rows, self._first_row, self._rows = max_rows, first_row, rows
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[pa.Table]:
        start = perf_counter()
        with storage.open_read(self.uri) as file, ThreadPoolExecutor(1) as ahead:
            parquet = self._open(file)
            groups = parquet.metadata.num_row_groups
            number, skipped = 0, self._first_row
            while number < groups and skipped >= parquet.metadata.row_group(number).num_rows:
                skipped -= parquet.metadata.row_group(number).num_rows
                number += 1
            pending = ahead.submit(self._group, parquet, number) if number < groups else None
            remaining = self._max_rows
            while pending is not None:
                table = pending.result().slice(skipped)
                number, skipped = number + 1, 0
                if remaining is not None:
                    table = table.slice(0, remaining)
                    remaining -= table.num_rows
                more = number < groups and remaining != 0
                pending = ahead.submit(self._group, parquet, number) if more else None
                self.waited_s += perf_counter() - start
                yield table
                start = perf_counter()

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Reads some columns of the whole shard, without its pictures; raises StriateError if it is damaged."""
        with storage.open_read(self.uri) as file:
            parquet = self._open(file)
            try:
                return parquet.read(list(names), use_threads=False)
            except _DAMAGE as error:
                raise StriateError(f"{self.uri}: {error}") from error

    def rows(self, numbers: Sequence[int]) -> pa.Table:
        """Reads rows by their numbers, in rising order; raises StriateError if the shard is damaged or shorter."""
        parts: list[pa.Table] = []
        with storage.open_read(self.uri) as file:
            parquet = self._open(file)
            first = 0
            for group in range(parquet.metadata.num_row_groups):
                end = first + parquet.metadata.row_group(group).num_rows
                inside = [number - first for number in numbers if first <= number < end]
                if inside:
                    parts.append(self._group(parquet, group).take(pa.array(inside)))
                first = end
            if sum(part.num_rows for part in parts) < len(numbers):
                raise StriateError(f"{self.uri} holds {first:,} rows and no row {numbers[-1]:,}")
        return pa.concat_tables(parts)

    def schema(self) -> pa.Schema:
        """Reads the columns' names and types from the file's footer."""
        with storage.open_read(self.uri) as file:
            return self._open(file).schema_arrow

    def _open(self, file: Any) -> pq.ParquetFile:
        try:
            # Arrow's own threads, which pre-buffering and `use_threads` would start, may still hold a Python file when
            # the interpreter ends, and then abort the process (apache/arrow issues 33975 and 34314).
            parquet = pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)
            names = parquet.schema_arrow.names
        except _DAMAGE as error:
            raise StriateError(f"{self.uri} is not a readable shard: {error}") from error
        missing = [name for name in CORE_COLUMNS if name not in names]
        if missing:
            raise StriateError(f"{self.uri} is not a shard of a dataset: it lacks the column '{missing[0]}'")
        # `striate remove` replaces shards in place, always by ones with fewer rows.
        if self._rows is not None and parquet.metadata.num_rows != self._rows:
            raise StriateError(
                f"{self.uri} holds {parquet.metadata.num_rows:,} pictures and its manifest says {self._rows:,}; it was "
                "changed meanwhile. Run the same command again"
            )
        return parquet

    def _group(self, parquet: pq.ParquetFile, number: int) -> pa.Table:
        try:
            return parquet.read_row_group(number, use_threads=False)
        except _DAMAGE as error:
            raise StriateError(f"{self.uri}, row group {number}: {error}") from error


def read_columns(dataset: str, names: Sequence[str], shards: Sequence[str]) -> pa.Table:
    """Reads some columns of a whole dataset in the order of its shards, without its pictures.

    Args:
        dataset: URI.
        names: of the columns.
        shards: names of its shards, at least one.

    Raises:
        UsageError: the dataset has no such column.
        StriateError: a shard is damaged, or the shards' columns differ.
    """
    readers = [ShardReader(storage.join(dataset, name)) for name in shards]
    schema = readers[0].schema()
    missing = [name for name in names if name not in schema.names]
    if missing:
        raise UsageError(f"{dataset} has no column '{missing[0]}'; its columns are {', '.join(schema.names)}")
    with ThreadPoolExecutor(_PARALLEL_SHARDS) as pool:
        tables = list(pool.map(lambda reader: reader.columns(names), readers))
    try:
        return pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise StriateError(f"the shards of {dataset} have columns of different types: {error}") from error


def read_rows(dataset: str, shards: Sequence[FileEntry], rows: Sequence[int]) -> pa.Table:
    """Reads some rows of a dataset with all their columns; of each shard only the row groups that hold them.

    Args:
        dataset: URI.
        shards: of its manifest.
        rows: their numbers, counted over all shards, in any order; at least one.

    Returns:
        The rows in the order of `rows`.

    Raises:
        StriateError: a shard is damaged, or the shards' columns differ.
    """
    starts = list(accumulate((shard.rows for shard in shards), initial=0))
    by_shard: dict[int, list[int]] = {}
    for row in sorted(set(rows)):
        number = bisect_right(starts, row) - 1
        by_shard.setdefault(number, []).append(row - starts[number])
    readers = [ShardReader(storage.join(dataset, shards[number].name)) for number in by_shard]
    with ThreadPoolExecutor(_PARALLEL_SHARDS) as pool:
        tables = list(pool.map(lambda reader, chosen: reader.rows(chosen), readers, by_shard.values()))
    place = {row: place for place, row in enumerate(sorted(set(rows)))}
    try:
        return pa.concat_tables(tables).take(pa.array([place[row] for row in rows]))
    except pa.ArrowException as error:
        raise StriateError(f"the shards of {dataset} have columns of different types: {error}") from error


def batches(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yields at most `rows` rows at a time: a row group may hold thousands of pictures, and steps may enlarge them."""
    for table in tables:
        for first in range(0, table.num_rows, rows):
            yield table.slice(first, rows)


class ShardWriter:
    """Writes one shard, which appears under its name, complete, when the block ends without an error.

    Args:
        dataset: URI of the dataset.
        name: path of the shard below it, e.g. `part-000000.parquet`.
        schema: schema of every table that is added.
    """

    def __init__(self, dataset: str, name: str, schema: pa.Schema) -> None:
        self._name = name
        self._target = storage.writer(storage.join(dataset, name))
        self._schema = schema
        self._pending: list[pa.Table] = []
        self._pending_bytes = 0
        self._rows = 0

    def __enter__(self) -> ShardWriter:
        self._file = self._target.__enter__()
        self._sink = _Sink(self._file)
        self._parquet = pq.ParquetWriter(
            cast(Any, pa.PythonFile(cast(Any, self._sink), mode="w")),
            self._schema,
            compression=cast(Any, self._compression()),
            use_dictionary=cast(Any, [name for name in ("label", "format") if name in self._schema.names]),
            write_statistics=cast(Any, [name for name in self._schema.names if name != "image"]),
            write_page_checksum=True,
        )
        return self

    def add(self, table: pa.Table) -> None:
        """Appends rows; they are written as soon as they fill a row group."""
        if table.num_rows == 0:
            return
        self._pending.append(table)
        self._pending_bytes += table.nbytes
        if self._pending_bytes >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            table = pa.concat_tables(self._pending)
            self._parquet.write_table(table, row_group_size=table.num_rows)
            self._rows += table.num_rows
            self._pending, self._pending_bytes = [], 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
                self._parquet.close()
        except BaseException as failure:
            self._discard(failure)
            raise
        if error is not None:
            self._discard(error)
        else:
            self._target.__exit__(None, None, None)

    def _discard(self, failure: BaseException) -> None:
        self._sink.discarded = True
        self._target.__exit__(type(failure), failure, failure.__traceback__)

    @property
    def entry(self) -> FileEntry:
        """The file that was written; known once the block has ended."""
        return FileEntry(name=self._name, rows=self._rows, bytes=self._file.size, digest=self._file.digest)

    def _compression(self) -> dict[str, str]:
        """Returns the compression of each column: none for pictures, which are compressed already."""
        leaves = [leaf for column in self._schema for leaf in _leaves(column.name, column.type)]
        return {leaf: "NONE" if leaf == "image.bytes" else "ZSTD" for leaf in leaves}


class _Sink:
    """The file object that Arrow writes a shard to.

    After `discarded` is set it ignores what is written, as Arrow's destructors write to a file that is closed by then.
    """

    closed = False

    def __init__(self, file: storage.HashingFile) -> None:
        self._file = file
        self.discarded = False

    def write(self, data: bytes) -> int:
        return len(data) if self.discarded else self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None: ...

    def close(self) -> None: ...


def _leaves(name: str, type_: pa.DataType) -> list[str]:
    if pa.types.is_struct(type_):
        return [leaf for child in type_ for leaf in _leaves(f"{name}.{child.name}", child.type)]
    if pa.types.is_list(type_) or pa.types.is_fixed_size_list(type_):
        return _leaves(f"{name}.list.element", cast(Any, type_).value_type)
    return [name]


def shard_name(number: int) -> str:
    """Returns the stem of shard `number`; six digits sort by name up to a million shards (128 TB at 128 MB each)."""
    return f"part-{number:06d}"
