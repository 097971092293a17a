"""Reading many parts of files and archives in whatever order is cheapest, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from library import storage
from library.errors import BadPicture, StriateError
from library.sources.archives.gzips import IndexedGzip
from library.storage import Span

_CHUNK_PICTURES = 64
_CHUNK_BYTES = 16 * 2**20


def read_groups(
    groups: Iterable[tuple[int, list[Span]]], hints: Mapping[str, bytes]
) -> Iterator[tuple[int, list[bytes | BadPicture]]]:
    """Read the spans of each group; a span of a file in `hints` counts bytes of its unpacked content.

    Args:
        groups: a row number and what to read for it; the order is kept.
        hints: gzip indexes by URI.

    Yields:
        Each row number with its bytes, or the reason where one file of many cannot be read.

    Raises:
        StriateError: when an archive, or the storage itself, fails: that is not the picture's fault.
    """
    reader = _Reader(hints)
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
    """Holds one gzip file open, with its index, for as long as rows come from it."""

    def __init__(self, hints: Mapping[str, bytes]) -> None:
        self._hints = hints
        self._uri = ""
        self._gzip: IndexedGzip | None = None

    def read(self, chunk: list[tuple[int, list[Span]]]) -> list[tuple[int, list[bytes | BadPicture]]]:
        plain = [span for _, spans in chunk for span in spans if span.uri not in self._hints]
        found = dict(zip(plain, storage.read_many(plain), strict=True))
        return [
            (
                row,
                [self._unpacked(span) if span.uri in self._hints else _checked(span, found[span]) for span in spans],
            )
            for row, spans in chunk
        ]

    def _unpacked(self, span: Span) -> bytes:
        if self._gzip is None or self._uri != span.uri:
            self.close()
            self._gzip, self._uri = IndexedGzip(span.uri, self._hints[span.uri]), span.uri
        return self._gzip.read_at(span.start, span.size or 0)

    def close(self) -> None:
        if self._gzip is not None:
            self._gzip.close()
            self._gzip = None


def _checked(span: Span, found: bytes | Exception) -> bytes | BadPicture:
    if isinstance(found, bytes):
        return found
    single = span.size is None  # a file of its own, not a part of an archive
    if isinstance(found, FileNotFoundError) and single:
        return BadPicture("missing", f"there is no file {span.uri}")
    refused = isinstance(found, (PermissionError, IsADirectoryError, NotADirectoryError))
    # In a store refused credentials would refuse every picture: an outage, not a thousand rejects.
    if refused and single and not storage.is_remote(span.uri):
        return BadPicture("unreadable", f"{span.uri}: {found.strerror}")
    raise StriateError(f"cannot read {span.uri}: {found}") from found
