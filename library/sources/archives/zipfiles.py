"""Lists the members of zip archives from their central directory, and unpacks single members.

The directory is read without Python's zipfile, which keeps an object of 1 KB per member and lets members share bytes:
that is how a small archive unpacks to petabytes (Fifield 2019, "A better zip bomb").
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

from library import storage
from library.errors import BadPicture, StriateError
from library.sources.archives.gzips import FREE_BYTES, MAX_RATIO
from library.sources.entries import Entries, member_path

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL_BYTES = 30
_MAX_DIRECTORY_BYTES = 2**30
_STORED, _DEFLATED = 0, 8
_ENCRYPTED_FLAGS, _UTF8_FLAG, _PATCH_FLAG = 0x41, 0x800, 0x20
_DOS, _UNIX = 0, 3


@dataclass(frozen=True)
class _Member:
    name: str
    at: int
    size: int
    compressed: int
    method: int
    flags: int
    crc: int
    least: int  # bytes of header, name and data, which no other member may overlap
    folder: bool
    link: bool


def scan(uri: str) -> Entries:
    """The members of a zip archive.

    Raises:
        StriateError: the archive is damaged, truncated, split, or a bomb (members overlap, or expand to more than
            MAX_RATIO times its size).
    """
    entries = Entries()
    with storage.open_read(uri) as file:
        num_bytes = storage.size(uri)
        directory, start, base, count = _directory(uri, file, num_bytes)
    # Some Windows tools write backslashes, against the specification.
    windows = b"\\" in directory and not any("/" in member.name for member in _members(uri, directory, base, count))
    starts, spans = _checked_spans(uri, _members(uri, directory, base, count), start, num_bytes)
    for member in _members(uri, directory, base, count, windows):
        _add(entries, uri, member, int(spans[np.searchsorted(starts, member.at)]))
    return entries


def inflate(raw: bytes, size: int, compressed: int, method: int, crc: int) -> tuple[bytes | None, BadPicture | None]:
    """Unpacks one member.

    Args:
        raw: bytes of the archive, from the member's local header on.
        size: size of the content according to the directory; at most one byte more is unpacked.
        compressed: size of the data in the archive.
        method: compression method, 0 (stored) or 8 (deflate).
        crc: CRC-32 of the content.

    Returns:
        The content, as far as it could be unpacked, and the problem if there is one.
    """
    if raw[:4] != b"PK\x03\x04" or len(raw) < _LOCAL_BYTES:
        return None, BadPicture("damaged", "the zip directory does not point to a member")
    start = _LOCAL_BYTES + sum(struct.unpack_from("<2H", raw, 26))
    data = raw[start : start + compressed]
    if len(data) < compressed:
        return data, BadPicture("truncated", f"the zip member has {len(data):,} of its {compressed:,} bytes")
    if method == _DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflater.decompress(data, size + 1)
        except zlib.error as error:
            return None, BadPicture("damaged", f"the zip member cannot be unpacked: {error}")
    if len(data) != size:
        more = "more than" if len(data) > size else f"{len(data):,} of"
        return data[:size], BadPicture("damaged", f"the zip member holds {more} the {size:,} bytes it declares")
    if zlib.crc32(data) != crc:
        return data, BadPicture("damaged", "the zip member's checksum is wrong")
    return data, None


def _directory(uri: str, file: IO[bytes], num_bytes: int) -> tuple[bytes, int, int, int]:
    """The central directory: its bytes, its start, the origin of its offsets, and its declared number of members."""
    tail_at = max(num_bytes - 2**16 - _END.size, 0)
    file.seek(tail_at)
    tail = file.read(num_bytes - tail_at)
    end_at = tail.rfind(b"PK\x05\x06")
    if end_at < 0 or len(tail) - end_at < _END.size:
        raise StriateError(f"{uri} has no zip directory at its end: it is truncated, or not a zip archive")
    _, disk, first_disk, _, count, size, offset, _ = _END.unpack_from(tail, end_at)
    end = tail_at + end_at
    record, record_at = _zip64_end(file, end - _END64_LOCATOR.size)
    if record:
        _, _, _, _, disk, first_disk, _, count, size, offset = _END64.unpack(record)
        end = record_at
    if disk or first_disk:
        raise StriateError(f"{uri} is one part of a split zip archive; join the parts (zip -s 0 IN.zip --out OUT.zip)")
    start = end - size
    if start < 0 or size > _MAX_DIRECTORY_BYTES:
        raise StriateError(f"{uri} is damaged: its zip directory says it has {size:,} bytes")
    file.seek(start)
    return file.read(size), start, start - offset, count


def _zip64_end(file: IO[bytes], locator_at: int) -> tuple[bytes, int]:
    """The zip64 record, which archives over 4 GiB or 65,535 members have, and its offset; empty if there is none."""
    file.seek(max(locator_at, 0))
    locator = file.read(_END64_LOCATOR.size)
    if locator_at < 0 or locator[:4] != b"PK\x06\x07":
        return b"", 0
    # The locator ignores bytes prepended to the archive, but the record is always right before the locator.
    for at in (_END64_LOCATOR.unpack(locator)[2], locator_at - _END64.size):
        if not 0 <= at <= locator_at:
            continue
        file.seek(at)
        record = file.read(_END64.size)
        if record[:4] == b"PK\x06\x06" and len(record) == _END64.size:
            return record, at
    return b"", 0


def _members(uri: str, directory: bytes, base: int, count: int, windows: bool = False) -> Iterator[_Member]:
    at = num_read = 0
    while at + _ENTRY.size <= len(directory):
        (magic, _, system, _, _, flags, method, _, _, crc, compressed, size, name_bytes, extra_bytes, comment_bytes, _,
         _, attributes, offset) = _ENTRY.unpack_from(directory, at)  # fmt: skip
        if magic != b"PK\x01\x02":
            break
        name_at = at + _ENTRY.size
        extra_at = name_at + name_bytes
        raw_name = directory[name_at:extra_at]
        size, compressed, offset = _wide(directory[extra_at : extra_at + extra_bytes], size, compressed, offset)
        name = _decoded(raw_name, flags)
        if windows or (system == _DOS and "/" not in name):
            name = name.replace("\\", "/")
        yield _Member(
            name,
            base + offset,
            size,
            compressed,
            method,
            flags,
            crc,
            _LOCAL_BYTES + name_bytes + compressed,
            name.endswith("/"),
            system == _UNIX and attributes >> 28 == 0xA,
        )
        at = extra_at + extra_bytes + comment_bytes
        num_read += 1
    if at != len(directory) or (num_read - count) % 2**16:
        raise StriateError(f"{uri} is damaged: its zip directory lists {count:,} members, but {num_read:,} can be read")


def _wide(extra: bytes, size: int, compressed: int, offset: int) -> tuple[int, int, int]:
    """Size, compressed size and offset; values that do not fit 32 bits are in the zip64 extra field, in this order."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{min(length, len(extra) - at - 4) // 8}Q", extra, at + 4))
            size, compressed, offset = (
                next(wide, value) if value == 0xFFFFFFFF else value for value in (size, compressed, offset)
            )
        at += 4 + length
    return size, compressed, offset


def _decoded(name: bytes, flags: int) -> str:
    """Decodes a name: UTF-8 if its flag is set or if it is valid UTF-8, else code page 437 of old tools."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("utf-8", "surrogateescape") if flags & _UTF8_FLAG else name.decode("cp437")


def _checked_spans(
    uri: str, members: Iterable[_Member], directory_at: int, num_bytes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets of the local headers, sorted, and the bytes to read at each; refuses bombs and damaged archives."""
    at, least = array("q"), array("q")
    total = 0
    for member in members:
        if not 0 <= member.at < num_bytes or member.compressed > num_bytes:
            raise StriateError(
                f"{uri} is damaged: it has {num_bytes:,} bytes, but a member of {member.compressed:,} "
                f"at byte {member.at:,}"
            )
        at.append(member.at)
        least.append(member.least)
        total += member.size
    order = np.argsort(at, kind="stable")
    starts, needed = np.array(at, np.int64)[order], np.array(least, np.int64)[order]
    room = np.diff(starts, append=directory_at)
    overlap = np.flatnonzero(room < needed)
    if len(overlap) or (len(starts) and starts[0] < 0):
        first = starts[overlap[0]] if len(overlap) else starts[0]
        raise StriateError(f"{uri} is refused: the member at byte {first:,} overlaps the next, as in a zip bomb")
    if total > FREE_BYTES and total > MAX_RATIO * num_bytes:
        raise StriateError(
            f"{uri} is refused: it expands more than {MAX_RATIO} times (to {total:,} bytes), as a zip bomb does; "
            "if you trust it, unpack it and ingest the folder"
        )
    return starts, np.minimum(room, needed + 2**16)  # the local header's extra field may have 64 KiB


def _add(entries: Entries, uri: str, member: _Member, span: int) -> None:
    if member.folder:
        return
    if member.link:
        entries.skipped["link"] += 1
        return
    path, reason, problem = member_path(member.name)
    if reason is not None:
        entries.skipped[reason] += 1
        return
    if member.flags & _ENCRYPTED_FLAGS:
        problem = "encrypted: the zip member needs a password; unpack the archive and ingest the folder"
    elif member.method not in (_STORED, _DEFLATED) or member.flags & _PATCH_FLAG:
        problem = f"unsupported: zip compression method {member.method}; pack again with deflate (zip -r)"
    stored = (span, member.compressed, member.method, member.crc)
    entries.add(path, uri, member.at, member.size, problem=problem, stored=stored)
