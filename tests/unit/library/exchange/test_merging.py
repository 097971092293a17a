"""Joining the columns of datasets."""

from __future__ import annotations

import pyarrow as pa
import pytest

from library.dataset.manifest import Manifest
from library.dataset.record import CORE_COLUMNS, dataset_schema
from library.errors import UsageError
from library.exchange.merging import Part, union_schema, with_prefixes


def _schema(**extras: pa.DataType) -> pa.Schema:
    return dataset_schema([pa.field(name, type_) for name, type_ in extras.items()])


@pytest.mark.parametrize(
    ("one", "other", "joined"),
    [
        (pa.int16(), pa.int64(), pa.int64()),
        (pa.uint32(), pa.uint8(), pa.uint32()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.null(), pa.list_(pa.string()), pa.list_(pa.string())),
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.bool_(), pa.bool_(), pa.bool_()),
        (pa.int64(), pa.float64(), None),
        (pa.int64(), pa.uint64(), None),
        (pa.int64(), pa.string(), None),
        (pa.bool_(), pa.int8(), None),
        (pa.list_(pa.int32()), pa.list_(pa.int64()), None),
    ],
)
def test_types_are_widened_only_where_every_value_stays_exact(
    one: pa.DataType, other: pa.DataType, joined: pa.DataType | None
) -> None:
    for first, second in ((one, other), (other, one)):
        schemas = {"a": _schema(x=first), "b": _schema(x=second)}
        if joined is None:
            with pytest.raises(UsageError, match=r"the column 'x' is .* in a, but .* in b"):
                union_schema(schemas)
        else:
            assert union_schema(schemas).field("x").type == joined


def test_columns_stand_where_they_first_appear_after_the_core_columns() -> None:
    schemas = {"a": _schema(x=pa.int64(), y=pa.string()), "b": _schema(z=pa.bool_(), x=pa.int64())}
    assert union_schema(schemas).names == [*CORE_COLUMNS, "x", "y", "z"]


def test_a_union_of_equal_schemas_is_that_schema_with_its_metadata() -> None:
    schema = _schema(x=pa.int64())
    assert union_schema({"a": schema, "b": schema}).equals(schema, check_metadata=True)


def test_prefixes_are_as_long_as_the_datasets_need_to_differ() -> None:
    manifest = Manifest(complete=True, jobs=[])
    parts = [Part(uri, manifest) for uri in ("/data/a/train", "s3://bucket/b/train", "/x/test")]
    assert [part.prefix for part in with_prefixes(parts)] == ["a/train/", "b/train/", "x/test/"]
    assert [part.prefix for part in with_prefixes(parts[1:])] == ["train/", "test/"]
