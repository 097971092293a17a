"""Tables as text: CSV, TSV (or with semicolons) and JSON Lines, read into columns."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv

from library.errors import StriateError, UsageError
from library.sources.tables.columns import Columns, as_text, narrowed, typed

_compute: Any = pyarrow.compute  # its functions are made at import, where no type checker sees them
LISTS = (".csv", ".tsv", ".jsonl", ".ndjson")
_BUFFER_BYTES = 2**20

#: Values by column: text in Arrow from CSV, JSON values from JSON Lines.
Table = dict[str, Any]


def is_csv(name: str) -> bool:
    return name.lower().endswith((".csv", ".tsv"))


def read_table(name: str, file: IO[bytes]) -> Table:
    """The columns of a table.

    Args:
        name: its URI or path: the suffix says what it is, and errors name it.
        file: its content; seekable.

    Raises:
        StriateError: a line that is broken (says which), or text that is not UTF-8.
        UsageError: two columns of one name.
    """
    # s3fs's own lines are slow, and their length has no limit.
    buffered = io.BufferedReader(cast(Any, file), _BUFFER_BYTES)
    return _read_csv(name, buffered) if is_csv(name) else _read_json_lines(name, buffered)


def texts(values: Any) -> list[str | None]:
    """A column as text."""
    return values.to_pylist() if isinstance(values, pa.ChunkedArray) else [as_text(value) for value in values]


def narrow(values: Any) -> Any:
    """A column in the narrowest type that holds it unchanged."""
    return narrowed(values) if isinstance(values, pa.ChunkedArray) else typed(values)


def _read_csv(uri: str, file: io.BufferedReader) -> Table:
    """Every column as text: what is a number is found out later, for a label 007 is none."""
    first = next((line for line in iter(lambda: file.readline(_BUFFER_BYTES), b"") if line.strip()), b"")
    try:
        delimiter, names = _header(uri, first)
        quoted_after_space = f'{delimiter} "'.encode() in file.peek(_BUFFER_BYTES)
        file.seek(0)
        if any(name.startswith(" ") for name in names) or quoted_after_space:
            return _read_spaced(uri, file, delimiter)
        table = pyarrow.csv.read_csv(
            file,
            # One thread, for only then an error says which row it is.
            pyarrow.csv.ReadOptions(use_threads=False),
            pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
        if names != table.column_names:
            raise StriateError(f"{uri}: the first line cannot be read as names of columns: {names}")
    except UnicodeDecodeError as error:
        raise StriateError(f"{uri} is not UTF-8 ({error}); save it as UTF-8") from error
    except csv.Error as error:
        raise StriateError(f"{uri} cannot be read: {error}") from error
    except pa.ArrowInvalid as error:
        hint = "; save it as UTF-8" if "UTF8" in str(error) else " (the names of the columns are row 1)"
        raise StriateError(f"{uri} cannot be read: {str(error).replace('Row #', 'row ')}{hint}") from error
    return {name.strip(): _without_indent(table.column(name)) for name in table.column_names}


def _header(uri: str, line: bytes) -> tuple[str, list[str]]:
    """The delimiter and the names of the columns, as they stand there."""
    text = next(iter(line.decode("utf-8-sig").splitlines()), "")
    delimiter = "\t" if uri.lower().endswith(".tsv") else max(",;\t", key=text.count)
    names = next(csv.reader([text], delimiter=delimiter), [])
    twice = [name for name, count in Counter(name.strip() for name in names).items() if count > 1]
    if twice:
        raise UsageError(f"{uri} names the column '{twice[0]}' twice in its first line; rename one")
    return delimiter, names


def _read_spaced(uri: str, file: io.BufferedReader, delimiter: str) -> Table:
    """A table with spaces after its delimiters, which Arrow's reader takes for part of the cell, quotes included."""
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    reader = csv.reader(text, delimiter=delimiter, skipinitialspace=True)
    names = next((row for row in reader if row), [])
    cells: list[list[str]] = [[] for _ in names]
    for number, row in enumerate((row for row in reader if row), 2):
        if len(row) != len(names):
            raise StriateError(f"{uri} cannot be read: row {number}: Expected {len(names)} columns, got {len(row)}")
        for column, cell in zip(cells, row, strict=True):
            column.append(cell)
    return {
        name.strip(): pa.chunked_array([pa.array(column, pa.string())])
        for name, column in zip(names, cells, strict=True)
    }


def _without_indent(text: pa.ChunkedArray[Any]) -> pa.ChunkedArray[Any]:
    """A column without the space that begins each of its cells; untouched where one begins without."""
    indented = _compute.all(_compute.or_(_compute.starts_with(text, " "), _compute.equal(text, ""))).as_py()
    return _compute.utf8_ltrim_whitespace(text) if indented else text


def _read_json_lines(uri: str, file: io.BufferedReader) -> Table:
    columns = Columns()
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            hint = "; one object {...} a line is wanted, not one JSON document" if number == 1 else ""
            raise StriateError(f"{uri}, line {number}: {error}{hint}") from error
        if not isinstance(fields, dict):
            raise StriateError(f"{uri}, line {number}: one object {{...}} a line is wanted, not {line[:40]!r}")
        columns.add(fields)
    return {name: columns.values(name) for name in columns.names}
