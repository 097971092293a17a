"""Reads and writes files on disk and in object stores through one set of functions, for every path Striate accepts.

Each store (`library/stores.py`) is accessed through its fsspec package. A written file appears complete or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import posixpath
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from library import stores
from library.errors import StorageError, StriateError, UsageError

_BLOCK_BYTES = 16 * 2**20  # part size of an upload; limits the memory of a write
_CONCURRENT_READS = 32
_TRIES = 10  # to create a file in a folder that another process removes whenever it is empty
#: Before a call is tried again. The clients of stores repeat a request for some seconds themselves; what fails longer
#: is a server or a network file system that restarts, which takes about a minute.
WAITS_S = (10.0, 60.0)
#: Errors of a local file system that do not pass by themselves.
_LASTING = (PermissionError, IsADirectoryError, NotADirectoryError)
_LASTING_NUMBERS = frozenset({errno.ENAMETOOLONG, errno.EROFS})
TEMPORARY_PREFIX = "_tmp-"  # readers of Parquet skip names that begin with "_"


_ResultT = TypeVar("_ResultT")


@dataclass(frozen=True)
class FileInfo:
    """One file of a listing.

    Attributes:
        uri: where it is.
        path: relative to the listed folder, with `/`.
        size: in bytes.
        modified: Unix time of the last write; 0 if the store does not say, as hf://.
    """

    uri: str
    path: str
    size: int
    modified: float


@dataclass(frozen=True)
class Span:
    """Part of a file: `size` bytes from `start`, or the whole file if `size` is None."""

    uri: str
    start: int = 0
    size: int | None = None


def is_remote(uri: str) -> bool:
    """Whether `uri` is in an object store, which every machine with its credentials sees alike."""
    return stores.store_of(uri) is not None


def normalize(uri: str) -> str:
    """Returns an absolute path or a store's URI, without a slash at the end.

    Raises:
        UsageError: for an unknown scheme or a URI without a bucket.
    """
    scheme, rest = stores.split(uri)
    if scheme in ("", "file"):
        return os.path.abspath(os.path.expanduser(rest))
    store = stores.store_of(uri)
    if store is None:
        hint = "; to read web addresses, list them: `striate ingest LIST.csv DEST`" if "http" in scheme else ""
        raise UsageError(f"'{uri}': only local paths, {stores.SCHEMES} are supported{hint}")
    container, _, key = rest.partition("/")
    if not container:
        raise UsageError(f"'{uri}' has no {store.container}; write it like {store.example}")
    key = posixpath.normpath(key).strip("/") if key.strip("/") else ""
    return f"{scheme}://{container}/{key}" if key else f"{scheme}://{container}"


def uri_id(uri: str) -> str:
    """A short, stable name for a URI in the labels of metrics: 12 hex digits."""
    return hashlib.sha256(normalize(uri).encode(errors="surrogatepass")).hexdigest()[:12]


def join(uri: str, *parts: str) -> str:
    """Returns the URI of a path below `uri`.

    Raises:
        StriateError: a part begins with `/`, so it would not lie below.
    """
    for part in parts:
        if part.startswith("/"):
            raise StriateError(f"'{part}' is not a path below {uri}")
    return posixpath.join(uri, *parts)


def name_of(uri: str) -> str:
    """The last part of a path: `s3://b/raw/` and `/data/raw` are both `raw`."""
    return posixpath.basename(uri.rstrip("/"))


def contains(folder: str, other: str) -> bool:
    """Whether `other` is `folder` or inside it, with links resolved."""
    a, b = (normalize(uri) if is_remote(uri) else os.path.realpath(normalize(uri)) for uri in (folder, other))
    return a == b or b.startswith(a.rstrip("/") + "/")


def read_bytes(uri: str, max_bytes: int | None = None) -> bytes:
    """Reads a small file completely.

    Raises:
        StriateError: if it cannot be read or is larger than `max_bytes`; names the file.
    """
    with _as_striate_error(uri, "read"):
        if max_bytes is not None and size(uri) > max_bytes:
            raise StriateError(f"{uri} is larger than {max_bytes:,} bytes")
        filesystem, path = _opened(uri)
        return cast(bytes, filesystem.cat_file(path))


def read_many(spans: Sequence[Span]) -> list[bytes | Exception]:
    """Reads parts of files, from a store many in parallel; returns the bytes, or the error, of each span in order."""
    parts: list[bytes | Exception] = [b""] * len(spans)
    by_store: dict[fsspec.AbstractFileSystem, list[tuple[int, str]]] = {}
    for number, span in enumerate(spans):
        if is_remote(span.uri):
            filesystem, path = _opened(span.uri)
            by_store.setdefault(filesystem, []).append((number, path))
        else:
            parts[number] = _read_local(span)
    for filesystem, requests in by_store.items():
        for first in range(0, len(requests), _CONCURRENT_READS):
            numbers, paths = zip(*requests[first : first + _CONCURRENT_READS], strict=True)
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
        except Exception as error:  # returned, as cat_ranges does
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
    """Opens a seekable file for reading; in a store each read is one range request, so read large parts."""
    with _as_striate_error(uri, "read"):
        if not is_remote(uri):
            return open(uri, "rb")
        filesystem, path = _opened(uri)
        return cast(IO[bytes], filesystem.open(path, "rb", cache_type="readahead", block_size=2**20))


def size(uri: str) -> int:
    """Returns the size of a file in bytes; raises StriateError if it cannot be read."""
    with _as_striate_error(uri, "read"):
        filesystem, path = _opened(uri)
        return int(cast(Any, filesystem).size(path))


def exists(uri: str) -> bool:
    """Whether there is a file or folder at `uri`; raises StriateError if the store cannot be reached."""
    with _as_striate_error(uri, "look up"):
        filesystem, path = _opened(uri)
        return bool(filesystem.exists(path))


def is_folder(uri: str) -> bool:
    """Whether `uri` is a folder, or in a store a prefix of some file."""
    with _as_striate_error(uri, "look up"):
        filesystem, path = _opened(uri)
        return bool(filesystem.isdir(path))


def list_files(folder: str) -> list[FileInfo]:
    """All files below `folder`, sorted by path; empty if the folder does not exist.

    A local listing does not follow links to folders.
    """
    with _as_striate_error(folder, "list"):
        filesystem, path = _opened(folder)
        filesystem.invalidate_cache()
        try:
            infos = cast(dict[str, dict[str, Any]], filesystem.find(path, detail=True))
        except FileNotFoundError:
            return []
    root = path.rstrip("/") + "/"
    below = {name[len(root) :]: info for name, info in infos.items() if name.startswith(root)}
    return [
        FileInfo(join(folder, name), name, int(below[name]["size"]), _modified(below[name])) for name in sorted(below)
    ]


def _modified(info: dict[str, Any]) -> float:
    """The Unix time of the last write, which each fsspec package names differently; 0 if unknown."""
    when = next((info[name] for name in ("LastModified", "last_modified", "mtime", "created") if name in info), 0.0)
    return when.timestamp() if isinstance(when, datetime) else float(when)


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a small file, which appears complete or not at all: one PUT, or a temporary file and a rename."""
    if is_remote(uri):
        with _as_striate_error(uri, "write"):
            filesystem, path = _opened(uri, writing=True)
            filesystem.pipe_file(path, data)
        return
    with writer(uri) as file:
        file.write(data)


class HashingFile:
    """A file being written that counts and hashes its bytes."""

    def __init__(self, file: IO[bytes], uri: str) -> None:
        self._file = file
        self._uri = uri
        self._hash = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: bytes | memoryview) -> int:
        self._hash.update(data)
        self.size += len(data)
        with _as_striate_error(self._uri, "write"):
            self._file.write(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None: ...

    def close(self) -> None: ...

    @property
    def digest(self) -> str:
        """SHA-256 of everything written so far, in hex, as `sha256sum` prints it."""
        return self._hash.hexdigest()


@contextlib.contextmanager
def writer(uri: str) -> Generator[HashingFile]:
    """Opens a file for writing, which appears under its name if the block succeeds and not at all if it raises.

    A local file is written beside its place and renamed; its bytes may still be on their way to the disk (see `flush`).
    A file in a store is one PUT, or a multipart upload that is completed at the end, which limits memory.
    """
    if is_remote(uri):
        with _as_striate_error(uri, "write"):
            filesystem, path = _opened(uri, writing=True)
            upload: Any = filesystem.open(path, "wb", block_size=_BLOCK_BYTES)
        try:
            yield HashingFile(upload, uri)
        except BaseException:
            # A failure to discard the uploaded parts must not hide the original error.
            with contextlib.suppress(Exception):
                upload.discard()
            upload.closed = True
            raise
        with _as_striate_error(uri, "write"):
            upload.close()
        return
    temporary = os.path.join(os.path.dirname(uri), f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    with _as_striate_error(uri, "write"):
        file = _new_file(temporary)  # closed or removed below; `with` would close it before it is renamed
    try:
        yield HashingFile(file, uri)
        with _as_striate_error(uri, "write"):
            file.flush()
            if hasattr(os, "posix_fadvise"):  # Linux then starts to write to the disk in the background
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.close()
            os.replace(temporary, uri)
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()  # writes the buffer, which fails on a full disk
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _new_file(path: str) -> BinaryIO:
    """Opens a new file in a folder that is created if needed, and again if another process removes it while empty."""
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            return open(path, "wb")
    return open(path, "wb")  # whose error names the file


def flush(uris: Iterable[str]) -> None:
    """Waits until local files are on the disk, so that they survive a power cut; files in a store already are safe."""
    for uri in uris:
        if not is_remote(uri):
            with _as_striate_error(uri, "write"), open(uri, "rb") as file:
                os.fsync(file.fileno())


def move(source: str, target: str) -> None:
    """Moves a file to a name in the same store or file system, where it replaces another; nothing is downloaded."""
    with _as_striate_error(source, "move"):
        if not is_remote(source):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.replace(source, target)
            return
        filesystem, path = _opened(source, writing=True)
        filesystem.cp_file(path, _opened(target, writing=True)[1])
        filesystem.rm_file(path)


def remove(uris: Iterable[str]) -> None:
    """Removes files; missing ones are ignored."""
    for uri in uris:
        with _as_striate_error(uri, "remove"), contextlib.suppress(FileNotFoundError):
            filesystem, path = _opened(uri, writing=True)
            filesystem.rm_file(path)


def touch(uri: str) -> bool:
    """Updates a small file's modification time; returns False if the file no longer exists."""
    with _as_striate_error(uri, "write"):
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
    """Removes a local folder if it is empty; object stores have no folders."""
    if not is_remote(uri):
        with contextlib.suppress(OSError):  # already removed, or not empty
            os.rmdir(uri)


def patiently(call: Callable[[], _ResultT], sleep: Callable[[float], None] = time.sleep) -> _ResultT:
    """Calls a function, and again after each of `WAITS_S` while it raises StorageError; returns what it returns.

    Args:
        call: what can be called again.
        sleep: waits for so many seconds.

    Raises:
        StorageError: the last call has failed too.
    """
    for wait_s in WAITS_S:
        try:
            return call()
        except StorageError:
            sleep(wait_s)
    return call()


def check_writable(folder: str) -> None:
    """Raises an error with the reason if files cannot be written below `folder`; leaves no file and no new folder."""
    missing: list[str] = []
    if not is_remote(folder):
        path = os.path.abspath(folder)
        while not os.path.exists(path) and path != os.path.dirname(path):
            missing.append(path)
            path = os.path.dirname(path)
    probe = join(folder, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"striate")
        remove([probe])
    finally:
        for path in missing:
            remove_empty_folder(path)


def _opened(uri: str, *, writing: bool = False) -> tuple[fsspec.AbstractFileSystem, str]:
    store = stores.store_of(uri)
    if store is None:
        return LocalFileSystem(), uri
    if writing and not store.writable:
        raise UsageError(
            f"{uri}: {stores.split(uri)[0]}:// is read-only; write to a local folder, s3://, gs:// or az://"
        )
    return stores.opened(uri)


@contextlib.contextmanager
def _as_striate_error(uri: str, action: str) -> Generator[None]:
    """Turns a file system's exceptions into StriateError, with what failed, where, and what would work.

    StorageError where it may pass.
    """
    store = stores.store_of(uri)
    try:
        yield
    except StriateError:
        raise
    except Exception as error:
        if not (isinstance(error, OSError) if store is None else store.is_failure(error)):
            raise
        kind = StorageError if _may_pass(error, store) else StriateError
        raise kind(f"cannot {action} {uri}: {_reason(error, store, action)}") from error


def _may_pass(error: Exception, store: stores.Store | None) -> bool:
    if isinstance(error, FileNotFoundError) or _lacks_bucket(error):
        return False
    if store is not None:
        return not store.is_refusal(error)
    return not isinstance(error, _LASTING) and getattr(error, "errno", None) not in _LASTING_NUMBERS


def _lacks_bucket(error: Exception) -> bool:
    return "specified bucket" in str(error).lower()


def _reason(error: Exception, store: stores.Store | None, action: str) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0]
    missing = isinstance(error, FileNotFoundError)
    if store is None:
        refused = isinstance(error, PermissionError)
        return "there is no such file or folder" if missing else f"permission denied ({text})" if refused else text
    if _lacks_bucket(error) or (missing and action == "write"):
        return f"there is no such {store.container}"
    if missing:
        return "there is no such file or folder" + ("" if store.writable else f"; {store.credentials}")
    return f"permission denied ({text}); {store.credentials}" if store.is_refusal(error) else text
