"""What one worker does with one shard of `striate augment`. No Ray here: jobs/ maps it over shards."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import pyarrow as pa

from library import storage
from library.dataset.manifest import VERSIONS, ShardReport, Tally, digest_of
from library.dataset.record import REJECT_COLUMNS, image_array
from library.dataset.shards import SUFFIX, ShardReader
from library.dataset.task import Progress, ShardOutput, ShardTask
from library.errors import BadPicture, StepError, StriateError
from library.imaging import codec
from library.imaging.picture import Pixels
from library.pipeline import Pipeline
from library.pipeline.annotations import Annotations, Followed
from library.pipeline.augmentation import Augmenter

# Copies that are held before they are written: many copies of a picture, or large ones, are written in parts.
_BATCH_ROWS, _BATCH_BYTES = 64, 12 * 2**20

_KEY_OF_A_COPY = re.compile(r".+#([1-9]\d{0,8})", re.DOTALL)


@dataclass(frozen=True)
class AugmentJob:
    """Writes random copies of the pictures of a dataset; each is determined by seed, number of the copy and key.

    The tally counts copies: each picture read adds `copies` to `rows_in` (one more with `keep_original`), and each of
    them is written or rejected. A picture that cannot be decoded becomes as many rejects, of which only the first holds
    its bytes.

    Attributes:
        source: URI of the dataset to read.
        pipeline: canonical text.
        copies: copies of each picture.
        seed: seed of all randomness.
        keep_original: also write each picture under its own key, bytes untouched.
        encode: how changed pictures are stored.
        plugins: digests by name of those that the pipeline uses.
        annotations: the columns of masks and boxes that follow the pictures.
    """

    source: str
    pipeline: str
    copies: int
    seed: int
    keep_original: bool = False
    encode: str = "keep"
    plugins: Mapping[str, str] = field(default_factory=dict[str, str])
    annotations: Annotations = field(default_factory=Annotations)

    def work_digest(self, task: ShardTask) -> str:
        own = [self.pipeline, self.copies, self.seed, self.keep_original, self.encode]
        own += [self.plugins] if self.plugins else []
        own += [self.annotations.recorded()] if self.annotations else []
        return digest_of(["augment", *own, task.max_rows, VERSIONS])

    def run(self, task: ShardTask, progress: Progress) -> ShardReport:
        augmenter = Augmenter(Pipeline.parse(self.pipeline), self.seed)
        reader = ShardReader(storage.join(self.source, task.stem + SUFFIX), task.max_rows, rows=task.rows)
        with ShardOutput(task, reader.schema()) as output:
            for table in (group.combine_chunks() for group in reader):
                copies = _Copies(table, output, progress, self.annotations)
                for row in range(table.num_rows):
                    try:
                        self._add_copies(_Original.of(table, row, self.annotations), augmenter, copies)
                    except StriateError as error:
                        raise StriateError(f"shard {reader.uri}: {error}") from error
                copies.write()
            output.add_seconds({"read": reader.waited_s})
        return output.commit(self.work_digest(task))

    def _add_copies(self, original: _Original, augmenter: Augmenter, copies: _Copies) -> None:
        """Adds all copies of one picture."""
        numbers = range(0 if self.keep_original else 1, self.copies + 1)
        if self.keep_original:
            self._check_key(original.key)
        copies.count_read(original)
        try:
            start = perf_counter()
            if original.data is None:
                raise BadPicture("empty", "the image column holds no bytes")
            pixels = codec.decode(original.data)
            copies.add_seconds("decode", start)
        except BadPicture as bad:
            for number in numbers:
                copies.reject(original, number, bad)
            return
        for number in numbers:
            try:
                followed = Followed(self.annotations, original.values, (pixels.shape[0], pixels.shape[1]))
                data, header = self._variant(original, pixels, followed, augmenter, number, copies)
                moved = followed.columns() if followed.moved else None
            except BadPicture as bad:
                copies.reject(original, number, bad)
            else:
                dropped_boxes = followed.moved and followed.boxes_dropped > 0
                data = original.data if data is None else data
                copies.keep(_Copy(original, number, data, header, moved), dropped_boxes=dropped_boxes)

    def _variant(
        self,
        original: _Original,
        pixels: Pixels,
        followed: Followed,
        augmenter: Augmenter,
        number: int,
        copies: _Copies,
    ) -> tuple[bytes | None, codec.Header]:
        """Returns an encoded copy with its header; None for the bytes where the copy equals the original."""
        if number == 0:
            return None, original.header
        start = perf_counter()
        if self.annotations:
            variant = augmenter.apply_with(pixels, number, original.key, followed)
        else:
            variant = augmenter.apply(pixels, number, original.key)
        copies.add_seconds("augment", start)
        if variant is pixels:
            return None, original.header
        start = perf_counter()
        encoding = codec.Encoding.parse(self.encode)
        try:
            data, name = codec.encode(variant, encoding, original.header.format)
        except BadPicture:
            raise
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            raise StepError(f"encoding picture '{original.key}#{number}' as {encoding} failed: {problem}") from error
        copies.add_seconds("encode", start)
        height, width, channels = variant.shape
        return data, codec.Header(name, width, height, channels)

    def _check_key(self, key: str) -> None:
        match = _KEY_OF_A_COPY.fullmatch(key)
        if match is not None and int(match[1]) <= self.copies:
            raise StriateError(
                f"picture '{key}' has the key of a copy; with the originals kept, two pictures could get that key; "
                "run without --keep-original"
            )


@dataclass(frozen=True)
class _Original:
    """A picture to be copied, and its row in the table."""

    row: int
    key: str
    data: bytes | None
    path: str | None
    header: codec.Header
    values: Mapping[str, Any]  # of its masks and boxes

    @classmethod
    def of(cls, table: pa.Table, row: int, annotations: Annotations) -> _Original:
        image = table["image"][row].as_py() or {}
        names = ("format", "width", "height", "channels")
        header = codec.Header(*(table[name][row].as_py() for name in names))
        values = {name: table[name][row].as_py() for name in annotations.names}
        return cls(row, table["key"][row].as_py(), image.get("bytes"), image.get("path"), header, values)

    def key_of(self, number: int) -> str:
        return f"{self.key}#{number}" if number else self.key

    def path_of(self, number: int, name: str) -> str | None:
        """Returns the file name of a copy that is stored in format `name`."""
        if self.path is None or number == 0:
            return self.path
        stem, extension = posixpath.splitext(self.path)
        return f"{stem}#{number}{extension if name == self.header.format else f'.{name}'}"


@dataclass(frozen=True)
class _Copy:
    """One copy of a picture; `moved` holds its masks and boxes where they differ from the original's."""

    original: _Original
    number: int
    data: bytes | None
    header: codec.Header
    moved: Mapping[str, Any] | None = None


class _Copies:
    """Collects the copies of the pictures of one table, and writes them to the shard in parts."""

    def __init__(self, table: pa.Table, output: ShardOutput, progress: Progress, annotations: Annotations) -> None:
        self._table, self._output, self._progress, self._annotations = table, output, progress, annotations
        self._seconds: dict[str, float] = {}
        self._bytes_in = 0
        self._last_rejected: int | None = None
        self._clear()

    def _clear(self) -> None:
        self._kept: list[_Copy] = []
        self._noted: Counter[str] = Counter()
        self._rejects: list[tuple[_Original, int, bytes | None, BadPicture]] = []
        self._bytes = 0

    def add_seconds(self, stage: str, start: float) -> None:
        """Adds the time since `start` to a stage."""
        self._seconds[stage] = self._seconds.get(stage, 0.0) + perf_counter() - start

    def count_read(self, original: _Original) -> None:
        self._bytes_in += len(original.data or b"")

    def keep(self, copy: _Copy, *, dropped_boxes: bool) -> None:
        self._kept.append(copy)
        self._noted.update(["boxes_dropped"] * dropped_boxes)
        self._write_when_full(len(copy.data or b""))

    def reject(self, original: _Original, number: int, bad: BadPicture) -> None:
        """Rejects a copy; only the first reject of a picture holds its bytes."""
        data = original.data if self._last_rejected != original.row else None
        self._last_rejected = original.row
        self._rejects.append((original, number, data, bad))
        self._write_when_full(len(data or b""))

    def _write_when_full(self, num_bytes: int) -> None:
        self._bytes += num_bytes
        if len(self._kept) + len(self._rejects) >= _BATCH_ROWS or self._bytes >= _BATCH_BYTES:
            self.write()

    def write(self) -> None:
        """Writes the copies that are held."""
        rows = self._rows(self._kept)
        rejects = self._rows(
            [_Copy(original, number, data, original.header) for original, number, data, _ in self._rejects]
        )
        for name in REJECT_COLUMNS:
            values = [getattr(bad, name) for *_, bad in self._rejects]
            rejects = rejects.append_column(name, pa.array(values, pa.string()))
        tally = Tally(
            rows_in=rows.num_rows + rejects.num_rows,
            image_bytes_in=self._bytes_in,
            rejected=dict(Counter(bad.reason for *_, bad in self._rejects)),
            noted=dict(self._noted),
        )
        self._output.add_seconds(self._seconds)
        self._seconds, self._bytes_in = {}, 0
        self._clear()
        self._progress(self._output.add(rows, rejects, tally))

    def _rows(self, copies: Sequence[_Copy]) -> pa.Table:
        """Returns copies as rows of the table's schema; label and other columns are those of the original."""
        table = self._table.drop_columns(["image"]).take(pa.array([copy.original.row for copy in copies], pa.int64()))
        paths = [copy.original.path_of(copy.number, copy.header.format) for copy in copies]
        columns: dict[str, Any] = {
            "key": pa.array([copy.original.key_of(copy.number) for copy in copies], pa.string()),
            "image": image_array([copy.data for copy in copies], paths),
        }
        for name in ("width", "height", "channels", "format"):
            columns[name] = pa.array([getattr(copy.header, name) for copy in copies], table.schema.field(name).type)
        if any(copy.moved is not None for copy in copies):
            for name in self._annotations.names:
                values = [(copy.original.values if copy.moved is None else copy.moved)[name] for copy in copies]
                columns[name] = pa.array(values, table.schema.field(name).type)
        arrays = [columns[name] if name in columns else table[name] for name in self._table.column_names]
        return pa.Table.from_arrays(arrays, schema=self._table.schema)
