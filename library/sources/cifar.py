"""Reads CIFAR-10 and CIFAR-100 in their binary version, packed (cifar-10-binary.tar.gz) or unpacked.

Format: https://www.cs.toronto.edu/~kriz/cifar.html - records of one label byte (CIFAR-100: a coarse and a fine one)
and 3 x 32 x 32 bytes: red, green, blue. The python version is pickle, which would run the code in it; it is refused.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from library import storage
from library.errors import StriateError, UsageError
from library.imaging import codec
from library.sources.archives import gzips
from library.sources.archives.reading import read_raw
from library.sources.entries import Entries
from library.sources.listing import Listing, Options, Read, finish
from library.storage import Span

_SIDE = 32
_PIXEL_BYTES = 3 * _SIDE * _SIDE
_TEN = re.compile(r"(data_batch_\d+|test_batch)\.bin$")
_HUNDRED = re.compile(r"(train|test)\.bin$")
_NAMES = ("batches.meta.txt", "fine_label_names.txt", "coarse_label_names.txt")
_PICKLES = (("batches.meta", "data_batch_1"), ("meta", "train", "test"))
_MAX_FILE_BYTES = 2**30


def is_cifar(paths: list[str]) -> bool:
    """Whether the files of a folder or archive are CIFAR's.

    Raises:
        UsageError: the files are CIFAR's python version.
    """
    names = {posixpath.basename(path) for path in paths}
    if any(names.issuperset(pickles) for pickles in _PICKLES):
        raise UsageError(
            "this is CIFAR's python version, which is pickle: reading it would run any code in it. "
            "Use the binary version: https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz (or cifar-100-binary)"
        )
    ten = "batches.meta.txt" in names and any(_TEN.match(name) for name in names)
    return ten or ("fine_label_names.txt" in names and any(_HUNDRED.match(name) for name in names))


def list_cifar(entries: Entries, gzip_indexes: dict[str, bytes], options: Options) -> Listing:
    """Lists the pictures of CIFAR's files; CIFAR-100's coarse labels are the column `coarse_label`.

    Args:
        entries: the files of the folder or archive.
        gzip_indexes: the index of the archive's gzip stream, by URI.
        options: must be at their defaults, as the files have no columns.

    Raises:
        StriateError: a file is truncated, or has a label without a name.
    """
    hint = "they have labels and no other columns"
    options.refuse("CIFAR files", label_column=hint, key_column=hint, image_column=hint, label_level=hint)
    by_name = {posixpath.basename(path): row for row, path in enumerate(entries.path)}
    hundred = "fine_label_names.txt" in by_name
    names = {name: _class_names(_content(entries, by_name[name], gzip_indexes)) for name in _NAMES if name in by_name}
    fine = names["fine_label_names.txt" if hundred else "batches.meta.txt"]
    num_labels = 2 if hundred else 1
    columns: dict[str, list[Any]] = {name: [] for name in ("key", "uri", "at", "size", "block", "label", "split")}
    coarse: list[str] = []
    files = sorted(row for name, row in by_name.items() if (_HUNDRED if hundred else _TEN).match(name))
    for row in files:
        path, uri, data = entries.path[row], entries.uri[row], _content(entries, row, gzip_indexes)
        record = num_labels + _PIXEL_BYTES
        if len(data) % record or not data:
            raise StriateError(f"{path} in {uri} is truncated: {len(data):,} bytes are not a multiple of {record:,}")
        labels = np.frombuffer(data, np.uint8).reshape(-1, record)[:, :num_labels]
        count = len(labels)
        columns["label"] += _named(labels[:, -1], fine, path, uri)
        if hundred:
            coarse += _named(labels[:, 0], names.get("coarse_label_names.txt", []), path, uri)
        columns["key"] += [f"{path}/{number:05d}" for number in range(count)]
        columns["uri"] += [uri] * count
        at = [entries.at[row] + number * record + num_labels for number in range(count)]
        columns["at"] += at
        columns["size"] += [_PIXEL_BYTES] * count
        step = gzips.spacing(storage.size(uri)) if entries.block[row] is not None else None
        columns["block"] += [None if step is None else start // step for start in at]
        columns["split"] += ["test" if posixpath.basename(path).startswith("test") else "train"] * count
    skipped = entries.skipped + Counter({"beside": len(entries) - len(files) - len(names)})
    extras = {"coarse_label": pa.array(coarse, pa.string())} if hundred else {}
    return Listing("cifar", finish(columns, extras), pa.schema([]), skipped, gzip_indexes)


def read_cifar(rows: pa.Table, gzip_indexes: Mapping[str, bytes], options: Options) -> Iterator[Read]:
    """Reads pictures and encodes them as RGB PNG."""

    def encode(row: dict[str, Any], data: bytes) -> bytes:
        pixels = np.frombuffer(data, np.uint8).reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)
        return codec.encode(np.ascontiguousarray(pixels), codec.Encoding("png"))[0]

    return read_raw(rows, gzip_indexes, encode)


def _content(entries: Entries, row: int, gzip_indexes: Mapping[str, bytes]) -> bytes:
    uri, size = entries.uri[row], entries.size[row]
    if size > _MAX_FILE_BYTES:
        raise StriateError(f"{entries.path[row]} in {uri} has {size:,} bytes; CIFAR's files have 31 to 154 million")
    if uri in gzip_indexes:
        file = gzips.IndexedGzip(uri, gzip_indexes[uri])
        try:
            return file.read_at(entries.at[row], size)
        finally:
            file.close()
    content = storage.read_many([Span(uri, entries.at[row], size)])[0] if size else b""
    if isinstance(content, Exception):
        raise StriateError(f"cannot read {uri}: {content}") from content
    return content


def _class_names(text: bytes) -> list[str]:
    return [line.strip() for line in text.decode("utf-8", "replace").splitlines() if line.strip()]


def _named(labels: Any, names: list[str], path: str, uri: str) -> list[str]:
    highest = int(labels.max())
    if highest >= len(names):
        raise StriateError(f"{path} in {uri} has the label {highest}, but its list of names has {len(names)}")
    return [names[label] for label in labels.tolist()]
