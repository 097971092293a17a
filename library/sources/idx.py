"""Reads MNIST's IDX files, gzipped or not; Fashion-MNIST, EMNIST and KMNIST have the same format and file names.

Format: http://yann.lecun.com/exdb/mnist - two zero bytes, a type (8: unsigned bytes), the number of dimensions, each
dimension as a big-endian 32-bit integer, then the bytes. Pictures are read as stored: EMNIST's are transposed in its
files and stay transposed.
"""

from __future__ import annotations

import functools
import posixpath
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from library import storage
from library.errors import StriateError, UsageError
from library.imaging import codec
from library.sources.archives import gzips
from library.sources.archives.reading import read_raw
from library.sources.labels import split_of
from library.sources.listing import MAX_BYTES, Listing, Options, Read, finish
from library.storage import Span

_IMAGES = re.compile(r"^(.*?)images([-.])idx3-ubyte(\.gz)?$", re.IGNORECASE)
_HEADER_BYTES = 16
_MAX_LABELS_BYTES = 2**28


def is_images(path: str) -> bool:
    """Whether a path has the name of an IDX file of pictures, such as train-images-idx3-ubyte.gz."""
    return _IMAGES.match(posixpath.basename(path)) is not None


def list_idx(paths: Sequence[str], uris: Sequence[str], beside: Mapping[str, str], options: Options) -> Listing:
    """Lists the pictures of one or more IDX files.

    Args:
        paths: paths of the files of pictures below the source.
        uris: URIs of the same files.
        beside: URIs of all files in the same folders by path, among which are the files of labels.
        options: must be at their defaults, as IDX has no columns.

    Raises:
        StriateError: wrong magic number, wrong dimensions, or fewer or more bytes than declared.
        UsageError: there is no file of labels, or an option has no effect.
    """
    hint = "they have labels and no other columns"
    options.refuse("IDX files", label_column=hint, key_column=hint, image_column=hint, label_level=hint)
    gzip_indexes: dict[str, bytes] = {}
    columns: dict[str, list[Any]] = {name: [] for name in ("key", "uri", "at", "size", "block", "label", "split")}
    used = 0
    for path, uri in zip(paths, uris, strict=True):
        labels_uri = _labels_uri(path, uri, beside)
        count, height, width, step = _checked(uri)
        labels = _labels(labels_uri, count, uri)
        if _is_gzip(uri):
            gzip_indexes[uri] = gzips.make_index(uri)
        at = [_HEADER_BYTES + number * height * width for number in range(count)]
        stem = path.removesuffix(".gz")
        columns["key"] += [f"{stem}/{number:05d}" for number in range(count)]
        columns["uri"] += [uri] * count
        columns["at"] += at
        columns["size"] += [height * width] * count
        columns["block"] += [None if step is None else start // step for start in at]
        columns["label"] += labels
        columns["split"] += [_split(path)] * count
        used += 2
    skipped = Counter({"beside": len(beside) - used} if len(beside) > used else {})
    return Listing("idx", finish(columns), pa.schema([]), skipped, gzip_indexes)


def read_idx(rows: pa.Table, gzip_indexes: Mapping[str, bytes], options: Options) -> Iterator[Read]:
    """Reads pictures and encodes them as grey PNG."""

    @functools.cache
    def shape(uri: str) -> tuple[int, int]:
        return _dimensions(uri, _start(uri))[1:]

    def encode(row: dict[str, Any], data: bytes) -> bytes:
        pixels = np.frombuffer(data, np.uint8).reshape(*shape(row["uri"]), 1)
        return codec.encode(pixels, codec.Encoding("png"))[0]

    return read_raw(rows, gzip_indexes, encode)


def _checked(uri: str) -> tuple[int, int, int, int | None]:
    """Count, height and width of the pictures, and the bytes in a block of a gzip file (see `gzips.block_bytes`)."""
    count, height, width = _dimensions(uri, _start(uri))
    if not 0 < height * width <= MAX_BYTES:
        raise StriateError(f"{uri} is damaged: its header says pictures of {width} x {height} pixels")
    step: int | None = None
    if _is_gzip(uri):
        with gzips.GzipStream(uri) as stream:
            num_bytes = stream.drain()
        step = gzips.block_bytes(uri, num_bytes)
    else:
        num_bytes = storage.size(uri)
    expected = _HEADER_BYTES + count * height * width
    if num_bytes != expected:
        what = "truncated" if num_bytes < expected else "damaged"
        raise StriateError(
            f"{uri} is {what}: {count:,} pictures of {width} x {height} need {expected:,} bytes, it has {num_bytes:,}"
        )
    return count, height, width, step


def _dimensions(uri: str, start: bytes) -> tuple[int, int, int]:
    if start[:4] != b"\0\0\x08\x03":
        raise StriateError(f"{uri} begins with {start[:4]!r}, not 00 00 08 03: it is not an IDX file of grey pictures")
    if len(start) < _HEADER_BYTES:
        raise StriateError(f"{uri} is truncated: it ends in its header")
    return struct.unpack(">3I", start[4:_HEADER_BYTES])


def _labels(uri: str, count: int, images_uri: str) -> list[str]:
    data = gzips.content(uri, _MAX_LABELS_BYTES) if _is_gzip(uri) else storage.read_bytes(uri, _MAX_LABELS_BYTES)
    if data[:4] != b"\0\0\x08\x01" or len(data) < 8:
        raise StriateError(f"{uri} begins with {data[:4]!r}, not 00 00 08 01: it is not an IDX file of labels")
    declared = int.from_bytes(data[4:8], "big")
    if len(data) - 8 != declared:
        raise StriateError(f"{uri} is damaged: it declares {declared:,} labels, but has {len(data) - 8:,}")
    if declared != count:
        raise StriateError(f"{uri} has {declared:,} labels, but {images_uri} has {count:,} pictures")
    names = [str(value) for value in range(256)]
    return [names[value] for value in data[8:]]


def _labels_uri(path: str, uri: str, beside: Mapping[str, str]) -> str:
    folder, name = posixpath.split(path)
    match = _IMAGES.match(name)
    assert match is not None  # the caller asked is_images
    stem, mark, _ = match.groups()
    labels_path = posixpath.join(folder, f"{stem}labels{mark}idx1-ubyte")
    for candidate in (labels_path, f"{labels_path}.gz"):
        if candidate in beside:
            return beside[candidate]
    raise UsageError(f"{uri} has no labels beside it: it needs {posixpath.basename(labels_path)}, or the same with .gz")


def _split(path: str) -> str | None:
    words = re.split(r"[-_.]", posixpath.basename(path).lower())
    return next(
        ("test" if word == "t10k" else split_of(word) for word in words if word == "t10k" or split_of(word)), None
    )


def _start(uri: str) -> bytes:
    if _is_gzip(uri):
        with gzips.GzipStream(uri) as stream:
            return stream.read(_HEADER_BYTES)
    return _raw_start(uri)


def _is_gzip(uri: str) -> bool:
    return _raw_start(uri)[:2] == b"\x1f\x8b"


def _raw_start(uri: str) -> bytes:
    start = storage.read_many([Span(uri, 0, _HEADER_BYTES)])[0]
    if isinstance(start, Exception):
        raise StriateError(f"cannot read {uri}: {start}") from start
    return start
