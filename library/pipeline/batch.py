"""One Arrow table of pictures through the steps: what is kept, dropped and rejected, and where the time went."""

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
from library.steps.base import Filter, Selector, Step

_compute: Any = pyarrow.compute  # its functions are made at import, where no type checker sees them


@dataclass
class BatchResult:
    """What came of one table: `rows in = table + dropped + rejects`.

    Attributes:
        table: the kept pictures, in the order they came.
        rejects: the unusable ones, bytes untouched, with the columns `reason` and `detail`.
        dropped: how many each selector's reason dropped.
        rejected: how many each reject reason took.
        seconds: time by stage: `decode`, each step's name, `encode`.
    """

    table: pa.Table
    rejects: pa.Table
    dropped: Counter[str]
    rejected: Counter[str]
    seconds: dict[str, float]


def run_batch(
    steps: Sequence[Step],
    table: pa.Table,
    encoding: codec.Encoding = codec.KEEP,
    limits: codec.Limits = codec.DEFAULT_LIMITS,
) -> BatchResult:
    """Run `steps` over every row of `table`.

    Args:
        steps: filters and selectors, first to last.
        table: rows of a dataset; `width`, `height`, `channels` and `format` are read from the pictures where the
            table lacks them.
        encoding: how the pictures that a filter changed are stored.
        limits: a picture past them is rejected before it is decoded.

    Raises:
        StepError: when a step's own code fails; names the key and the step.
    """
    rows = _Rows(table, limits)
    done = _Outcome()
    for row in range(table.num_rows):
        try:
            _run_one(steps, rows.picture(row), row, encoding, done)
        except BadPicture as bad:
            done.rejects.append((row, bad.reason, bad.detail))
    return BatchResult(
        _kept_table(table, done),
        reject_table(table, done.rejects),
        done.dropped,
        Counter(reason for _, reason, _ in done.rejects),
        done.seconds,
    )


@dataclass
class _Outcome:
    kept: list[int] = field(default_factory=list[int])
    changed: dict[int, tuple[bytes, codec.Header]] = field(default_factory=dict[int, tuple[bytes, codec.Header]])
    rejects: list[tuple[int, str, str]] = field(default_factory=list[tuple[int, str, str]])
    dropped: Counter[str] = field(default_factory=Counter[str])
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    def spent(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def _run_one(steps: Sequence[Step], picture: Picture, row: int, encoding: codec.Encoding, done: _Outcome) -> None:
    try:
        for step in steps:
            start, decoding = perf_counter(), picture.decode_seconds
            try:
                reason = run_step(step, picture)
            finally:
                done.spent(step.name, perf_counter() - start - (picture.decode_seconds - decoding))
            if reason is not None:
                done.dropped[reason] += 1
                return
    finally:
        done.spent("decode", picture.decode_seconds)
    done.kept.append(row)
    if picture.changed:
        start = perf_counter()
        try:
            data, name = codec.encode(picture.pixels, encoding, picture.format)
        except BadPicture:
            done.kept.pop()
            raise
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            raise StepError(f"encoding picture '{picture.key}' as {encoding} failed: {problem}") from error
        header = codec.Header(name, picture.width, picture.height, picture.channels)
        done.changed[row] = (data, header)
        done.spent("encode", perf_counter() - start)


def run_step(step: Step, picture: Picture) -> str | None:
    """Run one step; returns why the picture is dropped, or None.

    Raises:
        BadPicture: when the picture cannot be used.
        StepError: when the step's own code fails; names the key and the step.
    """
    try:
        if step.kind == "selector":
            return cast(Selector, step).reason(picture)
        columns = _columns(step, picture)
        picture.replace(cast(Filter, step)(picture.pixels, *columns))
        return None
    except Dropped as dropped:
        return dropped.reason
    except StriateError:
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise StepError(f"step '{step}' failed on picture '{picture.key}': {problem}") from error


def _columns(step: Step, picture: Picture) -> list[Any]:
    """What a filter needs besides the pixels."""
    names = step.columns()
    try:
        return [picture.column(name) for name in names]
    except KeyError as error:
        raise StepError(f"step '{step}' on picture '{picture.key}': the dataset has no column {error}") from error


class _Rows:
    """Pictures out of a table, one at a time; nothing is copied before a step asks for it."""

    def __init__(self, table: pa.Table, limits: codec.Limits) -> None:
        self._table = table.combine_chunks()
        self._limits = limits
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
        return Picture(self._keys[row], self._labels[row], header, data.as_py, extras, self._limits)


def _image_bytes(table: pa.Table) -> Any:
    image = table["image"]
    return _compute.struct_field(image, "bytes") if pa.types.is_struct(image.type) else image


class _RowExtras(Mapping[str, Any]):
    """One row's columns by name, converted when they are asked for."""

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


def _kept_table(table: pa.Table, done: _Outcome) -> pa.Table:
    kept = table if len(done.kept) == table.num_rows else table.take(pa.array(done.kept, pa.int64()))
    if not done.changed:
        return kept
    rows = [done.changed.get(row) for row in done.kept]
    stored = _image_bytes(kept)
    data = [stored[i].as_py() if new is None else new[0] for i, new in enumerate(rows)]
    columns: dict[str, Any] = {"image": _image_column(kept, data, rows)}
    for name in ("width", "height", "channels", "format"):
        if name in kept.column_names:
            old = kept[name].to_pylist()
            values = [old[i] if new is None else getattr(new[1], name) for i, new in enumerate(rows)]
            columns[name] = pa.array(values, kept.schema.field(name).type)
    arrays = [columns.get(name, kept[name]) for name in kept.column_names]
    return pa.Table.from_arrays(arrays, schema=kept.schema)


def _image_column(kept: pa.Table, data: list[bytes], rows: Sequence[tuple[bytes, codec.Header] | None]) -> Any:
    image = kept["image"]
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
    """Rows of `table` that cannot be used, from their numbers, reasons and details; bytes untouched."""
    taken = table.take(pa.array([row for row, _, _ in rejects], pa.int64()))
    for name, values in zip(REJECT_COLUMNS, ([r[1] for r in rejects], [r[2] for r in rejects]), strict=True):
        taken = taken.append_column(name, pa.array(values, pa.string()))
    return taken
