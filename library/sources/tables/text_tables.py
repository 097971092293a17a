"""Reads CSV, TSV (also with semicolons) and JSON Lines into columns."""

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

_compute: Any = pyarrow.compute  # its functions are created at import time, which type checkers do not see
LISTS = (".csv", ".tsv", ".jsonl", ".ndjson")
_BUFFER_BYTES = 2**20

#: Values by column: Arrow text from CSV, JSON values from JSON Lines.
Table = dict[str, Any]


def is_csv(name: str) -> bool:
    """Whether a name has the suffix .csv or .tsv."""
    return name.lower().endswith((".csv", ".tsv"))


def read_table(name: str, file: IO[bytes]) -> Table:
    """Reads the columns of a table.

    Args:
        name: its URI or path, whose suffix decides the format; used in errors.
        file: its content; seekable.

    Raises:
        StriateError: a line cannot be read (says which), or the text is not UTF-8.
        UsageError: two columns have the same name.
    """
    # s3fs reads lines slowly, and without a limit for their length.
    buffered = io.BufferedReader(cast(Any, file), _BUFFER_BYTES)
    return _read_csv(name, buffered) if is_csv(name) else _read_json_lines(name, buffered)


def texts(values: Any) -> list[str | None]:
    """A column as text."""
    return values.to_pylist() if isinstance(values, pa.ChunkedArray) else [as_text(value) for value in values]


def narrow(values: Any) -> Any:
    """A column in the narrowest type that keeps its values."""
    return narrowed(values) if isinstance(values, pa.ChunkedArray) else typed(values)


def _read_csv(uri: str, file: io.BufferedReader) -> Table:
    """Reads every column as text, because numbers are detected later: the label 007 is text."""
    first = next((line for line in iter(lambda: file.readline(_BUFFER_BYTES), b"") if line.strip()), b"")
    try:
        delimiter, names = _header(uri, first)
        quoted_after_space = f'{delimiter} "'.encode() in file.peek(_BUFFER_BYTES)
        file.seek(0)
        if any(name.startswith(" ") for name in names) or quoted_after_space:
            return _read_spaced(uri, file, delimiter)
        table = pyarrow.csv.read_csv(
            file,
            # One thread, because only then errors name the row.
            pyarrow.csv.ReadOptions(use_threads=False),
            pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
        if names != table.column_names:
            raise StriateError(f"{uri}: the first line cannot be read as column names: {names}")
    except UnicodeDecodeError as error:
        raise StriateError(f"{uri} is not UTF-8 ({error}); save it as UTF-8") from error
    except csv.Error as error:
        raise StriateError(f"{uri} cannot be read: {error}") from error
    except pa.ArrowInvalid as error:
        hint = "; save it as UTF-8" if "UTF8" in str(error) else " (the column names are row 1)"
        raise StriateError(f"{uri} cannot be read: {str(error).replace('Row #', 'row ')}{hint}") from error
    return {name.strip(): _without_indent(table.column(name)) for name in table.column_names}


def _header(uri: str, line: bytes) -> tuple[str, list[str]]:
    """The delimiter and the column names as written."""
    text = next(iter(line.decode("utf-8-sig").splitlines()), "")
    delimiter = "\t" if uri.lower().endswith(".tsv") else max(",;\t", key=text.count)
    names = next(csv.reader([text], delimiter=delimiter), [])
    twice = [name for name, count in Counter(name.strip() for name in names).items() if count > 1]
    if twice:
        raise UsageError(f"{uri} has the column '{twice[0]}' twice; rename one in its first line")
    return delimiter, names


def _read_spaced(uri: str, file: io.BufferedReader, delimiter: str) -> Table:
    """Reads a table with spaces after its delimiters, which Arrow's reader would keep as part of the cells."""
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
    """A column without the leading space of its cells; unchanged unless every cell has one or is empty."""
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
            hint = "; each line must be an object {...}, not the whole file one JSON document" if number == 1 else ""
            raise StriateError(f"{uri}, line {number}: {error}{hint}") from error
        if not isinstance(fields, dict):
            raise StriateError(f"{uri}, line {number}: each line must be an object {{...}}, not {line[:40]!r}")
        columns.add(fields)
    return {name: columns.values(name) for name in columns.names}
