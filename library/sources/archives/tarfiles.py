"""Lists the members of tar and tar.gz archives from their headers; nothing is unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any, cast

from library import storage
from library.errors import StriateError
from library.sources.archives import gzips
from library.sources.entries import MAX_SIDECAR_BYTES, SIDECAR_SUFFIXES, Entries, member_path, suffix_of
from library.sources.listing import printable

_MAX_HEADER_BYTES = 2**20  # a long name or a pax header; PATH_MAX is 4 KiB
_BLOCK = 512


def scan(uri: str, gzipped: bool) -> tuple[Entries, bytes | None]:
    """The members of an archive, and the index of its gzip stream if it has one.

    Raises:
        StriateError: the file is not an archive, is damaged or truncated (names the last member), or is a bomb.
    """
    entries = Entries()
    if not gzipped:
        with storage.open_read(uri) as file:
            _scan(uri, file, entries, storage.size(uri))
        return entries, None
    with gzips.GzipStream(uri) as stream:
        _scan(uri, stream, entries, None)
        step = gzips.block_bytes(uri, stream.tell())
    if step is not None:
        entries.block = [at // step for at in entries.at]
    return entries, gzips.make_index(uri)


def _scan(uri: str, file: Any, entries: Entries, file_bytes: int | None) -> None:
    headers = _Headers(file)
    last = ""
    try:
        for member in _members(headers):
            if file_bytes is not None and member.offset_data + member.size > file_bytes:
                raise StriateError(f"{uri} ends inside the member '{printable(member.name)}': it is truncated")
            last = member.name
            _add(entries, uri, member, file)
        if isinstance(file, gzips.GzipStream):
            file.drain()  # the checksum is at the end
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, IndexError) as error:
        place = f"after the member '{printable(last)}'" if last else "at its first header"
        raise StriateError(f"{uri} is damaged or truncated {place}: {error}") from error
    except StriateError as error:
        if file_bytes is None and last:
            raise StriateError(f"{error} (the last complete member is '{printable(last)}')") from error
        raise


def _members(headers: _Headers) -> Iterator[tarfile.TarInfo]:
    archive = tarfile.TarFile(fileobj=cast(Any, headers), errorlevel=2)
    at = -1
    while (member := archive.next()) is not None:
        if member.size < 0 or archive.offset <= at:
            # A negative size would make tarfile loop for ever (CVE-2025-8194).
            raise tarfile.ReadError("a header with a negative size")
        at = archive.offset
        cast(Any, archive).members.clear()  # tarfile keeps every member
        yield member
    # An archive ends with zeros; tarfile also accepts a damaged header or the end of the file as the end.
    if len(headers.last) < _BLOCK:
        raise tarfile.ReadError("the end marker is missing; if the archive is complete, append 1,024 zero bytes")
    if headers.last.strip(b"\0"):
        raise tarfile.ReadError("what follows is not a header")


def _add(entries: Entries, uri: str, member: tarfile.TarInfo, file: Any) -> None:
    if member.isdir():
        return
    if not member.isreg() or member.issparse():
        kind = "link" if member.issym() or member.islnk() else "sparse" if member.issparse() else "special"
        entries.skipped[kind] += 1
        return
    path, reason, problem = member_path(member.name)
    if reason is not None:
        entries.skipped[reason] += 1
        return
    entries.add(path, uri, member.offset_data, member.size, problem=problem)
    if suffix_of(path) in SIDECAR_SUFFIXES and member.size <= MAX_SIDECAR_BYTES:
        file.seek(member.offset_data)
        entries.texts[len(entries) - 1] = file.read(member.size)


class _Headers:
    """The file as tarfile reads it: remembers the last block and refuses headers that are too large."""

    name = ""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.last = b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes; the limit is {_MAX_HEADER_BYTES:,}")
        self.last = self._file.read(size)
        return self.last

    def seek(self, position: int) -> None:
        self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()
