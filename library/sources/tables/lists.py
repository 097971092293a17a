"""Lists of pictures: CSV, TSV (or with semicolons) and JSON Lines; a column of paths or links, and whatever else is
known. Or plain text, one path or link a line."""

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
from library.sources.index import Listing, Options, finish
from library.sources.labels import split_of
from library.sources.tables.columns import class_names
from library.sources.tables.text import is_csv, narrow, read_table, texts

IMAGE_NAMES = (
    "image", "path", "file", "filename", "file_name", "image_path", "filepath", "file_path", "uri", "url",
    "image_url", "link",
)  # fmt: skip
LABEL_NAMES = ("label", "class")
_FEW = 2000  # objects of a store that are asked for one by one; more of them are listed by their folder
_REQUESTS_AT_ONCE = 16
#: How large a picture at a web address is taken to be when shards are planned; it is known once it is fetched.
_LINK_BYTES = 2**19
_USER_INFO = re.compile(r"^(https?://)[^/?#]*@", re.IGNORECASE)


def is_link(path: str) -> bool:
    """Whether a list's path is a web address."""
    return path[:8].lower().startswith(("http://", "https://"))


def without_user(path: str) -> str:
    """A web address without a user's name and password, which are never printed or stored."""
    return _USER_INFO.sub(r"\1", path)


def list_list(uri: str, options: Options) -> Listing:
    """The pictures that a list names; links are not fetched yet.

    Paths count from the list's own folder; absolute ones and addresses in a store or on the web are taken as they are.
    The key is the path or link as written (less a user's name and password), or the cell of `key_column`.

    Raises:
        StriateError: a line that is broken (says which), or two lines with one key.
        UsageError: no column of paths, or a named column that is not there.
    """
    options.refuse("a list", label_level="the class is a column, which --label-column names")
    with storage.open_read(uri) as file:
        columns = _read_lines(uri, file) if uri.lower().endswith(".txt") else read_table(uri, file)
    image = _column(uri, columns, options.image_column, "--image-column", IMAGE_NAMES)
    if image is None:
        raise UsageError(
            f"{uri} has no column of paths: its first line names {', '.join(columns)}; name it {IMAGE_NAMES[0]} or "
            f"{IMAGE_NAMES[1]} there, or say which it is by --image-column"
        )
    label = _column(uri, columns, options.label_column, "--label-column", LABEL_NAMES)
    key = _column(uri, columns, options.key_column, "--key-column", ())
    paths = _trimmed(columns.pop(image))
    keys = [path and without_user(path) for path in paths] if key in (None, image) else _trimmed(columns.pop(key))
    labels = None if label is None else columns.pop(label)
    _check_keys(uri, keys, first_line=2 if is_csv(uri) else 1)
    rows: dict[str, Any] = {"key": keys, **_located(uri, paths)}
    if labels is not None:
        rows["label"], refused = class_names(labels)
        rows["problem"] = [_worse(before, now) for before, now in zip(rows["problem"], refused, strict=True)]
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
    """The column that is named, or the first that has a usual name."""
    if named is not None:
        if named not in columns:
            raise UsageError(f"{option} {named}: {uri} has no such column; it has {', '.join(columns)}")
        return named
    by_lower = {name.strip().lower(): name for name in reversed(list(columns))}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def _worse(of_file: str | None, of_label: str | None) -> str | None:
    """Of two problems the one to tell; what is no file must not be read."""
    missing = of_file is None or of_file.startswith("missing: ")
    return of_label if missing and of_label is not None else of_file


def _trimmed(values: Any) -> list[str | None]:
    return [text and text.strip() for text in texts(values)]


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
    names = texts(columns["split"])
    splits = [split_of(name) if name else None for name in names]
    if any(name and not split for name, split in zip(names, splits, strict=True)):
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
        refused = scheme not in ("", "file") and not storage.is_remote(path) and not is_link(path)
        uris.append(path if refused or is_link(path) else _resolved(base, path))
        problems.append(f"remote: {scheme}:// is not read; download the pictures first" if refused else None)
    if problems and all(problems):
        raise UsageError(f"{uri}: no address in it is read; what works: paths, {stores.SCHEMES}, http:// and https://")
    sizes = [_LINK_BYTES if is_link(uri) else 0 for uri in uris]
    asked = [None if problem or is_link(uri) else uri for uri, problem in zip(uris, problems, strict=True)]
    for row, (size, problem) in _sizes(asked):
        if problem is not None and "\\" in (paths[row] or ""):
            problem += f"; the list writes '{paths[row]}', with backslashes: write / and a path on this machine"
        sizes[row], problems[row] = size, problem
    return {"uri": uris, "at": [0] * len(uris), "size": sizes, "problem": problems}


def _resolved(base: str, path: str) -> str:
    if "\\" in path and not os.path.lexists(storage.join(base, path)):
        path = path.replace("\\", "/")  # as Windows writes paths
    try:
        return storage.normalize(path if "://" in path else storage.join(base, path))
    except UsageError:
        return path


def _sizes(uris: list[str | None]) -> Iterator[tuple[int, tuple[int, str | None]]]:
    remote = {row: uri for row, uri in enumerate(uris) if uri is not None and storage.is_remote(uri)}
    for row, uri in enumerate(uris):
        if uri is not None and row not in remote:
            yield row, _local_size(uri)
    if len(remote) > _FEW:
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
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            yield from zip(remote, pool.map(_remote_size, remote.values()), strict=True)


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


def _remote_size(uri: str) -> tuple[int, str | None]:
    if not storage.exists(uri):
        return 0, f"missing: there is no object {uri}"
    return storage.size(uri), None
