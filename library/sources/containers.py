"""Detects the type of a file from its first bytes, and lists folders of archives."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from library import storage
from library.errors import UsageError
from library.imaging import codec
from library.sources import labels
from library.sources.archives import gzips, tarfiles, zipfiles
from library.sources.entries import Entries, is_picture_name
from library.sources.listing import Listing, Options
from library.sources.tables import lists
from library.sources.tables.text_tables import LISTS
from library.sources.tree import Tree
from library.storage import Span

SUPPORTED = (
    "a folder of pictures; a .tar, .tar.gz or .zip of them; WebDataset .tar shards; MNIST's IDX files; "
    "CIFAR's binary archives; a .csv, .tsv, .jsonl or .txt list of paths or links; Parquet files with pictures in them"
)
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
PARQUET = (".parquet", ".pq")
_HEAD_BYTES = 512
_PARALLEL_LISTINGS = 8  # in a store, where listing an archive is a sequence of small requests
_OTHER_COMPRESSION = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_UNSUPPORTED = {b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive", b"Rar!": "a RAR archive", b"\x89HDF": "an HDF5 file"}
_NUMBERED = re.compile(r"(^|[-_.])\d+$|-of-\d+$")


def type_of(uri: str) -> str:
    """The type of a file: `tar`, `tar.gz`, `zip`, `parquet`, `idx`, `list` or `cifar`.

    It is decided by the content if that has a signature, else by the name.

    Raises:
        UsageError: any other type; says what is supported.
    """
    head = _head(uri)
    for magic, name in _OTHER_COMPRESSION.items():
        if head.startswith(magic):
            tool = {"bzip2": "bzcat", "xz": "xzcat", "zstd": "zstdcat"}[name]
            raise UsageError(
                f"{uri} is compressed with {name}, which can only be read from its start; "
                f"convert it to a .tar.gz first: {tool} IN | gzip -1 > OUT.tar.gz"
            )
    for magic, name in _UNSUPPORTED.items():
        if head.startswith(magic):
            raise UsageError(f"{uri} is {name}, which is not supported; unpack it, or convert it to {SUPPORTED}")
    if head[:2] == b"\x1f\x8b":
        with gzips.GzipStream(uri) as stream:
            inner = _by_content(stream.read(_HEAD_BYTES), uri)
        if inner in ("tar", "idx"):
            return "tar.gz" if inner == "tar" else inner
        if uri.lower().endswith((".tar.gz", ".tgz")):
            return "tar.gz"
        raise UsageError(f"{uri} is a gzip file that holds neither a tar archive nor IDX; supported are {SUPPORTED}")
    kind = _by_content(head, uri) or _by_name(uri) or _by_lines(head, uri)
    if kind is not None:
        return kind
    picture = codec.sniff(head)
    if picture is not None:
        raise UsageError(f"{uri} is a single {picture} picture; ingest its folder, or a list of pictures")
    if not head:
        raise UsageError(f"{uri} is an empty file; supported are {SUPPORTED}")
    raise UsageError(f"{uri} is of an unsupported type (it begins with {head[:8]!r}); supported are {SUPPORTED}")


def add_archive(tree: Tree, uri: str, entries: Entries, index: bytes | None, **place: str | None) -> None:
    """Adds an archive to a tree.

    Args:
        tree: where its files are added.
        uri: the archive.
        entries: its members, from `scan`.
        index: the index of its gzip stream, from `scan`.
        place: `prefix`, `folder` and `split` of `Tree.add`.
    """
    if index is not None:
        tree.gzip_indexes[uri] = index
    tree.add(entries, tar=all(stored is None for stored in entries.stored), **cast(Any, place))


def scan(uri: str) -> tuple[Entries, bytes | None]:
    """The members of a tar, tar.gz or zip archive, and the index of its gzip stream if it has one.

    Raises:
        UsageError: the file is not one of these archives.
        StriateError: the archive is damaged, truncated, or a bomb.
    """
    kind = type_of(uri)
    if kind == "zip":
        return zipfiles.scan(uri), None
    if kind not in ("tar", "tar.gz"):
        raise UsageError(
            f"{uri} has the name of an archive, but its type is {kind}; rename it or remove it from the folder"
        )
    return tarfiles.scan(uri, kind == "tar.gz")


def list_archives(paths: Sequence[str], uris: Sequence[str], options: Options) -> Listing:
    """Lists the archives of a folder as one source, whose keys begin with the archive's path.

    cat.tar and dog.tar are the classes cat and dog; train.tar and test.tar are splits. The names of numbered shards
    (00001.tar, train-00001.tar) and of WebDataset's shards give a split only.

    Args:
        paths: path of each archive below the source.
        uris: URI of each archive.
        options: the options of `list_source`.
    """
    kinds = {"zip" if path.lower().endswith(".zip") else "tar" for path in paths}
    tree = Tree(options, kinds.pop() if len(kinds) == 1 else "archives")
    stems = {path: _stem(path) for path in paths}
    splits = labels.file_splits(map(posixpath.basename, stems.values()))
    numbered = any(_NUMBERED.search(stem) for stem in stems.values())
    with ThreadPoolExecutor(_PARALLEL_LISTINGS if storage.is_remote(uris[0]) else 1) as pool:
        for path, uri, (entries, index) in zip(paths, uris, pool.map(scan, uris), strict=True):
            stem = stems[path]
            folder = posixpath.dirname(path) if numbered else stem
            split = splits.get(posixpath.basename(stem))
            add_archive(tree, uri, entries, index, prefix=path, folder=folder, split=split)
    return tree.listing()


def _head(uri: str) -> bytes:
    size = storage.size(uri)
    head = storage.read_many([Span(uri, 0, min(size, _HEAD_BYTES))])[0] if size else b""
    if isinstance(head, Exception):
        return storage.read_bytes(uri, _HEAD_BYTES)  # raises the error with storage's message
    return head


def _by_content(head: bytes, uri: str) -> str | None:
    if head[257:262] == b"ustar":
        return "tar"
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    if head[:4] == b"PAR1":
        return "parquet"
    return "idx" if head[:3] == b"\0\0\x08" and b"idx" in uri.encode("utf-8", "replace") else None


def _by_name(uri: str) -> str | None:
    name = uri.lower()
    if name.endswith(".tar"):
        return "tar"  # the oldest tar format has no signature
    if name.endswith(LISTS):
        return "list"
    if name.endswith(".zip"):
        return "zip"  # a self-extracting archive begins with a program
    return "cifar" if name.endswith(".bin") else None


def _by_lines(head: bytes, uri: str) -> str | None:
    """`list` for a text file whose first line is a picture's path or a web address; a file of notes is not a list."""
    first = next(iter(head.decode("utf-8-sig", "replace").split()), "")
    return "list" if uri.lower().endswith(".txt") and (lists.is_link(first) or is_picture_name(first)) else None


def _stem(path: str) -> str:
    suffix = next(suffix for suffix in sorted(ARCHIVES, key=len, reverse=True) if path.lower().endswith(suffix))
    return path[: -len(suffix)]
