"""Lists of pictures: CSV, TSV (or with semicolons) and JSON Lines; a column of paths, and whatever else is known."""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pyarrow as pa
import pyarrow.csv

from library import storage
from library.errors import StriateError, UsageError
from library.sources.columns import Columns, as_text, narrowed, typed
from library.sources.index import Listing, Options, finish
from library.sources.labels import split_of

IMAGE_NAMES = (
    "image", "path", "file", "filename", "file_name", "image_path", "filepath", "file_path", "uri", "url",
)  # fmt: skip
LABEL_NAMES = ("label", "class")
_FEW = 2000  # S3 objects that are asked for one by one; more of them are listed by their folder
_REQUESTS_AT_ONCE = 16
_BUFFER_BYTES = 2**20


def list_list(uri: str, options: Options) -> Listing:
    """The pictures that a list names.

    Paths count from the list's own folder; absolute ones and s3:// are taken as they are. The key is the path as
    written, or the cell of `key_column`.

    Raises:
        StriateError: a line that is broken (says which), or two lines with one key.
        UsageError: no column of paths, or a named column that is not there.
    """
    text = uri.lower().endswith((".csv", ".tsv"))
    columns = _read_csv(uri) if text else _read_json_lines(uri)
    image = _column(uri, columns, options.image_column, "--image-column", IMAGE_NAMES)
    if image is None:
        raise UsageError(
            f"{uri} has no column of paths: its first line names {', '.join(columns)}; name it {IMAGE_NAMES[0]} or "
            f"{IMAGE_NAMES[1]} there, or say which it is by --image-column"
        )
    label = _column(uri, columns, options.label_column, "--label-column", LABEL_NAMES)
    key = _column(uri, columns, options.key_column, "--key-column", ())
    paths = _texts(columns.pop(image))
    keys = paths if key is None else paths if key == image else _texts(columns.pop(key))
    labels = None if label is None else _texts(columns.pop(label))
    _check_keys(uri, keys, first_line=2 if text else 1)
    rows: dict[str, Any] = {"key": keys, **_located(uri, paths)}
    if labels is not None:
        rows["label"] = [value.strip() or None if value else None for value in labels]
    splits = _splits(columns)
    if splits is not None:
        rows["split"] = splits
    extras = {name: _typed(values) for name, values in columns.items()}
    return Listing("list", finish(rows, extras), pa.schema([]), Counter())


def _read_csv(uri: str) -> dict[str, Any]:
    """Every column as text: what is a number is found out later, for a label 007 is none."""
    with _opened(uri) as file:
        first = next((line for line in iter(lambda: file.readline(_BUFFER_BYTES), b"") if line.strip()), b"")
        delimiter, names = _header(uri, first)
        file.seek(0)
        if len(set(names)) < len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise UsageError(f"{uri} names the column '{twice}' twice in its first line; rename one")
        try:
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
            raise StriateError(f"{uri} is not UTF-8 in its first line ({error}); save it as UTF-8") from error
        except pa.ArrowInvalid as error:
            hint = "; save it as UTF-8" if "UTF8" in str(error) else " (the names of the columns are row 1)"
            raise StriateError(f"{uri} cannot be read: {str(error).replace('Row #', 'row ')}{hint}") from error
    return {name: table.column(name) for name in table.column_names}


def _opened(uri: str) -> io.BufferedReader:
    # s3fs's own lines are slow, and their length has no limit.
    return io.BufferedReader(cast(Any, storage.open_read(uri)), _BUFFER_BYTES)


def _header(uri: str, line: bytes) -> tuple[str, list[str]]:
    """The delimiter and the names of the columns."""
    try:
        text = next(iter(line.decode("utf-8-sig").splitlines()), "")
        delimiter = "\t" if uri.lower().endswith(".tsv") else max(",;\t", key=text.count)
        names = next(csv.reader([text], delimiter=delimiter), [])
    except UnicodeDecodeError as error:
        raise StriateError(f"{uri} is not UTF-8 in its first line ({error}); save it as UTF-8") from error
    except csv.Error as error:
        raise StriateError(f"{uri}: the first line names no columns: {error}") from error
    return delimiter, names


def _read_json_lines(uri: str) -> dict[str, Any]:
    columns = Columns()
    with _opened(uri) as file:
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


def _column(uri: str, columns: dict[str, Any], named: str | None, option: str, usual: Iterable[str]) -> str | None:
    """The column that is named, or the first that has a usual name."""
    if named is not None:
        if named not in columns:
            raise UsageError(f"{option} {named}: {uri} has no such column; it has {', '.join(columns)}")
        return named
    by_lower = {name.strip().lower(): name for name in reversed(list(columns))}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def _texts(values: Any) -> list[str | None]:
    return values.to_pylist() if isinstance(values, pa.ChunkedArray) else [as_text(value) for value in values]


def _typed(values: Any) -> Any:
    return narrowed(values) if isinstance(values, pa.ChunkedArray) else typed(values)


def _check_keys(uri: str, keys: list[str | None], first_line: int) -> None:
    """Clashes are told by lines here: both may well be the same file."""
    if len(set(keys)) == len(keys) and None not in keys and "" not in keys:
        return
    seen: dict[str, int] = {}
    for row, key in enumerate(keys):
        if not key:
            raise StriateError(f"{uri}: row {row + 1} (line {row + first_line}) has no path, or no key")
        if key in seen:
            raise StriateError(
                f"{uri}: rows {seen[key] + 1} and {row + 1} have the same key '{key}'; "
                "remove one, or name a column with unique keys by --key-column"
            )
        seen[key] = row


def _splits(columns: dict[str, Any]) -> list[str | None] | None:
    """The column `split`, when everything in it is the name of one."""
    if "split" not in columns:
        return None
    texts = _texts(columns["split"])
    splits = [split_of(text) if text else None for text in texts]
    if any(text and not split for text, split in zip(texts, splits, strict=True)):
        return None
    del columns["split"]
    return splits


def _located(uri: str, paths: list[str | None]) -> dict[str, Any]:
    """Where each picture is, its size, and what is known to be wrong with it."""
    base = posixpath.dirname(uri)
    uris: list[str] = []
    problems: list[str | None] = []
    for path in paths:
        assert path is not None  # _check_keys looked
        scheme = path.partition("://")[0].lower() if "://" in path else ""
        refused = scheme not in ("", "s3", "file")
        uris.append(path if refused else _resolved(base, path))
        problems.append(f"remote: {scheme} addresses are not fetched; download the pictures first" if refused else None)
    if problems and all(problems):
        raise UsageError(f"{uri} names web addresses only, and they are not fetched; download the pictures first")
    sizes = [0] * len(uris)
    for row, (size, problem) in _sizes([None if problem else uri for uri, problem in zip(uris, problems, strict=True)]):
        sizes[row], problems[row] = size, problem
    return {"uri": uris, "at": [0] * len(uris), "size": sizes, "problem": problems}


def _resolved(base: str, path: str) -> str:
    try:
        return storage.normalize(path if "://" in path else storage.join(base, path))
    except UsageError:
        return path


def _sizes(uris: list[str | None]) -> Iterator[tuple[int, tuple[int, str | None]]]:
    remote = {row: uri for row, uri in enumerate(uris) if uri is not None and storage.is_s3(uri)}
    for row, uri in enumerate(uris):
        if uri is not None and row not in remote:
            yield row, _local_size(uri)
    if len(remote) > _FEW:
        folders_in: dict[str, list[str]] = {}
        for uri in remote.values():
            bucket, _, key = uri[len("s3://") :].partition("/")
            if bucket and key:
                folders_in.setdefault(bucket, []).append(posixpath.dirname(f"{bucket}/{key}"))
        common = [posixpath.commonpath(folders) for folders in folders_in.values()]
        known = {file.uri: file.size for folder in common for file in storage.list_files(f"s3://{folder}")}
        for row, uri in remote.items():
            yield row, (known[uri], None) if uri in known else (0, f"missing: there is no object {uri}")
    else:
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            yield from zip(remote, pool.map(_s3_size, remote.values()), strict=True)


def _local_size(path: str) -> tuple[int, str | None]:
    try:
        status = os.stat(path)
    except OSError as error:
        return 0, f"missing: {path}: {error.strerror}"
    except ValueError as error:
        return 0, f"missing: {error}"
    if not stat.S_ISREG(status.st_mode):
        return 0, f"special: {path} is no file"  # a device or pipe may never end
    return status.st_size, None


def _s3_size(uri: str) -> tuple[int, str | None]:
    if not storage.exists(uri):
        return 0, f"missing: there is no object {uri}"
    return storage.size(uri), None
