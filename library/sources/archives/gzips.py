"""Gzip streams: checked once from start to end, then read at any place through an index."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Any, cast

import indexed_gzip

from library import storage
from library.errors import StriateError

MAX_RATIO = 200  # deflate's own limit is 1,032; photographs have 1, MNIST 5
FREE_BYTES = 2**30  # up to this size, any ratio is harmless
_ANY_ORDER_BYTES = 2**31
_STEP_BYTES = 2**20
_TRUNCATED = "it is truncated, copy or download it again"


def spacing(compressed_bytes: int) -> int:
    """Bytes between two places where reading can start; each needs 32 KiB of index, so it grows with the file."""
    return min(max(4 * 2**20, compressed_bytes // 2048), 32 * 2**20)


def block_bytes(uri: str, content_bytes: int) -> int | None:
    """Bytes of a gzip file's content that should be read together; None if the order does not matter.

    A shard with pictures from all over a file costs a pass over the whole file. Up to 2 GiB that takes seconds and is
    worth it, because neighbouring pictures are often of one class.
    """
    return spacing(storage.size(uri)) if content_bytes > _ANY_ORDER_BYTES else None


class GzipStream:
    """The content of a gzip file, read forwards only; checks the end, the checksums and the compression ratio.

    It has what tarfile needs: reads of a given size and forward seeks.

    Raises:
        StriateError: the file is truncated or damaged, or expands more than MAX_RATIO times.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._raw = storage.open_read(uri)
        # Large reads, because in S3 each is a request.
        self._buffered = io.BufferedReader(cast(Any, self._raw), _STEP_BYTES)
        self._file = gzip.GzipFile(fileobj=self._buffered)
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        """Reads the next `size` bytes of the content, fewer at its end."""
        if size < 0:
            raise ValueError("a stream needs a size to read")
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
                "as a zip bomb does; if you trust it, unpack it and ingest the folder"
            )
        return data

    def seek(self, position: int) -> int:
        """Reads on to a position, in bytes of the content; returns the position reached."""
        if position < self._at:
            raise ValueError("a stream can only seek forwards")
        while self._at < position and self.read(min(position - self._at, _STEP_BYTES)):
            pass
        return self._at

    def tell(self) -> int:
        """The position, in bytes of the content."""
        return self._at

    def drain(self) -> int:
        """Reads to the end, where the checksum is; returns the size of the content in bytes."""
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
    """The content of a small gzip file; raises StriateError if it has more than `max_bytes`."""
    with GzipStream(uri) as stream:
        data = b"".join(iter(lambda: stream.read(_STEP_BYTES) if stream.tell() <= max_bytes else b"", b""))
    if len(data) > max_bytes:
        raise StriateError(f"{uri} holds more than {max_bytes:,} bytes, the limit for such files")
    return data


def make_index(uri: str) -> bytes:
    """The index of a gzip file that GzipStream has checked, as bytes for `IndexedGzip`.

    Raises:
        StriateError: the file is damaged.
    """
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
    """The content of a gzip file at any place; reads are cheapest in ascending order."""

    def __init__(self, uri: str, index: bytes) -> None:
        self._uri = uri
        self._raw = storage.open_read(uri)
        step = spacing(storage.size(uri))
        self._file = indexed_gzip.IndexedGzipFile(fileobj=self._raw, spacing=step, buffer_size=2 * step)
        self._file.import_index(fileobj=io.BytesIO(index))

    def read_at(self, at: int, size: int) -> bytes:
        """Reads `size` bytes of the content from the offset `at`; raises StriateError if the file was changed."""
        try:
            self._file.seek(at)
            return self._file.read(size)
        except (indexed_gzip.ZranError, OSError) as error:
            raise StriateError(f"cannot read {self._uri}: {error}; has it changed since it was listed?") from error

    def close(self) -> None:
        self._file.close()
        self._raw.close()
