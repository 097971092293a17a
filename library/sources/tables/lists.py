"""Reads lists of pictures: CSV, TSV or JSON Lines with a column of paths or links, or text with one per line."""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import pyarrow as pa

from library import storage, stores
from library.errors import StriateError, UsageError
from library.sources.labels import split_of
from library.sources.listing import Listing, Options, finish
from library.sources.tables.columns import class_names
from library.sources.tables.text_tables import is_csv, narrow, read_table, texts

IMAGE_NAMES = (
    "image", "path", "file", "filename", "file_name", "image_path", "filepath", "file_path", "uri", "url",
    "image_url", "link",
)  # fmt: skip
LABEL_NAMES = ("label", "class")
_MAX_SINGLE_REQUESTS = 2000  # objects of a store that are looked up one by one; for more, their folders are listed
_PARALLEL_REQUESTS = 16
#: Assumed size of a picture at a web address for planning shards, as its true size is known only once it is fetched.
_LINK_BYTES = 2**19
_USER_INFO = re.compile(r"^(https?://)[^/?#]*@", re.IGNORECASE)


def is_link(path: str) -> bool:
    """Whether a path in a list is a web address."""
    return path[:8].lower().startswith(("http://", "https://"))


def without_user(path: str) -> str:
    """A web address without user name and password, which must never be printed or stored."""
    return _USER_INFO.sub(r"\1", path)


def list_list(uri: str, options: Options) -> Listing:
    """Lists the pictures named in a list; links are not fetched yet.

    Relative paths start at the list's folder. The key is the path or link as written (without user name and password),
    or the cell of `key_column`.

    Raises:
        StriateError: a line cannot be read (says which), or two lines have the same key.
        UsageError: there is no column of paths, or a column named in the options does not exist.
    """
    options.refuse("a list", label_level="the class is a column, which --label-column names")
    with storage.open_read(uri) as file:
        columns = _read_lines(uri, file) if uri.lower().endswith(".txt") else read_table(uri, file)
    image = _column(uri, columns, options.image_column, "--image-column", IMAGE_NAMES)
    if image is None:
        raise UsageError(
            f"{uri} has no column of paths: its columns are {', '.join(columns)}; rename one to {IMAGE_NAMES[0]} or "
            f"{IMAGE_NAMES[1]}, or choose one with --image-column"
        )
    label = _column(uri, columns, options.label_column, "--label-column", LABEL_NAMES)
    key = _column(uri, columns, options.key_column, "--key-column", ())
    paths = _trimmed(columns.pop(image))
    keys = [path and without_user(path) for path in paths] if key in (None, image) else _trimmed(columns.pop(key))
    labels = None if label is None else columns.pop(label)
    _check_keys(uri, keys, first_line=2 if is_csv(uri) else 1)
    rows: dict[str, Any] = {"key": keys, **_located(uri, paths)}
    if labels is not None:
        rows["label"], label_problems = class_names(labels)
        rows["problem"] = [_main_problem(*pair) for pair in zip(rows["problem"], label_problems, strict=True)]
    splits = _splits(columns)
    if splits is not None:
        rows["split"] = splits
    extras = {name: narrow(values) for name, values in columns.items()}
    kind = "links" if any(map(is_link, rows["uri"])) else "list"
    return Listing(kind, finish(rows, extras), pa.schema([]), Counter())


def _read_lines(uri: str, file: IO[bytes]) -> dict[str, Any]:
    try:
        lines = file.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise StriateError(f"{uri} is not UTF-8 ({error}); save it as UTF-8") from error
    return {"url": [line for line in lines if line.strip()]}


def _column(uri: str, columns: dict[str, Any], named: str | None, option: str, usual: Iterable[str]) -> str | None:
    """The column that an option names, or else the first with a usual name."""
    if named is not None:
        if named not in columns:
            raise UsageError(f"{option} {named}: {uri} has no such column; it has {', '.join(columns)}")
        return named
    by_lower = {name.strip().lower(): name for name in reversed(list(columns))}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def _main_problem(of_file: str | None, of_label: str | None) -> str | None:
    """The problem to report if a row has two; one that forbids reading the file must stay."""
    missing = of_file is None or of_file.startswith("missing: ")
    return of_label if missing and of_label is not None else of_file


def _trimmed(values: Any) -> list[str | None]:
    return [text and text.strip() for text in texts(values)]


def _check_keys(uri: str, keys: list[str | None], first_line: int) -> None:
    """Checks that keys are unique; reports line numbers, as both lines may name the same file."""
    if len(set(keys)) == len(keys) and None not in keys and "" not in keys:
        return
    row_of: dict[str, int] = {}
    for row, key in enumerate(keys):
        if not key:
            raise StriateError(f"{uri}: row {row + 1} (line {row + first_line}) has no path, or no key")
        if key in row_of:
            raise StriateError(
                f"{uri}: rows {row_of[key] + 1} and {row + 1} have the same key '{key}'; "
                "remove one, or name a column of unique keys with --key-column"
            )
        row_of[key] = row


def _splits(columns: dict[str, Any]) -> list[str | None] | None:
    """The column `split` if every cell in it is the name of a split."""
    if "split" not in columns:
        return None
    names = texts(columns["split"])
    splits = [split_of(name) if name else None for name in names]
    if any(name and not split for name, split in zip(names, splits, strict=True)):
        return None
    del columns["split"]
    return splits


def _located(uri: str, paths: list[str | None]) -> dict[str, Any]:
    """URI, size and problem of each picture."""
    base = posixpath.dirname(uri)
    uris: list[str] = []
    problems: list[str | None] = []
    for path in paths:
        assert path is not None  # see _check_keys
        scheme = path.partition("://")[0].lower() if "://" in path else ""
        refused = scheme not in ("", "file") and not storage.is_remote(path) and not is_link(path)
        uris.append(path if refused or is_link(path) else _resolved(base, path))
        problems.append(f"remote: {scheme}:// is not supported; download the pictures first" if refused else None)
    if problems and all(problems):
        raise UsageError(
            f"{uri}: none of its addresses is supported; supported are paths, {stores.SCHEMES}, http:// and https://"
        )
    sizes = [_LINK_BYTES if is_link(uri) else 0 for uri in uris]
    to_look_up = [None if problem or is_link(uri) else uri for uri, problem in zip(uris, problems, strict=True)]
    for row, (size, problem) in _sizes(to_look_up):
        if problem is not None and "\\" in (paths[row] or ""):
            problem += f"; the list has '{paths[row]}' with backslashes; write a path on this machine, with /"
        sizes[row], problems[row] = size, problem
    return {"uri": uris, "at": [0] * len(uris), "size": sizes, "problem": problems}


def _resolved(base: str, path: str) -> str:
    if "\\" in path and not os.path.lexists(posixpath.join(base, path)):
        path = path.replace("\\", "/")  # a path from Windows
    try:
        return storage.normalize(path if "://" in path else posixpath.join(base, path))
    except UsageError:
        return path


def _sizes(uris: list[str | None]) -> Iterator[tuple[int, tuple[int, str | None]]]:
    remote = {row: uri for row, uri in enumerate(uris) if uri is not None and storage.is_remote(uri)}
    for row, uri in enumerate(uris):
        if uri is not None and row not in remote:
            yield row, _local_size(uri)
    if len(remote) > _MAX_SINGLE_REQUESTS:
        folders_in: dict[str, list[str]] = {}
        for uri in remote.values():
            scheme, path = stores.split(uri)
            bucket, _, key = path.partition("/")
            if bucket and key:
                folders_in.setdefault(f"{scheme}://{bucket}", []).append(posixpath.dirname(path))
        common = [f"{stores.split(at)[0]}://{posixpath.commonpath(folders)}" for at, folders in folders_in.items()]
        known = {file.uri: file.size for folder in common for file in storage.list_files(folder)}
        for row, uri in remote.items():
            yield row, (known[uri], None) if uri in known else (0, f"missing: there is no object {uri}")
    else:
        with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
            yield from zip(remote, pool.map(_remote_size, remote.values()), strict=True)


def _local_size(path: str) -> tuple[int, str | None]:
    try:
        status = os.stat(path)
    except OSError as error:
        return 0, f"missing: {path}: {error.strerror}"
    except ValueError as error:
        return 0, f"missing: {error}"
    if not stat.S_ISREG(status.st_mode):
        return 0, f"special: {path} is not a file"  # reading a device or pipe may never end
    return status.st_size, None


def _remote_size(uri: str) -> tuple[int, str | None]:
    if not storage.exists(uri):
        return 0, f"missing: there is no object {uri}"
    return storage.size(uri), None
