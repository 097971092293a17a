"""Builds typed Arrow columns from fields of JSON and cells of CSV, and class names from labels."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute

_compute: Any = pyarrow.compute  # its functions are created at import time, which type checkers do not see
_INTEGER = r"^(-?[1-9]\d{0,17}|0)$"  # not 007: a code with leading zeros is text
_NUMBER = r"^-?(\d{1,15}\.?|\d{0,15}\.\d+)([eE][-+]?\d{1,3})?$"  # not 20 digits: a double would round them
_LEADING_ZERO = r"^-?0\d"
_SIDES = ("x", "y", "w", "h")  # of a box
_WHOLE = re.compile(r"-?(0|[1-9]\d*)\.0")


class Columns:
    """Columns that grow row by row; each row may have other fields."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._values: dict[str, list[Any]] = {}

    def add(self, fields: Mapping[str, Any]) -> None:
        """Adds a row; fields that it does not have are None in it."""
        for name, value in fields.items():
            column = self._values.setdefault(name, [])
            column.extend([None] * (self.num_rows - len(column)))
            column.append(value)
        self.num_rows += 1

    @property
    def names(self) -> list[str]:
        """Names of the columns, in the order in which they first occurred."""
        return list(self._values)

    def values(self, name: str) -> list[Any]:
        """The values of one column, None for rows without the field."""
        column = self._values[name]
        column.extend([None] * (self.num_rows - len(column)))
        return column

    def arrays(self) -> dict[str, pa.Array[Any]]:
        """The columns by name, each in the type that `typed` chooses."""
        return {name: typed(self.values(name)) for name in self._values}


def typed(values: Sequence[Any]) -> pa.Array[Any]:
    """JSON values as a column of the narrowest type that keeps them.

    Lists of texts stay lists, and so do lists of boxes, objects with the numbers x, y, w and h; other nested values and
    mixed ones become JSON text.
    """
    types = {type(value) for value in values if value is not None}
    if types == {list}:
        items = [item for value in values for item in value or ()]
        if items and all(isinstance(item, str) for item in items):
            texts = [None if value is None else [as_text(item) for item in value] for value in values]
            return pa.array(texts, pa.list_(pa.string()))
        if items and all(_is_box(item) for item in items):
            return _boxes(values, items)
    if types == {bool}:
        return pa.array(values, pa.bool_())
    try:
        if types and types <= {int}:
            return pa.array(values, pa.int64())
        if types and types <= {int, float}:
            return pa.array(values, pa.float64())
    except (OverflowError, pa.ArrowInvalid):
        pass  # too large for 64 bits or a double: kept as text
    return pa.array([as_text(value) for value in values], pa.string())


def _is_box(item: Any) -> bool:
    return isinstance(item, dict) and all(
        isinstance(item.get(side), int | float) and not isinstance(item.get(side), bool) for side in _SIDES
    )


def _boxes(values: Sequence[Any], items: Sequence[dict[str, Any]]) -> pa.Array[Any]:
    """Lists of boxes as lists of structs: x, y, w and h as numbers, all other fields as text."""
    others = [name for name in dict.fromkeys(name for item in items for name in item) if name not in _SIDES]
    box = pa.struct([*((side, pa.float64()) for side in _SIDES), *((as_text(name), pa.string()) for name in others)])

    def stored(item: dict[str, Any]) -> dict[str | None, Any]:
        sides: dict[str | None, Any] = {side: float(item[side]) for side in _SIDES}
        return sides | {as_text(name): as_text(item.get(name)) for name in others}

    return pa.array(
        [None if value is None else [stored(item) for item in value] for value in values],
        pa.list_(box),
    )


def as_text(value: Any) -> str | None:
    """A JSON value as text; strings stay as they are, with lone surrogates escaped."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


def label_text(value: Any) -> str | None:
    """A value as the name of a class: 3 and 3.0 are both `3`; empty text and NaN are None.

    Raises:
        ValueError: the value is a number with a fraction, a list or an object.
    """
    if isinstance(value, (list, dict)):
        raise ValueError("holds several values, but a picture has one class")
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if not value.is_integer():
            raise ValueError(f"{value} is not a class; it must be text or a whole number")
        value = int(value)
    text = as_text(value)
    return text.strip() or None if text else None


def class_names(values: Any) -> tuple[list[str | None], list[str | None]]:
    """A column of labels as class names, and the problem of each row or None."""
    names: list[str | None] = []
    problems: list[str | None] = []
    in_arrow = isinstance(values, (pa.Array, pa.ChunkedArray))
    for value in values.to_pylist() if in_arrow else values:
        name, problem = None, None
        try:
            name = label_text(value)
        except ValueError as error:
            problem = f"bad_label: the label {error}"
        names.append(name)
        problems.append(problem)
    # pandas writes whole numbers as 0.0, 1.0 when some are missing.
    if all(name is None or _WHOLE.fullmatch(name) for name in names):
        names = [name and name.removesuffix(".0") for name in names]
    return names, problems


def narrowed(text: pa.ChunkedArray[Any]) -> pa.ChunkedArray[Any]:
    """A column of text as integers, numbers or booleans if every cell is one; empty cells then become null."""
    filled = _compute.if_else(_compute.equal(text, ""), pa.scalar(None, pa.string()), text)
    if filled.null_count == len(filled):
        return text
    if _all_match(filled, _INTEGER):
        return filled.cast(pa.int64())
    if _all_match(filled, _NUMBER) and not _compute.any(_compute.match_substring_regex(filled, _LEADING_ZERO)).as_py():
        return filled.cast(pa.float64())
    if _all_match(filled, "^(?i:true|false)$"):
        return _compute.equal(_compute.utf8_lower(filled), "true")
    return text


def _all_match(text: pa.ChunkedArray[Any], pattern: str) -> bool:
    return bool(_compute.all(_compute.match_substring_regex(text, pattern)).as_py())
