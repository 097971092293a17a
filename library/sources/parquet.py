"""Reads pictures from Parquet: Hugging Face datasets, our own, and others with a binary column."""

from __future__ import annotations

import contextlib
import json
import posixpath
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from library import storage
from library.errors import BadPicture, StriateError, UsageError
from library.sources.labels import file_splits, from_folders, split_of
from library.sources.listing import MAX_BYTES, Listing, Options, Read, finish, output_name
from library.sources.tables.columns import class_names

_IMAGE_NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "bytes", "data", "content")
_LABEL_NAMES = ("label", "class")
_OURS = ("width", "height", "channels", "format")  # computed again for every picture
_BUFFER_BYTES = 8 * 2**20  # read at a time of a column, instead of the whole row group
_PARALLEL_FOOTERS = 8


@dataclass(frozen=True)
class _Layout:
    """The columns of one file by meaning."""

    image: str
    key: str | None
    label: str | None
    split: str | None
    class_names: tuple[str, ...] | None  # names of integer labels
    extras: Mapping[str, pa.Field[Any]]  # by their names in the dataset


def list_parquet(paths: Sequence[str], uris: Sequence[str], own_dataset: bool, options: Options) -> Listing:
    """Lists the rows of Parquet files with their keys and labels; all other columns come with the pictures.

    Args:
        paths: path of each file below the source.
        uris: URI of each file.
        own_dataset: whether the folder is one of our datasets; its columns of size and format are then left out.
        options: the columns of picture, label and key, if their names do not show their meaning.

    Raises:
        StriateError: a file is damaged, or two rows have the same key.
        UsageError: there is no column of pictures, or more than one, or the files have different columns.
    """
    options.refuse("Parquet", label_level="the class is a column, which --label-column names")
    splits = _splits(paths)
    columns: dict[str, list[Any]] = defaultdict(list)
    schemas: list[pa.Schema] = []
    with ThreadPoolExecutor(_PARALLEL_FOOTERS if storage.is_remote(uris[0]) else 1) as pool:
        listed = pool.map(_list_file, paths, uris, [options] * len(uris))
        for uri, split, (rows, layout) in zip(uris, splits, listed, strict=True):
            if layout.split is None:
                rows["split"] = [split] * len(rows["key"])
            for name, values in rows.items():
                columns[name] += values
            schemas.append(pa.schema([field.with_name(name) for name, field in layout.extras.items()]))
            _check_same(uris[0], schemas[0], uri, schemas[-1])
    late = pa.unify_schemas(schemas, promote_options="permissive").remove_metadata()
    if own_dataset:
        late = pa.schema([field for field in late if field.name.removeprefix("source_") not in _OURS])
    return Listing("parquet", finish(columns, unit="row"), late, Counter())


def read_parquet(rows: pa.Table, gzip_indexes: Mapping[str, bytes], options: Options) -> Iterator[Read]:
    """Reads pictures and extra columns, row group by row group, one row at a time."""
    rows_of: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)
    for row, place in enumerate(rows.select(["uri", "block", "at"]).to_pylist()):
        rows_of[place["uri"], place["block"]][place["at"]] = row
    for uri, group in sorted(rows_of):
        with _opened(uri) as file:
            layout = _layout(uri, file.schema_arrow, options)
            first = sum(file.metadata.row_group(before).num_rows for before in range(group))
            yield from _read_group(file, group, first, rows_of[uri, group], layout)


def _splits(paths: Sequence[str]) -> list[str | None]:
    """The split of each file, from its name (train-00000-of-00002.parquet) or its folder (train/0.parquet)."""
    by_name = file_splits(posixpath.basename(path).rpartition(".")[0] for path in paths)
    if by_name:
        return [by_name.get(posixpath.basename(path).rpartition(".")[0]) for path in paths]
    by_folder = from_folders({posixpath.dirname(path) for path in paths})
    return [by_folder.splits[posixpath.dirname(path)] for path in paths]


def _read_group(
    file: pq.ParquetFile, group: int, first: int, rows_of: Mapping[int, int], layout: _Layout
) -> Iterator[Read]:
    names = [layout.image, *(field.name for field in layout.extras.values())]
    # One row at a time (30 us): in a dictionary-encoded column any number of rows may share one large value, which no
    # size in the footer shows.
    batches = file.iter_batches(1, row_groups=[group], columns=names, use_threads=False)
    for number, batch in enumerate(batches, first):
        if number in rows_of:
            (values,) = batch.drop_columns([layout.image]).to_pylist() if layout.extras else ({},)
            extras = {name: values[field.name] for name, field in layout.extras.items()}
            yield _read(rows_of[number], batch.column(layout.image)[0], extras)


def _read(row: int, image: Any, extras: dict[str, Any]) -> Read:
    in_struct = isinstance(image, pa.StructScalar) and image.is_valid
    data = (image["bytes"] if in_struct else image).as_buffer() if image.is_valid else None
    if data is None:
        path = image["path"].as_py() if in_struct and "path" in image else None
        where = f"only the path '{path}'" if path else "nothing"
        return Read(row, None, BadPicture("missing", f"the row holds {where} instead of the picture"), extras)
    if data.size > MAX_BYTES:  # checked before the copy
        return Read(row, None, BadPicture("too_large", f"{data.size:,} bytes; the limit is {MAX_BYTES:,}"), extras)
    return Read(row, data.to_pybytes(), None, extras)


def _list_file(path: str, uri: str, options: Options) -> tuple[dict[str, list[Any]], _Layout]:
    with _opened(uri) as file:
        layout = _layout(uri, file.schema_arrow, options)
        metadata = file.metadata
        names = [name for name in (layout.key, layout.label, layout.split) if name is not None]
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        if min(counts, default=0) < 0 or sum(counts) > storage.size(
            uri
        ):  # checked before lists of that length are built
            raise StriateError(f"{uri} is damaged: it declares {sum(counts):,} rows, more than it has bytes")
        table = file.read(columns=names, use_threads=False) if names else None
        blocks: list[int] = []
        sizes: list[int] = []
        for group in range(metadata.num_row_groups):
            row_group = metadata.row_group(group)
            num_bytes = sum(row_group.column(at).total_uncompressed_size for at in range(row_group.num_columns))
            blocks += [group] * row_group.num_rows
            sizes += [min(max(num_bytes // max(row_group.num_rows, 1), 1), MAX_BYTES)] * row_group.num_rows
    count = len(blocks)
    if count != metadata.num_rows or (table is not None and table.num_rows != count):
        raise StriateError(f"{uri} is damaged: its row groups have {count:,} rows, not {metadata.num_rows:,}")
    rows: dict[str, list[Any]] = {"uri": [uri] * count, "at": list(range(count)), "size": sizes, "block": blocks}
    rows["key"] = [f"{path}/{number:08d}" for number in range(count)]
    rows["label"] = rows["split"] = rows["problem"] = [None] * count
    if table is not None and layout.key is not None:
        rows["key"] = _keys(uri, layout.key, table.column(layout.key).to_pylist())
    if table is not None and layout.label is not None:
        labels = table.column(layout.label).to_pylist()
        rows["label"], rows["problem"] = _labels(labels, layout.class_names)
    if table is not None and layout.split is not None:
        rows["split"] = [split_of(value) if value else None for value in table.column(layout.split).to_pylist()]
    return rows, layout


def _layout(uri: str, schema: pa.Schema, options: Options) -> _Layout:
    image = _image_column(uri, schema, options.image_column)
    label = _named(uri, schema, options.label_column, "--label-column", _is_label)
    if label is None:
        label = next(
            (name for name in _LABEL_NAMES if name in schema.names and _is_label(schema.field(name).type)), None
        )
    key = _named(uri, schema, options.key_column, "--key-column", _is_key)
    if key is None and "key" in schema.names and _is_text(schema.field("key").type):
        key = "key"
    split = "split" if "split" in schema.names and _is_text(schema.field("split").type) else None
    if split in (label, key):
        split = None
    extras: dict[str, pa.Field[Any]] = {}
    for field in schema:
        if field.name not in (image, label, key, split):
            extras[output_name(field.name, extras)] = field
    names = _class_names(schema, label) if label is not None else None
    return _Layout(image, key, label, split, names, extras)


def _image_column(uri: str, schema: pa.Schema, named: str | None) -> str:
    if named is not None and named not in schema.names:
        raise UsageError(f"--image-column {named}: {uri} has no such column; it has {', '.join(schema.names)}")
    candidates = [field.name for field in schema if _is_image(field.type)]
    if named is not None:
        if named not in candidates:
            raise UsageError(f"--image-column {named}: in {uri} it holds {schema.field(named).type}, not bytes")
        return named
    usual = [name for name in _IMAGE_NAMES if name in candidates]
    if usual or len(candidates) == 1:
        return (usual or candidates)[0]
    if candidates:
        raise UsageError(f"{uri} has several columns of bytes: {', '.join(candidates)}; choose one with --image-column")
    raise UsageError(
        f"{uri} has no column of pictures (bytes, or a struct of bytes and path); "
        f"its columns: {', '.join(schema.names)}"
    )


def _named(uri: str, schema: pa.Schema, named: str | None, option: str, fits: Any) -> str | None:
    if named is None:
        return None
    if named not in schema.names:
        raise UsageError(f"{option} {named}: {uri} has no such column; it has {', '.join(schema.names)}")
    if not fits(schema.field(named).type):
        raise UsageError(f"{option} {named}: it must hold text or whole numbers, but holds {schema.field(named).type}")
    return named


def _is_image(dtype: pa.DataType) -> bool:
    if isinstance(dtype, pa.StructType):
        return dtype.get_field_index("bytes") >= 0 and _is_image(dtype.field("bytes").type)
    return pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype) or pa.types.is_binary_view(dtype)


def _is_label(dtype: pa.DataType) -> bool:
    # pandas turns whole numbers with missing values into floats.
    return _is_key(dtype) or pa.types.is_floating(_value_type(dtype))


def _is_key(dtype: pa.DataType) -> bool:
    inner = _value_type(dtype)
    return _is_text(inner) or pa.types.is_integer(inner) or pa.types.is_boolean(inner)


def _is_text(dtype: pa.DataType) -> bool:
    inner = _value_type(dtype)
    return pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_string_view(inner)


def _value_type(dtype: pa.DataType) -> pa.DataType:
    return dtype.value_type if isinstance(dtype, pa.DictionaryType) else dtype


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Names of integer labels, from the schema metadata of Hugging Face `datasets`."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, ValueError, TypeError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _labels(values: list[Any], names: tuple[str, ...] | None) -> tuple[list[str | None], list[str | None]]:
    labels, problems = class_names(values)
    if names is None:
        return labels, problems
    for row, value in enumerate(values):
        if isinstance(value, (int, float)) and problems[row] is None and labels[row] is not None:
            # Hugging Face writes -1 for "no label" in test sets.
            labels[row] = names[int(value)] if 0 <= value < len(names) else None
            if value >= len(names):
                problems[row] = f"bad_label: {value}, but the schema has names for 0 to {len(names) - 1}"
    return labels, problems


def _keys(uri: str, column: str, values: list[Any]) -> list[str]:
    for row, value in enumerate(values):
        if value is None or value == "":
            raise StriateError(f"{uri}: row {row} has no key in the column '{column}'")
    return [str(value) for value in values]


def _check_same(first_uri: str, first: pa.Schema, uri: str, schema: pa.Schema) -> None:
    try:
        pa.unify_schemas([first, schema], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UsageError(
            f"{uri} and {first_uri} have columns that do not fit together: {error}; ingest them separately"
        ) from error


@contextlib.contextmanager
def _opened(uri: str) -> Generator[pq.ParquetFile]:
    with storage.open_read(uri) as raw:
        try:
            with pq.ParquetFile(raw, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
                yield file
        except (pa.ArrowInvalid, OSError) as error:
            raise StriateError(f"{uri} is damaged, or not a Parquet file: {error}") from error
