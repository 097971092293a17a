"""Runs steps over an Arrow table of pictures, and counts what is kept, dropped and rejected."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute

from library.dataset.record import REJECT_COLUMNS
from library.errors import BadPicture, Dropped, StepError, StriateError
from library.imaging import codec
from library.imaging.picture import Picture
from library.pipeline.annotations import Annotations, Followed, check_steps
from library.steps.base import Selector, Step, traced

_compute: Any = pyarrow.compute  # its functions are created at import, so type checkers do not know them


@dataclass
class BatchResult:
    """The result for one table: rows in = kept + dropped + rejected.

    Attributes:
        table: the kept pictures, in their original order.
        rejects: the pictures that cannot be used, bytes unchanged, with the columns `reason` and `detail`.
        dropped: number of dropped pictures by reason.
        rejected: number of rejected pictures by reason.
        noted: number of kept pictures that lost something: `boxes_dropped`.
        seconds: time by stage: `decode`, each step's name, `encode`.
    """

    table: pa.Table
    rejects: pa.Table
    dropped: Counter[str]
    rejected: Counter[str]
    noted: Counter[str]
    seconds: dict[str, float]


_NO_ANNOTATIONS = Annotations()


def run_batch(
    steps: Sequence[Step],
    table: pa.Table,
    encoding: codec.Encoding = codec.KEEP,
    limits: codec.Limits = codec.DEFAULT_LIMITS,
    annotations: Annotations = _NO_ANNOTATIONS,
    measured: pa.Table | None = None,
) -> BatchResult:
    """Runs `steps` over every row of `table`.

    Args:
        steps: filters and selectors, first to last.
        table: rows of a dataset; `width`, `height`, `channels` and `format` are read from the pictures if the table
            does not have them.
        encoding: how the pictures that a filter changed are stored.
        limits: pictures beyond them are rejected before they are decoded.
        annotations: the columns of masks and boxes that follow the pictures.
        measured: scores of the same rows that were computed before, by name; a null is computed when it is needed.

    Raises:
        StepError: if a step's own code fails; names the key and the step.
        UsageError: if a step does not say what it does to masks and boxes.
    """
    if annotations:
        check_steps(steps, annotations)
    rows = _Rows(table, limits, measured)
    outcome = _Outcome()
    for row in range(table.num_rows):
        try:
            picture = rows.picture(row)
            followed = rows.followed(row, picture, annotations) if annotations else None
            _run_one(steps, picture, followed, row, encoding, outcome)
        except BadPicture as bad:
            outcome.rejects.append((row, bad.reason, bad.detail))
    return BatchResult(
        _kept_table(table, outcome, annotations),
        reject_table(table, outcome.rejects),
        outcome.dropped,
        Counter(reason for _, reason, _ in outcome.rejects),
        outcome.noted,
        outcome.seconds,
    )


@dataclass
class _Outcome:
    kept_rows: list[int] = field(default_factory=list[int])
    changed: dict[int, tuple[bytes, codec.Header]] = field(default_factory=dict[int, tuple[bytes, codec.Header]])
    followed: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])
    noted: Counter[str] = field(default_factory=Counter[str])
    rejects: list[tuple[int, str, str]] = field(default_factory=list[tuple[int, str, str]])
    dropped: Counter[str] = field(default_factory=Counter[str])
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    def add_seconds(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def _run_one(
    steps: Sequence[Step],
    picture: Picture,
    followed: Followed | None,
    row: int,
    encoding: codec.Encoding,
    outcome: _Outcome,
) -> None:
    try:
        for step in steps:
            start, decoding = perf_counter(), picture.decode_seconds
            try:
                reason = run_step(step, picture, followed)
            finally:
                outcome.add_seconds(step.name, perf_counter() - start - (picture.decode_seconds - decoding))
            if reason is not None:
                outcome.dropped[reason] += 1
                return
    finally:
        outcome.add_seconds("decode", picture.decode_seconds)
    outcome.kept_rows.append(row)
    if picture.changed:
        start = perf_counter()
        try:
            data, name = codec.encode(picture.pixels, encoding, picture.format)
        except BadPicture:
            outcome.kept_rows.pop()
            raise
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            raise StepError(f"encoding picture '{picture.key}' as {encoding} failed: {problem}") from error
        header = codec.Header(name, picture.width, picture.height, picture.channels)
        outcome.changed[row] = (data, header)
        if followed is not None and followed.moved:
            outcome.followed[row] = followed.columns()
            outcome.noted.update(["boxes_dropped"] * (followed.boxes_dropped > 0))
        outcome.add_seconds("encode", perf_counter() - start)


def run_step(step: Step, picture: Picture, followed: Followed | None = None) -> str | None:
    """Runs one step; returns the reason if the picture is dropped, else None.

    Args:
        step: a filter or a selector.
        picture: what it judges or changes.
        followed: the picture's masks and boxes, which move with it.

    Raises:
        BadPicture: if the picture cannot be used.
        StepError: if the step's own code fails; names the key and the step.
    """
    try:
        if step.kind == "selector":
            return cast(Selector, step).reason(picture)
        columns = _columns(step, picture, followed)
        pixels, moves = traced(step, picture.pixels, None, *columns)
        picture.replace(pixels)
        if followed is not None:
            followed.follow(moves)
        return None
    except Dropped as dropped:
        return dropped.reason
    except StriateError:
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise StepError(f"step '{step}' failed on picture '{picture.key}': {problem}") from error


def _columns(step: Step, picture: Picture, followed: Followed | None) -> list[Any]:
    """The values of the other columns that a filter needs."""
    names = step.columns()
    try:
        return [
            followed.column(name) if followed is not None and name in followed.names else picture.column(name)
            for name in names
        ]
    except KeyError as error:
        raise StepError(f"step '{step}' on picture '{picture.key}': the dataset has no column {error}") from error


class _Rows:
    """The rows of a table as pictures; image bytes and other columns are only copied when a step needs them."""

    def __init__(self, table: pa.Table, limits: codec.Limits, measured: pa.Table | None) -> None:
        self._table = table.combine_chunks()
        self._limits = limits
        self._measured = [] if measured is None else measured.to_pylist()
        self._keys = table["key"].to_pylist()
        self._labels = table["label"].to_pylist() if "label" in table.column_names else [None] * table.num_rows
        self._bytes = _image_bytes(self._table)
        names = ("format", "width", "height", "channels")
        self._headers = (
            list(zip(*(table[name].to_pylist() for name in names), strict=True))
            if all(name in table.column_names for name in names)
            else None
        )

    def picture(self, row: int) -> Picture:
        data = self._bytes[row]
        if not data.is_valid:
            raise BadPicture("empty", "the image column holds no bytes")
        if self._headers is not None and None not in self._headers[row]:
            header = codec.Header(*self._headers[row])
        else:
            header = codec.probe(data.as_py(), self._limits)
        extras = _RowExtras(self._table, row)
        measured = self._measured[row] if self._measured else None
        return Picture(self._keys[row], self._labels[row], header, data.as_py, extras, self._limits, measured=measured)

    def followed(self, row: int, picture: Picture, annotations: Annotations) -> Followed:
        """The masks and boxes of a row."""
        return Followed(annotations, picture.extras, (picture.height, picture.width))


def _image_bytes(table: pa.Table) -> Any:
    image = table["image"]
    return _compute.struct_field(image, "bytes") if pa.types.is_struct(image.type) else image


class _RowExtras(Mapping[str, Any]):
    """One row's columns by name, converted on access."""

    def __init__(self, table: pa.Table, row: int) -> None:
        self._table, self._row = table, row

    def __getitem__(self, name: str) -> Any:
        if name not in self._table.column_names:
            raise KeyError(name)
        return self._table[name][self._row].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return self._table.num_columns


def _kept_table(table: pa.Table, outcome: _Outcome, annotations: Annotations) -> pa.Table:
    pictures = (
        table if len(outcome.kept_rows) == table.num_rows else table.take(pa.array(outcome.kept_rows, pa.int64()))
    )
    if not outcome.changed:
        return pictures
    rows = [outcome.changed.get(row) for row in outcome.kept_rows]
    stored = _image_bytes(pictures)
    data = [stored[i].as_py() if new is None else new[0] for i, new in enumerate(rows)]
    columns: dict[str, Any] = {"image": _image_column(pictures, data, rows)}
    for name in ("width", "height", "channels", "format"):
        if name in pictures.column_names:
            old = pictures[name].to_pylist()
            values = [old[i] if new is None else getattr(new[1], name) for i, new in enumerate(rows)]
            columns[name] = pa.array(values, pictures.schema.field(name).type)
    if outcome.followed:
        for name in annotations.names:
            old = pictures[name]
            moved = (outcome.followed.get(row) for row in outcome.kept_rows)
            values = [old[i].as_py() if new is None else new[name] for i, new in enumerate(moved)]
            columns[name] = pa.array(values, pictures.schema.field(name).type)
    arrays = [columns.get(name, pictures[name]) for name in pictures.column_names]
    return pa.Table.from_arrays(arrays, schema=pictures.schema)


def _image_column(pictures: pa.Table, data: list[bytes], rows: Sequence[tuple[bytes, codec.Header] | None]) -> Any:
    image = pictures["image"]
    if not pa.types.is_struct(image.type):
        return pa.array(data, image.type)
    fields = list(cast(pa.StructType, image.type))
    columns: dict[str, Any] = {"bytes": data}
    for name in (member.name for member in fields if member.name != "bytes"):
        columns[name] = _compute.struct_field(image, name).to_pylist()
    if "path" in columns:
        named = zip(columns["path"], rows, strict=True)
        columns["path"] = [path if new is None else _renamed(path, new[1].format) for path, new in named]
    return pa.StructArray.from_arrays([pa.array(columns[field.name], field.type) for field in fields], fields=fields)


def _renamed(path: str | None, name: str) -> str | None:
    if path is None:
        return None
    stem, extension = posixpath.splitext(path)
    same = {"jpg": "jpeg", "tif": "tiff"}.get(extension[1:].lower(), extension[1:].lower()) == name
    return path if same else f"{stem}.{name}"


def reject_table(table: pa.Table, rejects: Sequence[tuple[int, str, str]]) -> pa.Table:
    """The rows of `table` listed in `rejects` as (row number, reason, detail), with the last two as columns."""
    rows = table.take(pa.array([row for row, _, _ in rejects], pa.int64()))
    for name, values in zip(REJECT_COLUMNS, ([r[1] for r in rejects], [r[2] for r in rejects]), strict=True):
        rows = rows.append_column(name, pa.array(values, pa.string()))
    return rows
