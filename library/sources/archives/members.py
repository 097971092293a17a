"""Reading pictures that lie in the source as files are written: files of a folder or list, members of archives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from library.errors import BadPicture
from library.sources import folder
from library.sources.archives import zipfiles
from library.sources.archives.spans import read_groups
from library.sources.index import Options, Read
from library.storage import Span


def read_files(rows: pa.Table, hints: Mapping[str, bytes], options: Options) -> Iterator[Read]:
    """Whole files, in the order of their URIs."""
    uris: list[Any] = rows.column("uri").to_pylist()
    sizes: list[Any] = rows.column("size").to_pylist()
    order = sorted(range(len(uris)), key=uris.__getitem__)
    for row in (row for row in order if sizes[row] == 0):
        yield Read(row, b"")  # S3 refuses a range of an empty object
    # Whole files: what has grown since it was listed is read to its end.
    groups = ((row, [Span(folder.opened(uris[row]))]) for row in order if sizes[row] != 0)
    for row, (data,) in read_groups(groups, hints):
        yield Read(row, None, data) if isinstance(data, BadPicture) else Read(row, data)


def read_members(rows: pa.Table, hints: Mapping[str, bytes], options: Options) -> Iterator[Read]:
    """Members of tar and zip archives, with the other binary members of their samples, in the order they lie in."""
    order, located = in_order(rows)
    groups = ((row, [_span(located[row]), *_parts(located[row])]) for row in order)
    for row, found in read_groups(groups, hints):
        data, *parts = (part if isinstance(part, bytes) else b"" for part in found)
        where = located[row]
        extras: dict[str, bytes] = {
            part["column"]: part_data for part, part_data in zip(where["parts"] or (), parts, strict=True)
        }
        problem = None
        if where["stored"] is not None:
            stored = where["stored"]
            content, problem = zipfiles.inflate(data, where["size"], stored["size"], stored["method"], stored["crc"])
            yield Read(row, content, problem, extras)
            continue
        if len(data) < where["size"]:
            problem = BadPicture("truncated", f"{where['uri']} ends {where['size'] - len(data):,} bytes before it")
        yield Read(row, data, problem, extras)


def read_raw(
    rows: pa.Table, hints: Mapping[str, bytes], encode: Callable[[dict[str, Any], bytes], bytes]
) -> Iterator[Read]:
    """Pictures that lie in the source as bare pixels; `encode` makes a file of one, given its row of the index."""
    order, located = in_order(rows)
    groups = ((row, [Span(located[row]["uri"], located[row]["at"], located[row]["size"])]) for row in order)
    for row, (data,) in read_groups(groups, hints):
        if isinstance(data, BadPicture) or len(data) < located[row]["size"]:
            yield Read(row, None, BadPicture("truncated", f"{located[row]['uri']} ends before this picture does"))
        else:
            yield Read(row, encode(located[row], data))


def in_order(rows: pa.Table) -> tuple[list[int], list[dict[str, Any]]]:
    """The order in which rows lie in their containers, and where each is."""
    located = rows.select(["uri", "at", "size", "stored", "parts"]).to_pylist()
    return sorted(range(len(located)), key=lambda row: (located[row]["uri"], located[row]["at"])), located


def _span(where: dict[str, Any]) -> Span:
    stored = where["stored"]
    return Span(where["uri"], where["at"], where["size"] if stored is None else stored["span"])


def _parts(where: dict[str, Any]) -> list[Span]:
    return [Span(where["uri"], part["at"], part["size"]) for part in where["parts"] or ()]
