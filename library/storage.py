"""Files, on disk or in an object store, by one set of functions. Every path Striate takes goes through here.

A store (`library/stores.py`) is reached through fsspec's package for it; a file appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import uuid
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from library import stores
from library.errors import StriateError, UsageError

_BLOCK_BYTES = 16 * 2**20  # of a multipart upload; bounds the memory of a write
_CONCURRENT_READS = 32
TEMPORARY_PREFIX = "_tmp-"  # readers of Parquet skip names that begin with "_"


@dataclass(frozen=True)
class FileInfo:
    """One file in a listing: its URI, its path below the listed folder (with /), its size in bytes, and when it was
    written (Unix time; 0 where the store does not say, as hf://)."""

    uri: str
    path: str
    size: int
    modified: float


@dataclass(frozen=True)
class Span:
    """Part of a file: `size` bytes from `start`; the whole file when `size` is None."""

    uri: str
    start: int = 0
    size: int | None = None


def is_remote(uri: str) -> bool:
    """Whether `uri` lies in an object store: every machine with its credentials sees the same there."""
    return stores.store_of(uri) is not None


def normalize(uri: str) -> str:
    """An absolute path, or an address in a store, without a slash at the end.

    Raises:
        UsageError: for an unknown scheme, or an address without a bucket.
    """
    scheme, rest = stores.split(uri)
    if scheme in ("", "file"):
        return os.path.abspath(os.path.expanduser(rest))
    store = stores.store_of(uri)
    if store is None:
        how = "; a list of web addresses is read by `striate ingest LIST.csv DEST`" if "http" in scheme else ""
        raise UsageError(f"'{uri}': only local paths, {stores.SCHEMES} are read{how}")
    container, _, key = rest.partition("/")
    if not container:
        raise UsageError(f"'{uri}' names no {store.container}; write {store.example}")
    key = posixpath.normpath(key).strip("/") if key.strip("/") else ""
    return f"{scheme}://{container}/{key}" if key else f"{scheme}://{container}"


def uri_id(uri: str) -> str:
    """A short name for a URI, the same on every machine and at every time: 12 hex digits, by which metrics label it."""
    return hashlib.sha256(normalize(uri).encode(errors="surrogatepass")).hexdigest()[:12]


def join(uri: str, *parts: str) -> str:
    return posixpath.join(uri, *parts)


def name_of(uri: str) -> str:
    """The last part of a path: `s3://b/raw/` and `/data/raw` are both `raw`."""
    return posixpath.basename(uri.rstrip("/"))


def contains(folder: str, other: str) -> bool:
    """Whether `other` is `folder` or lies inside it, links followed."""
    a, b = (normalize(uri) if is_remote(uri) else os.path.realpath(normalize(uri)) for uri in (folder, other))
    return a == b or b.startswith(a.rstrip("/") + "/")


def read_bytes(uri: str, max_bytes: int | None = None) -> bytes:
    """The whole of a small file.

    Raises:
        StriateError: with what was being read, when it cannot be, or when it is larger than `max_bytes`.
    """
    with _explained(uri, "read"):
        if max_bytes is not None and size(uri) > max_bytes:
            raise StriateError(f"{uri} is larger than {max_bytes:,} bytes")
        filesystem, path = _opened(uri)
        return cast(bytes, filesystem.cat_file(path))


def read_many(spans: Sequence[Span]) -> list[bytes | Exception]:
    """Parts of files, in the order asked; in a store many at a time. A part that cannot be read is its exception."""
    parts: list[bytes | Exception] = [b""] * len(spans)
    by_store: dict[fsspec.AbstractFileSystem, list[tuple[int, str]]] = {}
    for number, span in enumerate(spans):
        if is_remote(span.uri):
            filesystem, path = _opened(span.uri)
            by_store.setdefault(filesystem, []).append((number, path))
        else:
            parts[number] = _read_local(span)
    for filesystem, wanted in by_store.items():
        for first in range(0, len(wanted), _CONCURRENT_READS):
            numbers, paths = zip(*wanted[first : first + _CONCURRENT_READS], strict=True)
            for number, part in zip(numbers, _read_remote(filesystem, paths, [spans[n] for n in numbers]), strict=True):
                parts[number] = part
    return parts


def _read_remote(filesystem: Any, paths: Sequence[str], spans: Sequence[Span]) -> Iterable[bytes | Exception]:
    starts = [None if span.size is None else span.start for span in spans]
    ends = [None if span.size is None else span.start + span.size for span in spans]
    if filesystem.async_impl:
        return filesystem.cat_ranges(list(paths), starts, ends, on_error="return")

    def read(path: str, start: int | None, end: int | None) -> bytes | Exception:
        try:
            return filesystem.cat_file(path, start, end)
        except Exception as error:  # for the caller to judge, as cat_ranges gives it back
            return error

    with ThreadPoolExecutor(len(paths)) as pool:
        return list(pool.map(read, paths, starts, ends))


def _read_local(span: Span) -> bytes | Exception:
    try:
        with open(span.uri, "rb") as file:
            file.seek(span.start)
            return file.read() if span.size is None else file.read(span.size)
    except OSError as error:
        return error


def open_read(uri: str) -> IO[bytes]:
    """A seekable file for reading; in a store each read is one range request, so read in large parts."""
    with _explained(uri, "read"):
        if not is_remote(uri):
            return open(uri, "rb")
        filesystem, path = _opened(uri)
        return cast(IO[bytes], filesystem.open(path, "rb", cache_type="readahead", block_size=2**20))


def size(uri: str) -> int:
    with _explained(uri, "read"):
        filesystem, path = _opened(uri)
        return int(cast(Any, filesystem).size(path))


def exists(uri: str) -> bool:
    with _explained(uri, "look up"):
        filesystem, path = _opened(uri)
        return bool(filesystem.exists(path))


def is_folder(uri: str) -> bool:
    """Whether `uri` is a folder, or in a store a prefix that holds something."""
    with _explained(uri, "look up"):
        filesystem, path = _opened(uri)
        return bool(filesystem.isdir(path))


def list_files(folder: str) -> list[FileInfo]:
    """Every file below `folder`, sorted by path; none when there is no such folder.

    A local listing follows no links to folders.
    """
    with _explained(folder, "list"):
        filesystem, path = _opened(folder)
        filesystem.invalidate_cache()
        try:
            found = cast(dict[str, dict[str, Any]], filesystem.find(path, detail=True))
        except FileNotFoundError:
            return []
    root = path.rstrip("/") + "/"
    below = {name[len(root) :]: info for name, info in found.items() if name.startswith(root)}
    return [
        FileInfo(join(folder, name), name, int(below[name]["size"]), _modified(below[name])) for name in sorted(below)
    ]


def _modified(info: dict[str, Any]) -> float:
    """Each package has its own name for it."""
    when = next((info[name] for name in ("LastModified", "last_modified", "mtime", "created") if name in info), 0.0)
    return when.timestamp() if isinstance(when, datetime) else float(when)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a small file so that it appears whole or not at all: one PUT, or a temporary file and a rename."""
    if is_remote(uri):
        with _explained(uri, "write"):
            filesystem, path = _opened(uri, writing=True)
            filesystem.pipe_file(path, data)
        return
    with writer(uri) as file:
        file.write(data)


class HashingFile:
    """A file being written that counts and hashes what passes through."""

    def __init__(self, file: IO[bytes], uri: str) -> None:
        self._file = file
        self._uri = uri
        self._hash = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: bytes | memoryview) -> int:
        self._hash.update(data)
        self.size += len(data)
        with _explained(self._uri, "write"):
            self._file.write(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None: ...

    def close(self) -> None: ...

    @property
    def digest(self) -> str:
        """SHA-256 of everything written so far, in hex; what `sha256sum` prints."""
        return self._hash.hexdigest()


@contextlib.contextmanager
def writer(uri: str) -> Generator[HashingFile]:
    """A file that appears under its name when the block ends well, and not at all when it does not.

    Locally: a temporary file beside it, renamed; its bytes are on their way to the disk (see `flush`). In a store: one
    PUT, or an upload in parts that is completed at the end, so memory stays bounded.
    """
    if is_remote(uri):
        with _explained(uri, "write"):
            filesystem, path = _opened(uri, writing=True)
            upload: Any = filesystem.open(path, "wb", block_size=_BLOCK_BYTES)
        try:
            yield HashingFile(upload, uri)
        except BaseException:
            # Parts that cannot be taken back do not hide why the upload was given up.
            with contextlib.suppress(Exception):
                upload.discard()
            upload.closed = True
            raise
        with _explained(uri, "write"):
            upload.close()
        return
    temporary = os.path.join(os.path.dirname(uri), f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    with _explained(uri, "write"):
        os.makedirs(os.path.dirname(uri), exist_ok=True)
        file = open(temporary, "wb")  # noqa: SIM115 -- closed below
    try:
        yield HashingFile(file, uri)
        with _explained(uri, "write"):
            file.flush()
            if hasattr(os, "posix_fadvise"):  # Linux then begins to write to the disk, and nobody waits for it
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.close()
            os.replace(temporary, uri)
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()  # writes what is buffered, for which a full disk has no room
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def flush(uris: Iterable[str]) -> None:
    """Wait until files are on the disk, so that a power cut cannot take them; in a store what is written is kept."""
    for uri in uris:
        if not is_remote(uri):
            with _explained(uri, "write"), open(uri, "rb") as file:
                os.fsync(file.fileno())


def remove(uris: Iterable[str]) -> None:
    """Remove files; those that are gone already are no error."""
    for uri in uris:
        with _explained(uri, "remove"), contextlib.suppress(FileNotFoundError):
            filesystem, path = _opened(uri, writing=True)
            filesystem.rm_file(path)


def touch(uri: str) -> bool:
    """Renew the time when a small file was last modified; False when there is no such file any more."""
    with _explained(uri, "write"):
        try:
            if is_remote(uri):
                filesystem, path = _opened(uri, writing=True)
                filesystem.pipe_file(path, filesystem.cat_file(path))
            else:
                os.utime(uri)
        except FileNotFoundError:
            return False
    return True


def remove_empty_folder(uri: str) -> None:
    """Remove a folder in which nothing is left; an object store has none."""
    if not is_remote(uri):
        with contextlib.suppress(OSError):  # gone already, or in use again
            os.rmdir(uri)


def check_writable(folder: str) -> None:
    """Raise early, with the reason, when nothing can be written below `folder`."""
    probe = join(folder, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    write_bytes(probe, b"striate")
    remove([probe])


def _opened(uri: str, *, writing: bool = False) -> tuple[fsspec.AbstractFileSystem, str]:
    store = stores.store_of(uri)
    if store is None:
        return LocalFileSystem(), uri
    if writing and not store.writable:
        raise UsageError(
            f"{uri}: {stores.split(uri)[0]}:// is read, not written; write to a folder, s3://, gs:// or az://"
        )
    return stores.opened(uri)


@contextlib.contextmanager
def _explained(uri: str, doing: str) -> Generator[None]:
    """Turn what a file system raises into what, where, and what would work."""
    store = stores.store_of(uri)
    try:
        yield
    except StriateError:
        raise
    except Exception as error:
        if not (isinstance(error, OSError) if store is None else store.is_failure(error)):
            raise
        raise StriateError(f"cannot {doing} {uri}: {_reason(error, store, doing)}") from error


def _reason(error: Exception, store: stores.Store | None, doing: str) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0]
    lost = isinstance(error, FileNotFoundError)
    if store is None:
        refused = isinstance(error, PermissionError)
        return "there is no such file or folder" if lost else f"permission denied ({text})" if refused else text
    if "specified bucket" in text.lower() or (lost and doing == "write"):
        return f"there is no such {store.container}"
    if lost:
        return "there is no such file or folder" + ("" if store.writable else f"; {store.credentials}")
    return f"permission denied ({text}); {store.credentials}" if store.is_refusal(error) else text
