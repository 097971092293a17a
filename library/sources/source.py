"""Lists and reads a source of any kind: decides how it is read, and checks the result."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute

from library import storage
from library.dataset.manifest import skipped_text
from library.errors import BadPicture, UsageError
from library.sources import cifar, containers, folder, idx, parquet
from library.sources.archives import reading
from library.sources.entries import Entries, is_picture_name
from library.sources.labels import look_alikes
from library.sources.listing import LinkLimits, Listing, Options, Read
from library.sources.tables import lists
from library.sources.tables.text_tables import LISTS
from library.sources.tree import Tree


def _read_links(rows: pa.Table, gzip_indexes: Mapping[str, bytes], options: Options) -> Iterator[Read]:
    from library.sources.links import read_links  # an HTTP client, which takes time to import

    return read_links(rows, gzip_indexes, options)


_compute: Any = pyarrow.compute  # its functions are created at import time, which type checkers do not see
_READERS: dict[str, Callable[[pa.Table, Mapping[str, bytes], Options], Iterator[Read]]] = {
    "folder": reading.read_files,
    "list": reading.read_files,
    "links": _read_links,
    "tar": reading.read_members,
    "zip": reading.read_members,
    "archives": reading.read_members,
    "webdataset": reading.read_members,
    "idx": idx.read_idx,
    "cifar": cifar.read_cifar,
    "parquet": parquet.read_parquet,
}
_LABEL_LIKE = re.compile(
    r"(.*[-_. ])?(labels?|class(es)?|categor(y|ies)|targets?|species|cls)([-_. ]?(names?|ids?|idx|index))?",
    re.IGNORECASE,
)
# Problems with which the bytes can still be read: the reject keeps them.
_READABLE = ("unsafe_name", "bad_sidecar", "bad_label", "duplicate_key")


def list_source(uri: str, options: Options = Options()) -> Listing:
    """Lists the pictures of a source; its content decides how it is read.

    Args:
        uri: a folder, an archive, a list or a file of pictures; on disk or s3://.
        options: the columns, fields or members to use where their names do not show their meaning.

    Returns:
        One row per picture, sorted by key.

    Raises:
        UsageError: the source has no pictures or is of an unsupported kind, or an option has no effect on it.
        StriateError: the source cannot be read or is damaged, or two pictures have the same key.
    """
    uri = storage.normalize(uri)
    if options.label_column is not None and options.label_level is not None:
        raise UsageError("--label-column and --label-level both choose the class; leave one out")
    if storage.is_folder(uri):
        listing = _list_folder(uri, options)
    elif storage.exists(uri):
        listing = _list_file(uri, options)
    else:
        raise UsageError(f"there is nothing at {uri}; supported are {containers.SUPPORTED}")
    if listing.index.num_rows == 0:
        skipped = f" ({skipped_text(listing.skipped)})" if listing.skipped else ""
        raise UsageError(f"{uri} holds no pictures{skipped}; supported are {containers.SUPPORTED}")
    if options.links != LinkLimits() and listing.kind != "links":
        raise UsageError(f"--link... and --allow-address have no effect: {uri} has no web addresses")
    problems = listing.index["problem"]
    if _compute.all(_compute.fill_null(_compute.starts_with(problems, "bad_label: "), False)).as_py():
        key, problem = listing.index["key"][0], _problem(problems[0].as_py())
        raise UsageError(f"{uri}: no picture has a valid label; for example '{key}': {problem}")
    return replace(listing, notes=(*listing.notes, *look_alikes(listing.classes), *_unused_labels(listing, options)))


def _unused_labels(listing: Listing, options: Options) -> Iterator[str]:
    """A sentence for each column that has the name of a label but is not used as the label."""
    if listing.kind in ("idx", "cifar") or options.label_column is not None or options.label_level is not None:
        return
    for column in listing.columns:
        name = column.name.removeprefix("source_")
        if _LABEL_LIKE.fullmatch(name) and not pa.types.is_binary(column.type):
            renamed = f" and is kept as '{column.name}'" if column.name != name else ""
            reason = "a class is text or a whole number" if pa.types.is_nested(column.type) else ""
            if pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type):
                reason = f"`labels: {column.name}` in a recipe's data learns several classes a picture"
            yield (
                f"the column '{name}' ({column.type}) has the name of a label but is not used as one{renamed}; "
                f"{reason or f'--label-column {name} uses it'}"
            )


def read_pictures(
    kind: str,
    rows: pa.Table,
    gzip_indexes: Mapping[str, bytes],
    options: Options = Options(),
) -> Iterator[Read]:
    """Reads the pictures of some rows of a listing, each once, in the cheapest order.

    Holds at most 64 pictures or 16 MB in memory, or one picture if it is larger.

    Args:
        kind: the listing's kind.
        rows: rows of the listing's index, in any order.
        gzip_indexes: those of the listing.
        options: the options of `list_source`.

    Raises:
        StriateError: the source itself, not only one picture, can no longer be read.
    """
    rows = rows.combine_chunks()
    known = {row: text for row, text in enumerate(rows.column("problem").to_pylist()) if text is not None}
    unread = {row for row, text in known.items() if not text.startswith(_READABLE)}
    for row in unread:
        yield Read(row, None, _problem(known[row]))
    numbers = [row for row in range(rows.num_rows) if row not in unread]
    if unread:
        rows = rows.take(pa.array(numbers, pa.int64()))
    for read in _READERS[kind](rows, gzip_indexes, options):
        row = numbers[read.row]
        problem = _problem(known[row]) if row in known else read.problem
        yield replace(read, row=row, problem=problem)


def _problem(text: str) -> BadPicture:
    reason, _, detail = text.partition(": ")
    return BadPicture(reason, detail)


def _list_file(uri: str, options: Options) -> Listing:
    kind = containers.type_of(uri)
    name = posixpath.basename(uri)
    if kind == "list":
        return lists.list_list(uri, options)
    if kind == "parquet":
        return parquet.list_parquet([name], [uri], False, options)
    if kind == "idx":
        around = folder.scan(posixpath.dirname(uri))
        listing = idx.list_idx([name], [uri], dict(zip(around.path, around.uri, strict=True)), options)
        return replace(listing, skipped=Counter())  # the other files of the folder are not part of the source
    if kind == "cifar":
        around = folder.scan(posixpath.dirname(uri))
        return _list_cifar_file(name, around, options)
    entries, index = containers.scan(uri)
    if cifar.is_cifar(entries.path):
        return cifar.list_cifar(entries, {} if index is None else {uri: index}, options)
    _refuse_for_tree(kind, options)
    tree = Tree(options, "zip" if kind == "zip" else "tar")
    containers.add_archive(tree, uri, entries, index)
    return tree.listing()


def _list_cifar_file(name: str, around: Entries, options: Options) -> Listing:
    """Lists a single .bin file of CIFAR, without the others in its folder."""
    chosen = [row for row, path in enumerate(around.path) if path == name or path.endswith(".txt")]
    entries = Entries()
    for row in chosen:
        entries.add(around.path[row], around.uri[row], 0, around.size[row])
    if not cifar.is_cifar(entries.path):
        raise UsageError(f"{name} has no batches.meta.txt or fine_label_names.txt beside it, which CIFAR's files need")
    return replace(cifar.list_cifar(entries, {}, options), skipped=Counter())


def _list_folder(uri: str, options: Options) -> Listing:
    entries = folder.scan(uri)
    if cifar.is_cifar(entries.path):
        return cifar.list_cifar(entries, {}, options)
    if any(map(is_picture_name, entries.path)):
        return _list_tree(entries, options)
    names = [path.lower() for path in entries.path]
    images = [row for row, path in enumerate(names) if idx.is_images(path)]
    if images:
        beside = dict(zip(entries.path, entries.uri, strict=True))
        listing = idx.list_idx(
            [entries.path[row] for row in images], [entries.uri[row] for row in images], beside, options
        )
        return replace(listing, skipped=listing.skipped + entries.skipped)
    private = [path.startswith("_") or "/_" in path for path in names]
    tables = [row for row, path in enumerate(names) if path.endswith(containers.PARQUET) and not private[row]]
    archives = [row for row, path in enumerate(names) if path.endswith(containers.ARCHIVES)]
    notes: tuple[str, ...] = ()
    if tables and archives and {_stem(names[row]) for row in tables} <= {_stem(names[row]) for row in archives}:
        notes = (
            f"{len(tables):,} Parquet files have the names of archives, as img2dataset writes them; "
            "the pictures and their texts are read from the archives",
        )
        tables = []
    if tables and archives:
        raise UsageError(
            f"{uri} holds both Parquet files and archives; put each kind into a folder of its own and ingest both"
        )
    chosen = tables or archives
    if not chosen:
        lists_in = [entries.path[row] for row, path in enumerate(names) if path.endswith(LISTS)]
        if lists_in:
            raise UsageError(f"{uri} holds no pictures, but a list: ingest {storage.join(uri, lists_in[0])} instead")
        return _list_tree(entries, options)
    paths, uris = [entries.path[row] for row in chosen], [entries.uri[row] for row in chosen]
    if tables:
        listing = parquet.list_parquet(paths, uris, any(path.endswith("_manifest.json") for path in names), options)
    else:
        _refuse_for_tree("archives", options)
        listing = containers.list_archives(paths, uris, options)
    underscore = sum(private) if tables else 0
    beside = len(entries) - len(chosen) - underscore
    skipped = listing.skipped + entries.skipped + Counter({"beside": beside, "underscore": underscore})
    return replace(listing, skipped=skipped, notes=(*listing.notes, *notes))


def _stem(path: str) -> str:
    """A path up to the first dot of its name: 00000 for 00000.tar, 00000.tar.gz and 00000.parquet."""
    folder, name = posixpath.split(path)
    return posixpath.join(folder, name.partition(".")[0])


def _list_tree(entries: Entries, options: Options) -> Listing:
    hint = "a folder has no columns; put .json or .txt files beside the pictures, or write a list as CSV"
    options.refuse("a folder of pictures", key_column=hint, image_column=hint)
    tree = Tree(options, "folder")
    tree.add(entries)
    return tree.listing()


def _refuse_for_tree(kind: str, options: Options) -> None:
    options.refuse("an archive", key_column="keys are the members' paths")
    if kind == "zip":
        options.refuse("a zip archive", image_column="only WebDataset's .tar files have samples")
