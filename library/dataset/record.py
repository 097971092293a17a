"""One picture as a dataset stores it, and the Arrow schema of a dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from library.imaging.codec import Header

#: The layout of Hugging Face's Image feature.
IMAGE_TYPE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])

_CORE = (
    pa.field("key", pa.string()),
    pa.field("image", IMAGE_TYPE),
    pa.field("label", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("channels", pa.int32()),
    pa.field("format", pa.string()),
)
CORE_COLUMNS = tuple(column.name for column in _CORE)
REJECT_COLUMNS = ("reason", "detail")

_HUGGING_FACE = json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})


@dataclass(frozen=True)
class ImageRecord:
    """One picture.

    Attributes:
        key: unique in its dataset.
        data: the encoded bytes, exactly as in the source; None for a reject that was too large to keep.
        path: file name in the source, for people and for Hugging Face.
        label: the class name, or None.
        header: size and format; None for a reject.
        extras: every other column, by name.
    """

    key: str
    data: bytes | None
    path: str | None = None
    label: str | None = None
    header: Header | None = None
    extras: Mapping[str, Any] = field(default_factory=dict[str, Any])


def dataset_schema(extras: Sequence[pa.Field[Any]] = ()) -> pa.Schema:
    """Returns the columns of a dataset: the core columns, then `extras`, with the metadata that Hugging Face reads."""
    return pa.schema([*_CORE, *extras], metadata={"huggingface": _HUGGING_FACE})


def reject_schema(dataset: pa.Schema) -> pa.Schema:
    """Returns the columns of `_rejects/`: those of the dataset, a reason slug and a sentence."""
    return pa.schema([*dataset, *(pa.field(name, pa.string()) for name in REJECT_COLUMNS)], metadata=dataset.metadata)


def extra_fields(schema: pa.Schema) -> list[pa.Field[Any]]:
    """Returns the columns of a dataset besides the core columns."""
    return [column for column in schema if column.name not in CORE_COLUMNS]


def table_of(records: Sequence[ImageRecord], schema: pa.Schema) -> pa.Table:
    """Returns records as rows of `schema`, the schema of a dataset."""
    headers = [record.header for record in records]
    columns: dict[str, list[Any]] = {
        "key": [record.key for record in records],
        "label": [record.label for record in records],
        "width": [header and header.width for header in headers],
        "height": [header and header.height for header in headers],
        "channels": [header and header.channels for header in headers],
        "format": [header and header.format for header in headers],
    }
    for column in extra_fields(schema):
        columns[column.name] = [record.extras.get(column.name) for record in records]
    arrays = [
        image_array([record.data for record in records], [record.path for record in records])
        if column.name == "image"
        else pa.array(columns[column.name], column.type)
        for column in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def image_array(data: Sequence[bytes | None], paths: Sequence[str | None]) -> pa.Array:
    """Returns the `image` column of encoded pictures and their file names."""
    return pa.StructArray.from_arrays(
        [pa.array(data, pa.binary()), pa.array(paths, pa.string())], fields=list(IMAGE_TYPE)
    )
