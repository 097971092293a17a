"""Masks and boxes: columns of a dataset that follow their picture when a step moves its pixels.

A mask is an encoded picture of the same size, as bytes or a struct with `bytes`. Boxes are a list of structs with `x`,
`y`, `w` and `h` in pixels, from the top left corner of the picture, and any other fields, such as `label`.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import pyarrow as pa

from library.errors import BadPicture, UsageError
from library.imaging import codec
from library.imaging.marks import MarkedBox, Marks
from library.imaging.masks import Mask, decode_mask, encode_mask, require_size
from library.steps.base import Step, says_where, with_nested
from library.steps.moves import Affine, Moves

#: The option's value for columns that shall not be moved.
NONE = "none"
_MASKS = "encoded masks: bytes, or a struct with `bytes`"
_BOXES = "boxes: a list of structs with x, y, w and h"
_SIDES = ("x", "y", "w", "h")
_DEFAULT_SHARE = 0.1

_Polygon: TypeAlias = list[tuple[float, float]]


@dataclass(frozen=True)
class Wanted:
    """Which columns a user wants to follow the pictures.

    Attributes:
        masks: names of columns of masks; empty for a column `mask`, if there is one; "none" to leave all as they are.
        boxes: the columns of boxes; empty for a column `boxes`.
        min_box_share: see `Annotations`; None for 0.1.
    """

    masks: Sequence[str] = ()
    boxes: Sequence[str] = ()
    min_box_share: float | None = None


@dataclass(frozen=True)
class Annotations:
    """The columns of a dataset that follow the picture.

    Attributes:
        masks: columns of encoded masks.
        boxes: columns of boxes.
        min_box_share: a box of which less than this share of the area is left in the picture is dropped.
    """

    masks: tuple[str, ...] = ()
    boxes: tuple[str, ...] = ()
    min_box_share: float = _DEFAULT_SHARE

    def __bool__(self) -> bool:
        return bool(self.masks or self.boxes)

    @property
    def names(self) -> tuple[str, ...]:
        """All columns."""
        return *self.masks, *self.boxes

    def recorded(self) -> dict[str, Any]:
        """Returns what a manifest's options hold; empty where there are none."""
        if not self:
            return {}
        return {"masks": list(self.masks), "boxes": list(self.boxes), "min_box_share": self.min_box_share}


_BY_NAME = Wanted()


def find_annotations(schema: pa.Schema, steps: Sequence[Step], wanted: Wanted = _BY_NAME) -> Annotations:
    """Finds the columns that must follow what the steps do to a picture.

    Args:
        schema: the columns of the dataset.
        steps: what is done to each picture.
        wanted: the columns, where they are not named `mask` and `boxes`.

    Raises:
        UsageError: a column is missing or of another type, an option has no effect, or a step does not say what it does
            to places in a picture.
    """
    if all(step.still for step in with_nested(steps)):
        given = {"--masks": wanted.masks, "--boxes": wanted.boxes, "--min-box-share": wanted.min_box_share is not None}
        for option in (option for option, is_given in given.items() if is_given):
            text = " | ".join(map(str, steps))
            raise UsageError(f"{option} has no effect, because no step of '{text}' moves pixels; leave it out")
        return Annotations()
    share = wanted.min_box_share
    annotations = Annotations(
        tuple(_columns(schema, "--masks", wanted.masks, "mask", _is_mask, _MASKS)),
        tuple(_columns(schema, "--boxes", wanted.boxes, "boxes", _is_boxes, _BOXES)),
        _DEFAULT_SHARE if share is None else share,
    )
    if not 0 <= annotations.min_box_share <= 1:
        raise UsageError(f"--min-box-share {annotations.min_box_share:g}: must be a share of a box's area, from 0 to 1")
    if share is not None and not annotations.boxes:
        raise UsageError("--min-box-share has no effect: the dataset has no column of boxes that is moved")
    if annotations:
        check_steps(steps, annotations)
    _check_reads(schema, steps, annotations)
    return annotations


def _check_reads(schema: pa.Schema, steps: Sequence[Step], moving: Annotations) -> None:
    """Refuses a step that reads a column of masks or boxes after the picture, but not the column, was moved."""
    moved = False
    for step in steps:
        for name in step.columns() if moved else ():
            type_ = None if name in moving.names or name not in schema.names else schema.field(name).type
            if type_ is not None and (_is_mask(type_) or _is_boxes(type_)):
                option = "--masks" if _is_mask(type_) else "--boxes"
                raise UsageError(
                    f"'{step}' reads the column '{name}' after steps that move pixels, and the column stays as it was: "
                    f"move it too with {option} {name}, or put '{step.name}' before those steps"
                )
        moved = moved or not all(each.still for each in with_nested([step]))


def drawn_annotations(schema: pa.Schema, wanted: Wanted = _BY_NAME) -> Annotations:
    """Finds the columns of masks and boxes, whatever is done to the pictures; raises UsageError for a wrong name."""
    masks = wanted.masks or ["mask"] * ("mask" in schema.names and _is_mask(schema.field("mask").type))
    boxes = wanted.boxes or ["boxes"] * ("boxes" in schema.names and _is_boxes(schema.field("boxes").type))
    return Annotations(
        tuple(_columns(schema, "--masks", masks, "mask", _is_mask, _MASKS)) if masks else (),
        tuple(_columns(schema, "--boxes", boxes, "boxes", _is_boxes, _BOXES)) if boxes else (),
    )


def check_steps(steps: Sequence[Step], annotations: Annotations) -> None:
    """Refuses a step that does not say where it moves pixels, as masks and boxes could not follow it.

    Raises:
        UsageError: names the step and what would work.
    """
    for step in with_nested(steps):
        if not says_where(step):
            columns = ", ".join(annotations.names)
            raise UsageError(
                f"'{step.name}' does not say where it moves pixels, so {columns} could no longer fit the pictures: "
                f'register it with @register("{step.kind}", still=True) if everything stays in its place, give it a '
                "method `move`, or leave the columns as they are with --masks none --boxes none"
            )


def _columns(
    schema: pa.Schema, option: str, names: Sequence[str], usual: str, fits: Any, described: str
) -> Sequence[str]:
    if list(names) == [NONE]:
        return ()
    if not names:
        if usual not in schema.names or fits(schema.field(usual).type):
            return [usual] if usual in schema.names else []
        raise UsageError(
            f"the column '{usual}' holds {schema.field(usual).type}, not {described}; it cannot follow the pictures "
            f"that these steps move. Name another column with {option}, or leave it as it is with {option} none"
        )
    for name in names:
        if name not in schema.names:
            others = ", ".join(field.name for field in schema if fits(field.type) and field.name != "image")
            raise UsageError(f"{option} {name}: the dataset has no such column; possible are: {others or 'none'}")
        if not fits(schema.field(name).type) or name == "image":
            raise UsageError(f"{option} {name}: the column holds {schema.field(name).type}, not {described}")
    return list(dict.fromkeys(names))


def _is_mask(dtype: pa.DataType) -> bool:
    if isinstance(dtype, pa.StructType):
        return dtype.get_field_index("bytes") >= 0 and _is_mask(dtype.field("bytes").type)
    return pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype)


def _is_boxes(dtype: pa.DataType) -> bool:
    if not (pa.types.is_list(dtype) or pa.types.is_large_list(dtype)):
        return False
    box = cast(Any, dtype).value_type
    if not isinstance(box, pa.StructType) or any(box.get_field_index(name) < 0 for name in _SIDES):
        return False
    types = [box.field(name).type for name in _SIDES]
    return all(pa.types.is_integer(side) or pa.types.is_floating(side) for side in types)


class Followed:
    """The masks and boxes of one picture, which follow it.

    Args:
        annotations: the columns.
        values: the picture's columns by name, as Python values.
        size: height and width of the picture.
    """

    def __init__(self, annotations: Annotations, values: Mapping[str, Any], size: tuple[int, int]) -> None:
        self._annotations, self._values, self._size = annotations, values, size
        self._masks: dict[str, Mask] = {}
        self._boxes: dict[str, list[_Box]] = {}
        self.moved = False

    def follow(self, moves: Moves) -> None:
        """Moves everything as the picture was moved.

        Raises:
            BadPicture: `mask_size`, `bad_box`, or why a mask cannot be decoded.
        """
        if moves and not self.moved:
            self._open()
        for move in moves:
            self._size = move.size
            self._masks = {name: Mask(move.mask(mask.pixels), mask.palette) for name, mask in self._masks.items()}
            for boxes in self._boxes.values():
                for box in boxes:
                    box.follow(move.matrix, move.size)

    def _open(self) -> None:
        height, width = self._size
        self.moved = True
        for name in self._annotations.masks:
            data = _mask_bytes(self._values[name])
            if data is None:
                continue  # a picture without a mask stays without
            try:
                mask = decode_mask(data)
            except BadPicture as bad:
                raise BadPicture(bad.reason, f"the mask in '{name}': {bad.detail}") from bad
            require_size(mask, height, width, name)
            self._masks[name] = mask
        for name in self._annotations.boxes:
            boxes = self._values[name]
            if boxes is not None:
                self._boxes[name] = [_Box(box, name, (height, width)) for box in boxes]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return self._annotations.names

    def columns(self) -> dict[str, Any]:
        """The value of every column now."""
        return {name: self.column(name) for name in self.names}

    @property
    def boxes_dropped(self) -> int:
        """How many boxes are not in the picture any more."""
        return sum(not self._is_kept(box) for boxes in self._boxes.values() for box in boxes)

    def _is_kept(self, box: _Box) -> bool:
        return box.share > 0 and box.share >= self._annotations.min_box_share and box.sides() is not None

    def column(self, name: str) -> Any:
        """The value of one of the columns now, with the types that it had."""
        value = self._values[name]
        if name in self._masks:
            data = encode_mask(self._masks[name])
            if not isinstance(value, dict):
                return data
            path = value.get("path")
            stored = codec.probe(data, None).format
            return {**value, "bytes": data} | ({"path": _renamed(path, stored)} if path else {})
        if name in self._boxes:
            return [{**box.fields, **(box.sides() or {})} for box in self._boxes[name] if self._is_kept(box)]
        return value


def _mask_bytes(value: Any) -> bytes | None:
    return value.get("bytes") if isinstance(value, dict) else value


def marks_of(annotations: Annotations, values: Mapping[str, Any]) -> Marks:
    """What a contact sheet draws over a picture.

    Args:
        annotations: the columns.
        values: the picture's columns by name, as Python values.

    Raises:
        BadPicture: a mask cannot be decoded.
    """
    masks = [_mask_bytes(values[name]) for name in annotations.masks]
    boxes = [
        MarkedBox(*(float(box[side]) for side in _SIDES), text=_text(box))
        for name in annotations.boxes
        for box in values[name] or ()
        if None not in [box[side] for side in _SIDES]
    ]
    return Marks([decode_mask(data).pixels for data in masks if data is not None], boxes)


def _text(box: Mapping[str, Any]) -> str:
    return next((str(box[name]) for name in ("label", "category", "class", "name") if box.get(name) is not None), "")


def _renamed(path: str, stored: str) -> str:
    stem, extension = posixpath.splitext(path)
    return path if extension[1:].lower() in (stored, stored[:3]) else f"{stem}.{stored}"


class _Box:
    """One box: what is left of it is a convex polygon, because a rotated or a cut box is not a box any more.

    So the box around it does not grow when a picture is rotated to and fro, and the share of its area is exact.
    """

    def __init__(self, fields: dict[str, Any], column: str, size: tuple[int, int]) -> None:
        self.fields = fields
        values = [fields[name] for name in _SIDES]
        if any(value is None or not math.isfinite(value) for value in values) or min(values[2:]) < 0:
            text = ", ".join(f"{name}={value}" for name, value in zip(_SIDES, values, strict=True))
            raise BadPicture("bad_box", f"a box in '{column}' has {text}; it needs numbers, and w and h of 0 or more")
        x, y, w, h = values
        self._whole = all(isinstance(value, int) for value in values)
        whole: _Polygon = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
        self._polygon = _clipped(whole, *size)
        self.share = _area(self._polygon) / (w * h) if w * h else 0.0

    def follow(self, matrix: Affine, size: tuple[int, int]) -> None:
        """Moves the box, and cuts off what is outside the picture."""
        (xx, xy, x0), (yx, yy, y0) = matrix
        there = [(xx * x + xy * y + x0, yx * x + yy * y + y0) for x, y in self._polygon]
        area = _area(there)
        self._polygon = _clipped(there, *size)
        self.share *= _area(self._polygon) / area if area else 0.0

    def sides(self) -> dict[str, Any] | None:
        """The least box around what is left; None if it has no area."""
        if not self._polygon:
            return None
        edges = [limit(point[axis] for point in self._polygon) for axis in (0, 1) for limit in (min, max)]
        if self._whole:
            edges = [round(edge) for edge in edges]
        left, right, top, bottom = edges
        if right <= left or bottom <= top:
            return None
        return {"x": left, "y": top, "w": right - left, "h": bottom - top}


def _clipped(polygon: _Polygon, height: int, width: int) -> _Polygon:
    """What is inside a picture (Sutherland and Hodgman 1974: cut by one border after the other)."""
    for axis, sign, limit in ((0, 1, 0.0), (0, -1, -float(width)), (1, 1, 0.0), (1, -1, -float(height))):
        inside: _Polygon = []
        for number, point in enumerate(polygon):
            before = polygon[number - 1]
            there, was = sign * point[axis] - limit, sign * before[axis] - limit
            if (there < 0) != (was < 0):
                part = was / (was - there)
                crossing = [before[other] + part * (point[other] - before[other]) for other in (0, 1)]
                crossing[axis] = abs(limit)  # exactly on the border
                inside.append((crossing[0], crossing[1]))
            if there >= 0:
                inside.append(point)
        polygon = inside
    return polygon


def _area(polygon: _Polygon) -> float:
    pairs = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return abs(sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in pairs)) / 2
