"""MNIST's IDX files, and those of Fashion-MNIST, EMNIST and KMNIST, which have the same names. Optionally gzipped.

Format: http://yann.lecun.com/exdb/mnist - two zero bytes, a type (8: unsigned bytes), the number of dimensions, each
dimension as a big-endian 32-bit integer, then the bytes. Pictures come out as stored: EMNIST's are transposed in its
files, and stay so.
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
from library.sources.archives.members import read_raw
from library.sources.index import MAX_BYTES, Listing, Options, Read, finish
from library.sources.labels import split_of
from library.storage import Span

_IMAGES = re.compile(r"^(.*?)images([-.])idx3-ubyte(\.gz)?$", re.IGNORECASE)
_HEADER_BYTES = 16
_MAX_LABELS_BYTES = 2**28


def is_images(path: str) -> bool:
    """Whether a name is that of an IDX file of pictures, such as train-images-idx3-ubyte.gz."""
    return _IMAGES.match(posixpath.basename(path)) is not None


def list_idx(paths: Sequence[str], uris: Sequence[str], beside: Mapping[str, str], options: Options) -> Listing:
    """The digits of one or more IDX files.

    Args:
        paths: of the files of pictures, below the source.
        uris: of the same files.
        beside: URIs of all files around them by path: the labels are looked up there.
        options: must be empty: IDX has no columns.

    Raises:
        StriateError: wrong magic number, wrong dimensions, fewer or more bytes than declared, no labels beside.
    """
    hint = "its pictures have a label each, and nothing else"
    options.refuse("IDX files", label_column=hint, key_column=hint, image_column=hint, label_level=hint)
    hints: dict[str, bytes] = {}
    columns: dict[str, list[Any]] = {name: [] for name in ("key", "uri", "at", "size", "block", "label", "split")}
    used = 0
    for path, uri in zip(paths, uris, strict=True):
        labels_uri = _labels_uri(path, uri, beside)
        count, height, width, step = _checked(uri)
        labels = _labels(labels_uri, count, uri)
        if _is_gzip(uri):
            hints[uri] = gzips.make_index(uri)
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
    return Listing("idx", finish(columns), pa.schema([]), skipped, hints)


def read_idx(rows: pa.Table, hints: Mapping[str, bytes], options: Options) -> Iterator[Read]:
    """Pictures as grey PNG."""

    @functools.cache
    def shape(uri: str) -> tuple[int, int]:
        return _dimensions(uri, _start(uri))[1:]

    def encode(row: dict[str, Any], data: bytes) -> bytes:
        pixels = np.frombuffer(data, np.uint8).reshape(*shape(row["uri"]), 1)
        return codec.encode(pixels, codec.Encoding("png"))[0]

    return read_raw(rows, hints, encode)


def _checked(uri: str) -> tuple[int, int, int, int | None]:
    """Count, height, width; and in a gzip file the bytes between two places where reading can begin."""
    count, height, width = _dimensions(uri, _start(uri))
    if not 0 < height * width <= MAX_BYTES:
        raise StriateError(f"{uri} is damaged: its header says pictures of {width} x {height} pixels")
    step: int | None = None
    if _is_gzip(uri):
        with gzips.GzipStream(uri) as stream:
            found = stream.drain()
        step = gzips.block_bytes(uri, found)
    else:
        found = storage.size(uri)
    expected = _HEADER_BYTES + count * height * width
    if found != expected:
        what = "truncated" if found < expected else "damaged"
        raise StriateError(
            f"{uri} is {what}: {count:,} pictures of {width} x {height} take {expected:,} bytes, it has {found:,}"
        )
    return count, height, width, step


def _dimensions(uri: str, start: bytes) -> tuple[int, int, int]:
    if start[:4] != b"\0\0\x08\x03":
        raise StriateError(f"{uri} begins with {start[:4]!r}, not 00 00 08 03: no IDX file of grey pictures")
    if len(start) < _HEADER_BYTES:
        raise StriateError(f"{uri} is truncated: it ends in its header")
    return struct.unpack(">3I", start[4:_HEADER_BYTES])


def _labels(uri: str, count: int, images_uri: str) -> list[str]:
    data = gzips.content(uri, _MAX_LABELS_BYTES) if _is_gzip(uri) else storage.read_bytes(uri, _MAX_LABELS_BYTES)
    if data[:4] != b"\0\0\x08\x01" or len(data) < 8:
        raise StriateError(f"{uri} begins with {data[:4]!r}, not 00 00 08 01: no IDX file of labels")
    declared = int.from_bytes(data[4:8], "big")
    if len(data) - 8 != declared:
        raise StriateError(f"{uri} is damaged: it declares {declared:,} labels, and has {len(data) - 8:,}")
    if declared != count:
        raise StriateError(f"{uri} has {declared:,} labels for the {count:,} pictures in {images_uri}")
    names = [str(value) for value in range(256)]
    return [names[value] for value in data[8:]]


def _labels_uri(path: str, uri: str, beside: Mapping[str, str]) -> str:
    folder, name = posixpath.split(path)
    match = _IMAGES.match(name)
    assert match is not None  # the caller asked is_images
    stem, mark, _ = match.groups()
    wanted = posixpath.join(folder, f"{stem}labels{mark}idx1-ubyte")
    for candidate in (wanted, f"{wanted}.gz"):
        if candidate in beside:
            return beside[candidate]
    raise UsageError(f"{uri} has no labels beside it: {posixpath.basename(wanted)} or the same with .gz is needed")


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
    found = storage.read_many([Span(uri, 0, _HEADER_BYTES)])[0]
    if isinstance(found, Exception):
        raise StriateError(f"cannot read {uri}: {found}") from found
    return found
