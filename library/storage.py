"""Files, on disk or in an S3 bucket, by one set of functions. Every path Striate takes goes through here.

S3 goes through s3fs, which reads the standard AWS variables, profiles and endpoint URL. Requests are retried with
adaptive backoff and jitter; a file appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import uuid
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from library.errors import StriateError, UsageError

_S3_BLOCK_BYTES = 16 * 2**20  # of a multipart upload; bounds the memory of a write
_CONCURRENT_READS = 32
TEMPORARY_PREFIX = "_tmp-"  # readers of Parquet skip names that begin with "_"


@dataclass(frozen=True)
class FileInfo:
    """One file in a listing: its URI, its path below the listed folder (with /), its size in bytes, a
    token that changes when its content does (modification time or ETag), and when it was written (Unix time)."""

    uri: str
    path: str
    size: int
    version: str
    modified: float


@dataclass(frozen=True)
class Span:
    """Part of a file: `size` bytes from `start`; the whole file when `size` is None."""

    uri: str
    start: int = 0
    size: int | None = None


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def normalize(uri: str) -> str:
    """An absolute path or an s3:// URI, without a slash at the end.

    Raises:
        UsageError: for another scheme, or s3:// without a bucket.
    """
    if is_s3(uri):
        bucket, _, key = uri[len("s3://") :].partition("/")
        if not bucket:
            raise UsageError(f"'{uri}' names no bucket; write s3://bucket/folder")
        key = posixpath.normpath(key).strip("/") if key.strip("/") else ""
        return f"s3://{bucket}/{key}" if key else f"s3://{bucket}"
    if "://" in uri:
        if uri.startswith("file://"):
            return normalize(uri[len("file://") :])
        raise UsageError(f"'{uri}': only local paths and s3:// are read and written")
    return os.path.abspath(os.path.expanduser(uri))


def join(uri: str, *parts: str) -> str:
    return posixpath.join(uri, *parts)


def name_of(uri: str) -> str:
    """The last part of a path: `s3://b/raw/` and `/data/raw` are both `raw`."""
    return posixpath.basename(uri.rstrip("/"))


def contains(folder: str, other: str) -> bool:
    """Whether `other` is `folder` or lies inside it, links followed."""
    a, b = (normalize(uri) if is_s3(uri) else os.path.realpath(normalize(uri)) for uri in (folder, other))
    return a == b or b.startswith(a.rstrip("/") + "/")


def read_bytes(uri: str, max_bytes: int | None = None) -> bytes:
    """The whole of a small file.

    Raises:
        StriateError: with what was being read, when it cannot be, or when it is larger than `max_bytes`.
    """
    with _explained(uri, "read"):
        if max_bytes is not None and size(uri) > max_bytes:
            raise StriateError(f"{uri} is larger than {max_bytes:,} bytes")
        return cast(bytes, _filesystem(uri).cat_file(_path(uri)))


def read_many(spans: Sequence[Span]) -> list[bytes | Exception]:
    """Parts of files, in the order asked; in S3 many at a time. A part that cannot be read is its exception."""
    if not spans:
        return []
    if not is_s3(spans[0].uri):
        return [_read_local(span) for span in spans]
    results: list[Any] = []
    filesystem: Any = _filesystem(spans[0].uri)
    for first in range(0, len(spans), _CONCURRENT_READS):
        part = spans[first : first + _CONCURRENT_READS]
        results += filesystem.cat_ranges(
            [_path(span.uri) for span in part],
            [None if span.size is None else span.start for span in part],
            [None if span.size is None else span.start + span.size for span in part],
            on_error="return",
        )
    return results


def _read_local(span: Span) -> bytes | Exception:
    try:
        with open(span.uri, "rb") as file:
            file.seek(span.start)
            return file.read() if span.size is None else file.read(span.size)
    except OSError as error:
        return error


def open_read(uri: str) -> IO[bytes]:
    """A seekable file for reading; in S3 each read is one range request, so read in large parts."""
    with _explained(uri, "read"):
        if not is_s3(uri):
            return open(uri, "rb")
        return cast(IO[bytes], _filesystem(uri).open(_path(uri), "rb", cache_type="readahead", block_size=2**20))


def size(uri: str) -> int:
    with _explained(uri, "read"):
        return int(cast(Any, _filesystem(uri)).size(_path(uri)))


def exists(uri: str) -> bool:
    with _explained(uri, "look up"):
        return bool(_filesystem(uri).exists(_path(uri)))


def is_folder(uri: str) -> bool:
    """Whether `uri` is a folder, or in S3 a prefix that holds something."""
    with _explained(uri, "look up"):
        return bool(_filesystem(uri).isdir(_path(uri)))


def list_files(folder: str) -> list[FileInfo]:
    """Every file below `folder`, sorted by path; none when there is no such folder.

    A local listing follows no links to folders.
    """
    with _explained(folder, "list"):
        filesystem = _filesystem(folder)
        filesystem.invalidate_cache()
        try:
            found = cast(dict[str, dict[str, Any]], filesystem.find(_path(folder), detail=True))
        except FileNotFoundError:
            return []
    root = _path(folder).rstrip("/") + "/"
    prefix = "s3://" if is_s3(folder) else ""
    files = [
        FileInfo(
            prefix + path,
            path[len(root) :],
            int(info["size"]),
            str(info.get("ETag", info.get("mtime", ""))),
            info["LastModified"].timestamp() if "LastModified" in info else float(info["mtime"]),
        )
        for path, info in found.items()
        if path.startswith(root)
    ]
    return sorted(files, key=lambda file: file.path)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a small file so that it appears whole or not at all: one PUT, or a temporary file and a rename."""
    with _explained(uri, "write"):
        if is_s3(uri):
            _filesystem(uri).pipe_file(_path(uri), data)
            return
    with writer(uri) as file:
        file.write(data)


class HashingFile:
    """A file being written that counts and hashes what passes through."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: bytes | memoryview) -> int:
        self._hash.update(data)
        self.size += len(data)
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

    Locally: a temporary file beside it, renamed; its bytes are on their way to the disk (see `flush`). In S3: one PUT,
    or a multipart upload that is completed at the end, so memory stays bounded.
    """
    with _explained(uri, "write"):
        if is_s3(uri):
            file: Any = _filesystem(uri).open(_path(uri), "wb", block_size=_S3_BLOCK_BYTES)
            try:
                yield HashingFile(file)
            except BaseException:
                file.discard()
                file.closed = True
                raise
            file.close()
            return
        os.makedirs(os.path.dirname(uri), exist_ok=True)
        temporary = os.path.join(os.path.dirname(uri), f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        try:
            with open(temporary, "wb") as file:
                yield HashingFile(file)
                file.flush()
                if hasattr(os, "posix_fadvise"):  # Linux then begins to write to the disk, and nobody waits for it
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            os.replace(temporary, uri)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


def flush(uris: Iterable[str]) -> None:
    """Wait until files are on the disk, so that a power cut cannot take them; in S3 what is written is kept."""
    for uri in uris:
        if not is_s3(uri):
            with _explained(uri, "write"), open(uri, "rb") as file:
                os.fsync(file.fileno())


def remove(uris: Iterable[str]) -> None:
    """Remove files; those that are gone already are no error."""
    for uri in uris:
        with _explained(uri, "remove"), contextlib.suppress(FileNotFoundError):
            _filesystem(uri).rm_file(_path(uri))


def check_writable(folder: str) -> None:
    """Raise early, with the reason, when nothing can be written below `folder`."""
    probe = join(folder, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    write_bytes(probe, b"striate")
    remove([probe])


def _path(uri: str) -> str:
    return uri[len("s3://") :] if is_s3(uri) else uri


_S3_OPTIONS: dict[str, Any] = {
    # Other tools write to the same bucket: a listing is never served from memory.
    "use_listings_cache": False,
    "default_cache_type": "none",
    "config_kwargs": {
        "retries": {"mode": "adaptive", "max_attempts": 10},
        "connect_timeout": 10,
        "read_timeout": 60,
        "max_pool_connections": 64,
        # Newer boto sends checksums that S3-compatible servers answer with 411 or ignore.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    },
}


def s3_filesystem() -> fsspec.AbstractFileSystem:
    """What all S3 traffic goes through, for libraries that take a file system."""
    return cast(fsspec.AbstractFileSystem, fsspec.filesystem("s3", **_S3_OPTIONS))


def _filesystem(uri: str) -> fsspec.AbstractFileSystem:
    return s3_filesystem() if is_s3(uri) else LocalFileSystem()


@contextlib.contextmanager
def _explained(uri: str, doing: str) -> Generator[None]:
    """Turn what a file system raises into what, where, and what would work."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except StriateError:
        raise
    except FileNotFoundError as error:
        if is_s3(uri) and "specified bucket" in str(error).lower():
            raise StriateError(f"cannot {doing} {uri}: there is no such bucket") from error
        raise StriateError(f"cannot {doing} {uri}: there is no such file or folder") from error
    except PermissionError as error:
        hint = "; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy" if is_s3(uri) else ""
        raise StriateError(f"cannot {doing} {uri}: permission denied ({error}){hint}") from error
    except NoCredentialsError as error:
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (on a cluster: on every node)"
        raise StriateError(f"cannot {doing} {uri}: no AWS credentials; {hint}") from error
    except (OSError, ClientError, BotoCoreError) as error:
        raise StriateError(f"cannot {doing} {uri}: {error}") from error
