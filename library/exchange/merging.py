"""Decides how datasets are joined: the columns of the result, and what happens to keys that several of them have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from library import storage
from library.dataset.manifest import Manifest
from library.dataset.record import CORE_COLUMNS, dataset_schema
from library.dataset.shards import ShardReader
from library.errors import UsageError

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them

ArrayT = TypeVar("ArrayT", "pa.Array[Any]", "pa.ChunkedArray[Any]")

#: What happens to a key that several datasets have.
OnClash: TypeAlias = Literal["error", "keep-first", "prefix"]

_PARALLEL_READS = 8
_MOST_EXAMPLES = 3


@dataclass(frozen=True)
class Part:
    """One dataset to be joined.

    Attributes:
        uri: where it is.
        manifest: its manifest.
        prefix: what is put before each of its keys; empty to keep them.
    """

    uri: str
    manifest: Manifest
    prefix: str = ""


def union_schema(schemas: Mapping[str, pa.Schema]) -> pa.Schema:
    """Returns the columns of all datasets, each in the place where it first appears.

    A column of two whole-number types, of two floating types, or of a type and nothing but nulls gets the wider type.

    Args:
        schemas: the schema of each dataset, by its URI.

    Raises:
        UsageError: a column has types that do not fit together; names the column, the types and the datasets.
    """
    types: dict[str, tuple[pa.DataType, str]] = {}
    for uri, schema in schemas.items():
        for column in schema:
            known, first = types.get(column.name, (column.type, uri))
            wider = _wider(known, column.type)
            if wider is None:
                raise UsageError(
                    f"the column '{column.name}' is {known} in {first}, but {column.type} in {uri}; such columns "
                    "cannot be joined. Rename or convert one of them and ingest that dataset again"
                )
            types[column.name] = (wider, first)
    return dataset_schema([pa.field(name, type_) for name, (type_, _) in types.items() if name not in CORE_COLUMNS])


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Returns the type that holds every value of both exactly; None if there is none."""
    if one.equals(other):
        return one
    for first, second in ((one, other), (other, one)):
        if pa.types.is_null(first):
            return second
    kinds = (pa.types.is_signed_integer, pa.types.is_unsigned_integer, pa.types.is_floating)
    if any(is_kind(one) and is_kind(other) for is_kind in kinds):
        return max(one, other, key=lambda type_: type_.bit_width)
    for is_text, large in ((_is_text, pa.large_string()), (_is_bytes, pa.large_binary())):
        if is_text(one) and is_text(other):
            return large
    return None


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_)


def _is_bytes(type_: pa.DataType) -> bool:
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_)


def name_prefixes(uris: Sequence[str]) -> list[str]:
    """Returns a prefix for the keys of each dataset: the end of its URI, as many folders as the datasets need to
    differ."""
    paths = [uri.rstrip("/").split("/") for uri in uris]
    depth = 1
    while len({"/".join(path[-depth:]) for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path[-depth:]).strip("/") + "/" for path in paths]


def with_prefixes(parts: Sequence[Part]) -> list[Part]:
    """Gives each dataset the prefix of `name_prefixes`."""
    prefixes = name_prefixes([part.uri for part in parts])
    return [Part(part.uri, part.manifest, prefix) for part, prefix in zip(parts, prefixes, strict=True)]


def repeated_keys(parts: Sequence[Part], on_clash: OnClash) -> list[list[NDArray[np.bool_]]]:
    """Finds the pictures whose key was in a dataset or shard before.

    Args:
        parts: the datasets, in order of precedence.
        on_clash: with `keep-first`, repeated keys are allowed.

    Returns:
        For each dataset, for each of its shards, whether the key of each row is repeated.

    Raises:
        UsageError: keys are repeated and not allowed to be; names some of them and their datasets.
    """
    keys = [[prefixed(shard, part.prefix) for shard in _keys(part)] for part in parts]
    lengths = [[len(shard) for shard in shards] for shards in keys]
    joined = pa.concat_arrays([pa.array([], pa.large_string()), *(shard for shards in keys for shard in shards)])
    codes = joined.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    _, first = np.unique(codes, return_index=True)
    repeated = np.ones(len(codes), bool)
    repeated[first] = False
    if repeated.any() and on_clash != "keep-first":
        owner = np.repeat(np.arange(len(parts)), [sum(rows) for rows in lengths])
        raise UsageError(_clash(parts, joined, codes, first, repeated, owner, on_clash))
    ends = np.cumsum([rows for shards in lengths for rows in shards], dtype=np.int64)
    masks = iter(np.split(repeated, ends[:-1]) if len(ends) else [])
    return [[next(masks) for _ in shards] for shards in lengths]


def _keys(part: Part) -> Iterator[pa.Array[Any]]:
    uris = [storage.join(part.uri, shard.name) for shard in part.manifest.shards]
    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        for table in pool.map(lambda uri: ShardReader(uri).columns(["key"]), uris):
            yield table["key"].cast(pa.large_string()).combine_chunks()


def prefixed(keys: ArrayT, prefix: str) -> ArrayT:
    """Returns keys with `prefix` before each."""
    if not prefix:
        return keys
    return _compute.binary_join_element_wise(pa.scalar(prefix, keys.type), keys, pa.scalar("", keys.type))


def _clash(
    parts: Sequence[Part],
    keys: pa.Array[Any],
    codes: NDArray[Any],
    first: NDArray[Any],
    repeated: NDArray[np.bool_],
    owner: NDArray[Any],
    on_clash: OnClash,
) -> str:
    rows = np.flatnonzero(repeated)
    examples = ", ".join(
        f"'{keys[int(row)].as_py()}' in {parts[int(owner[first[codes[row]]])].uri} and {parts[int(owner[row])].uri}"
        for row in _one_of_each(rows, codes)
    )
    number = len(np.unique(codes[rows]))
    what = "1 key is" if number == 1 else f"{number:,} keys are"
    advice = (
        "rename one of the datasets' folders, as its name is the prefix"
        if on_clash == "prefix"
        else "--on-clash keep-first keeps the picture of the first dataset that has the key; --on-clash prefix puts "
        "each dataset's name before its keys"
    )
    return f"{what} in more than one dataset: {examples}; {advice}"


def _one_of_each(rows: NDArray[Any], codes: NDArray[Any]) -> Iterable[int]:
    """Returns the first rows that have different keys."""
    return [int(row) for row in {int(codes[row]): row for row in rows[::-1]}.values()][::-1][:_MOST_EXAMPLES]
