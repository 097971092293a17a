"""Reads files, members of archives and raw pixels in the cheapest order, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from library import storage
from library.errors import BadPicture, StriateError
from library.sources import folder
from library.sources.archives import zipfiles
from library.sources.archives.gzips import IndexedGzip
from library.sources.listing import Options, Read
from library.storage import Span

_CHUNK_PICTURES = 64
_CHUNK_BYTES = 16 * 2**20


def read_files(rows: pa.Table, gzip_indexes: Mapping[str, bytes], options: Options) -> Iterator[Read]:
    """Reads whole files, in the order of their URIs."""
    uris: list[Any] = rows.column("uri").to_pylist()
    sizes: list[Any] = rows.column("size").to_pylist()
    order = sorted(range(len(uris)), key=uris.__getitem__)
    for row in (row for row in order if sizes[row] == 0):
        yield Read(row, b"")  # S3 refuses a range of an empty object
    # Without a size: a file that has grown since it was listed is read to its end.
    groups = ((row, [Span(folder.local_path(uris[row]))]) for row in order if sizes[row] != 0)
    for row, (data,) in read_groups(groups, gzip_indexes):
        yield Read(row, None, data) if isinstance(data, BadPicture) else Read(row, data)


def read_members(rows: pa.Table, gzip_indexes: Mapping[str, bytes], options: Options) -> Iterator[Read]:
    """Reads members of tar and zip archives, with the other binary members of their samples, in archive order."""
    order, located = in_order(rows)
    groups = ((row, [_span(located[row]), *_parts(located[row])]) for row in order)
    for row, results in read_groups(groups, gzip_indexes):
        data, *parts = (part if isinstance(part, bytes) else b"" for part in results)
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
            problem = BadPicture(
                "truncated", f"{where['uri']} ends {where['size'] - len(data):,} bytes before the end of it"
            )
        yield Read(row, data, problem, extras)


def read_raw(
    rows: pa.Table, gzip_indexes: Mapping[str, bytes], encode: Callable[[dict[str, Any], bytes], bytes]
) -> Iterator[Read]:
    """Reads pictures that are stored as raw pixels; `encode` makes a picture file from an index row and the pixels."""
    order, located = in_order(rows)
    groups = ((row, [Span(located[row]["uri"], located[row]["at"], located[row]["size"])]) for row in order)
    for row, (data,) in read_groups(groups, gzip_indexes):
        if isinstance(data, BadPicture) or len(data) < located[row]["size"]:
            yield Read(row, None, BadPicture("truncated", f"{located[row]['uri']} ends before this picture does"))
        else:
            yield Read(row, encode(located[row], data))


def in_order(rows: pa.Table) -> tuple[list[int], list[dict[str, Any]]]:
    """The row numbers in the order of their places in the archives, and the place of each row."""
    located = rows.select(["uri", "at", "size", "stored", "parts"]).to_pylist()
    return sorted(range(len(located)), key=lambda row: (located[row]["uri"], located[row]["at"])), located


def _span(where: dict[str, Any]) -> Span:
    stored = where["stored"]
    return Span(where["uri"], where["at"], where["size"] if stored is None else stored["span"])


def _parts(where: dict[str, Any]) -> list[Span]:
    return [Span(where["uri"], part["at"], part["size"]) for part in where["parts"] or ()]


def read_groups(
    groups: Iterable[tuple[int, list[Span]]], gzip_indexes: Mapping[str, bytes]
) -> Iterator[tuple[int, list[bytes | BadPicture]]]:
    """Reads the spans of each group.

    Args:
        groups: a row number and the spans to read for it; the order is kept. In a gzip file, spans count bytes of the
            unpacked content.
        gzip_indexes: index of each gzip stream by URI.

    Yields:
        Each row number with its bytes, or with the problem if a single file cannot be read.

    Raises:
        StriateError: an archive or the storage itself cannot be read.
    """
    reader = _Reader(gzip_indexes)
    try:
        chunk: list[tuple[int, list[Span]]] = []
        num_bytes = 0
        for group in groups:
            chunk.append(group)
            num_bytes += sum(span.size or 0 for span in group[1])
            if len(chunk) == _CHUNK_PICTURES or num_bytes >= _CHUNK_BYTES:
                yield from reader.read(chunk)
                chunk, num_bytes = [], 0
        yield from reader.read(chunk)
    finally:
        reader.close()


class _Reader:
    """Reads spans; keeps a gzip file open while successive spans are in it."""

    def __init__(self, gzip_indexes: Mapping[str, bytes]) -> None:
        self._indexes = gzip_indexes
        self._uri = ""
        self._gzip: IndexedGzip | None = None

    def read(self, chunk: list[tuple[int, list[Span]]]) -> list[tuple[int, list[bytes | BadPicture]]]:
        plain = [span for _, spans in chunk for span in spans if span.uri not in self._indexes]
        contents = dict(zip(plain, storage.read_many(plain), strict=True))
        return [
            (
                row,
                [
                    self._unpacked(span) if span.uri in self._indexes else _checked(span, contents[span])
                    for span in spans
                ],
            )
            for row, spans in chunk
        ]

    def _unpacked(self, span: Span) -> bytes:
        if self._gzip is None or self._uri != span.uri:
            self.close()
            self._gzip, self._uri = IndexedGzip(span.uri, self._indexes[span.uri]), span.uri
        return self._gzip.read_at(span.start, span.size or 0)

    def close(self) -> None:
        if self._gzip is not None:
            self._gzip.close()
            self._gzip = None


def _checked(span: Span, result: bytes | Exception) -> bytes | BadPicture:
    if isinstance(result, bytes):
        return result
    single = span.size is None  # a whole file, not a part of an archive
    if isinstance(result, FileNotFoundError) and single:
        return BadPicture("missing", f"there is no file {span.uri}")
    refused = isinstance(result, (PermissionError, IsADirectoryError, NotADirectoryError))
    # In a store, refused credentials fail for every picture: that is an error, not a thousand rejects.
    if refused and single and not storage.is_remote(span.uri):
        return BadPicture("unreadable", f"{span.uri}: {result.strerror}")
    raise StriateError(f"cannot read {span.uri}: {result}") from result
