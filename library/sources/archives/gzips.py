"""Gzip streams: checked once from end to end, then read anywhere through an index, nothing unpacked."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Any, cast

import indexed_gzip

from library import storage
from library.errors import StriateError

MAX_RATIO = 200  # deflate's own limit is 1,032; photographs are at 1, MNIST at 5
FREE_BYTES = 2**30  # below this, any ratio is harmless
_ANY_ORDER_BYTES = 2**31
_STEP_BYTES = 2**20
_TRUNCATED = "it is truncated, copy or download it again"


def spacing(compressed_bytes: int) -> int:
    """Bytes between two places a reader can start at. Each costs 32 KiB of index: wider in larger files."""
    return min(max(4 * 2**20, compressed_bytes // 2048), 32 * 2**20)


def block_bytes(uri: str, content_bytes: int) -> int | None:
    """How much of a gzip file's content is read together, or None where any order will do.

    A shard whose pictures lie all over the file costs a pass over all of it. Up to 2 GiB that is seconds, and worth
    it: pictures that lie together are often of one class.
    """
    return spacing(storage.size(uri)) if content_bytes > _ANY_ORDER_BYTES else None


class GzipStream:
    """The content of a gzip file, forwards only, checked as it goes: ends, checksums, and no bomb.

    Small enough reads and forward seeks are all that tarfile does with it.

    Raises:
        StriateError: on truncation, damage, or more than MAX_RATIO bytes for each byte of the file.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._raw = storage.open_read(uri)
        # Large reads: in S3 each one is a request.
        self._buffered = io.BufferedReader(cast(Any, self._raw), _STEP_BYTES)
        self._file = gzip.GzipFile(fileobj=self._buffered)
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            raise ValueError("a stream is read in parts")
        try:
            data = self._file.read(size)
        except EOFError as error:
            raise StriateError(f"{self.uri} ends before its gzip stream does: {_TRUNCATED}") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise StriateError(f"{self.uri} is damaged: {error}") from error
        self._at += len(data)
        if self._at > FREE_BYTES and self._at > MAX_RATIO * max(self._buffered.tell(), 1):
            raise StriateError(
                f"{self.uri} is refused: it expands more than {MAX_RATIO} times ({self._at:,} bytes so far), "
                "as only a bomb does; unpack it yourself if you trust it, and ingest the folder"
            )
        return data

    def seek(self, position: int) -> int:
        if position < self._at:
            raise ValueError("a stream goes forwards only")
        while self._at < position and self.read(min(position - self._at, _STEP_BYTES)):
            pass
        return self._at

    def tell(self) -> int:
        return self._at

    def drain(self) -> int:
        """Read to the end, where the checksum is; returns the size of the content in bytes."""
        while self.read(_STEP_BYTES):
            pass
        return self._at

    def close(self) -> None:
        self._file.close()
        self._buffered.close()

    def __enter__(self) -> GzipStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def content(uri: str, max_bytes: int) -> bytes:
    """All of a small gzip file; raises StriateError when there is more than `max_bytes` in it."""
    with GzipStream(uri) as stream:
        data = b"".join(iter(lambda: stream.read(_STEP_BYTES) if stream.tell() <= max_bytes else b"", b""))
    if len(data) > max_bytes:
        raise StriateError(f"{uri} holds more than {max_bytes:,} bytes, more than it should")
    return data


def make_index(uri: str) -> bytes:
    """Where to start reading in a gzip file that has been checked by GzipStream, as plain bytes."""
    out = io.BytesIO()
    with storage.open_read(uri) as raw:
        file = indexed_gzip.IndexedGzipFile(fileobj=raw, spacing=spacing(storage.size(uri)))
        try:
            file.build_full_index()
            file.export_index(fileobj=out)
        except indexed_gzip.ZranError as error:
            raise StriateError(f"{uri} is damaged: {error}") from error
        finally:
            file.close()
    return out.getvalue()


class IndexedGzip:
    """The content of a gzip file from anywhere. Cheap in rising order: each read begins at the place before it."""

    def __init__(self, uri: str, index: bytes) -> None:
        self._uri = uri
        self._raw = storage.open_read(uri)
        step = spacing(storage.size(uri))
        self._file = indexed_gzip.IndexedGzipFile(fileobj=self._raw, spacing=step, buffer_size=2 * step)
        self._file.import_index(fileobj=io.BytesIO(index))

    def read_at(self, at: int, size: int) -> bytes:
        try:
            self._file.seek(at)
            return self._file.read(size)
        except (indexed_gzip.ZranError, OSError) as error:
            raise StriateError(f"cannot read {self._uri}: {error}; has it changed since it was listed?") from error

    def close(self) -> None:
        self._file.close()
        self._raw.close()
