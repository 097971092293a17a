"""The columns of a dataset in the tables of other tools: fields of JSON, and Hugging Face's features."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa

from library.dataset.record import extra_fields
from library.errors import UsageError
from library.exchange.exports import Target
from library.sources.entries import PICTURE_SUFFIXES, SIDECAR_SUFFIXES
from library.sources.tables.sidecars import MARK

#: Fields of a JSON record with a meaning of their own.
_TAKEN = {
    "webdataset": (MARK,),
    "folders": (MARK, "file_name"),
    "coco": (MARK, "file_name", "id", "width", "height"),
    "huggingface": (),
}
_COMPUTED = ("width", "height", "channels", "format")  # of any picture, from its bytes


@dataclass(frozen=True)
class Fields:
    """The further columns of one picture: those that JSON can hold, and those of bytes."""

    values: Mapping[str, Any]
    parts: Mapping[str, bytes]


def check_columns(schema: pa.Schema, to: Target) -> list[str]:
    """Checks that every column can be written; returns a sentence for each that comes back in another type.

    Raises:
        UsageError: a column cannot be written; names it and the format that can hold it.
    """
    notes: list[str] = []
    for column in extra_fields(schema) if to != "huggingface" else []:
        name, type_ = column.name, column.type
        if name in _TAKEN[to]:
            raise UsageError(
                f"the column '{name}' has a name with another meaning in {to}; --to huggingface keeps every column"
            )
        if _has_bytes(type_):
            plain = name == name.lower() and "." not in name and name not in (PICTURE_SUFFIXES | SIDECAR_SUFFIXES)
            if to == "webdataset" and _is_bytes(type_) and plain:
                continue
            raise UsageError(
                f"the column '{name}' ({type_}) cannot be written as {to}; --to huggingface keeps every column"
            )
        if not (
            pa.types.is_string(type_)
            or pa.types.is_int64(type_)
            or pa.types.is_float64(type_)
            or pa.types.is_boolean(type_)
            or (pa.types.is_list(type_) and pa.types.is_string(type_.value_type))
        ):
            notes.append(f"the column '{name}' ({type_}) becomes {_json_type(type_)}; --to huggingface keeps its type")
    return notes


def _is_bytes(type_: pa.DataType) -> bool:
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_)


def _has_bytes(type_: Any) -> bool:
    return _is_bytes(type_) or any(_has_bytes(type_.field(at).type) for at in range(type_.num_fields))


def _json_type(type_: pa.DataType) -> str:
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        return "a number of 64 bits"
    if pa.types.is_nested(type_):
        return "JSON, of which ingest makes lists of boxes (x, y, w, h) again, and text of anything else"
    return "text"


def fields_of(table: pa.Table, schema: pa.Schema) -> Iterator[Fields]:
    """Yields the further columns of each row."""
    columns = extra_fields(schema)
    binary = [column.name for column in columns if _is_bytes(column.type)]
    names = [column.name for column in columns]
    for row in table.select(names).to_pylist() if names else [{}] * table.num_rows:
        yield Fields(
            {name: _plain(value) for name, value in row.items() if name not in binary},
            {name: row[name] for name in binary if row[name] is not None},
        )


def _plain(value: Any) -> Any:
    """Returns a value of Arrow as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    return str(value) if isinstance(value, (timedelta, Decimal)) else value


def hub_schema(schema: pa.Schema, classes: Sequence[str]) -> pa.Schema:
    """Returns the columns of a Parquet file with Hugging Face's features: the label is the number of its class."""
    columns: list[pa.Field[Any]] = []
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    for column in schema:
        if column.name == "label" and classes:
            columns.append(pa.field("label", pa.int64()))
            features["label"] = {"names": list(classes), "_type": "ClassLabel"}
        elif column.name not in _COMPUTED:
            columns.append(column)
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def hub_table(table: pa.Table, schema: pa.Schema, numbers: Mapping[str, int]) -> pa.Table:
    """Returns rows of a dataset with the columns of `hub_schema`."""
    arrays: list[Any] = []
    for column in schema:
        values: Any = table[column.name]
        if column.name == "label" and pa.types.is_integer(column.type):
            labels = values.to_pylist()
            values = pa.array([None if label is None else numbers[label] for label in labels], column.type)
        arrays.append(values)
    return pa.Table.from_arrays(arrays, schema=schema)
