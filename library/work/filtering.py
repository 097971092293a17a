"""What one worker does with one shard of `striate ingest` and of `striate filter`, from reading it to its report."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from library import storage
from library.dataset import histograms
from library.dataset.manifest import VERSIONS, ShardReport, Tally, digest_of
from library.dataset.record import REJECT_COLUMNS, ImageRecord, dataset_schema, table_of
from library.dataset.shards import ROW_GROUP_BYTES, SUFFIX, ShardReader, batches
from library.dataset.task import Progress, ShardOutput, ShardTask, image_bytes
from library.errors import BadPicture, StriateError
from library.imaging import codec
from library.pipeline import Pipeline
from library.pipeline.batch import run_batch
from library.sources import Listing, Options, Read, read_pictures
from library.sources.index import extras_of

_compute: Any = pyarrow.compute  # its functions are made at import, where no type checker sees them

#: Pictures that are worked on before their results are written.
_BATCH_ROWS = 64


@dataclass(frozen=True)
class FilterJob:
    """Shards of `source` through a pipeline.

    Attributes:
        source: URI of the dataset to read.
        pipeline: canonical text; empty for a plain copy.
        encode: how changed pictures are stored.
        measure: decode and measure every picture that is kept.
    """

    source: str
    pipeline: str
    encode: str = "keep"
    measure: bool = False

    def work_digest(self, task: ShardTask) -> str:
        return digest_of(
            ["filter", self.pipeline, self.encode, task.max_rows, VERSIONS, self.measure and histograms.VERSION]
        )

    def run(self, task: ShardTask, progress: Progress) -> ShardReport:
        steps = Pipeline.parse(self.pipeline).steps if self.pipeline else ()
        encoding = codec.Encoding.parse(self.encode)
        reader = ShardReader(storage.join(self.source, task.stem + SUFFIX), task.max_rows)
        with ShardOutput(task, reader.schema(), measure=self.measure) as output:
            for table in batches(reader, _BATCH_ROWS):
                try:
                    result = run_batch(steps, table, encoding)
                except StriateError as error:
                    raise StriateError(f"shard {reader.uri}: {error}") from error
                output.spent(result.seconds)
                tally = Tally(
                    rows_in=table.num_rows,
                    image_bytes_in=image_bytes(table),
                    dropped=dict(result.dropped),
                    rejected=dict(result.rejected),
                )
                if output.histograms is not None:
                    start = perf_counter()
                    stored = _compute.struct_field(result.table["image"], "bytes")
                    output.histograms.add_pictures(data.as_py() or b"" for data in stored)
                    output.spent({"measure": perf_counter() - start})
                progress(output.add(result.table, result.rejects, tally))
            output.spent({"read": reader.waited})
        return output.commit(self.work_digest(task))


@dataclass(frozen=True)
class IngestJob:
    """Pictures of a source, read and checked, into shards.

    Attributes:
        reader: which reader gives the pictures (`Listing.kind`).
        columns: the columns that pass through.
        hints: what the reader needs to find its way, by URI.
        options: as given to `list_source`.
        verify: decode every picture, not only its header.
        limits: a picture past them is rejected.
        measure: measure every picture that is kept; with `verify` only.
        repair: cut stray bytes out of files whose pixels are whole (`codec.repair`); with `verify` only.
    """

    reader: str
    columns: pa.Schema
    hints: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    options: Options = field(default_factory=Options)
    verify: bool = False
    limits: codec.Limits = codec.DEFAULT_LIMITS
    measure: bool = False
    repair: bool = False

    @classmethod
    def of(
        cls, listing: Listing, options: Options, *, verify: bool, measure: bool = False, repair: bool = False
    ) -> IngestJob:
        verify = verify or measure or repair
        return cls(listing.kind, listing.columns, listing.hints, options, verify, measure=measure, repair=repair)

    def work_digest(self, task: ShardTask) -> str:
        known = ["ingest", self.reader, self.verify, self.columns.to_string(), VERSIONS]
        return digest_of([*known, self.measure and histograms.VERSION, self.repair])

    def run(self, task: ShardTask, progress: Progress) -> ShardReport:
        with pa.ipc.open_stream(task.index) as stream:
            rows = stream.read_all()
        schema = dataset_schema(list(self.columns))
        with ShardOutput(task, schema, measure=self.measure) as output:
            done, start = 0, perf_counter()
            for pictures in _row_groups(read_pictures(self.reader, rows, self.hints, self.options), rows.num_rows):
                output.spent({"read": perf_counter() - start})
                progress(self._store(rows.slice(done, len(pictures)), pictures, schema, output))
                done, start = done + len(pictures), perf_counter()
            if done < rows.num_rows:
                raise StriateError(f"the {self.reader} reader did not give every picture, which is a defect")
        return output.commit(self.work_digest(task))

    def _store(self, rows: pa.Table, pictures: list[Read], schema: pa.Schema, output: ShardOutput) -> Tally:
        """Check some pictures, and write them or put them aside."""
        start = perf_counter()
        kept: list[ImageRecord] = []
        rejects: list[tuple[ImageRecord, BadPicture]] = []
        noted: Counter[str] = Counter()
        listed = rows.select(["key", "label"]).to_pylist()
        extras = extras_of(rows).to_pylist()
        for row, picture, known in zip(listed, pictures, extras, strict=True):
            record = ImageRecord(
                row["key"], picture.data, storage.name_of(row["key"]), row["label"], extras={**known, **picture.extras}
            )
            try:
                checked, header = self._checked(record, picture.problem, output)
            except BadPicture as bad:
                rejects.append((record, bad))
                continue
            kept.append(checked)
            noted.update(more_pages=int(header.has_more_pages), repaired=int(checked.data is not record.data))
        output.spent({"check": perf_counter() - start})
        tally = Tally(
            rows_in=rows.num_rows,
            image_bytes_in=sum(len(picture.data or b"") for picture in pictures),
            rejected=dict(Counter(bad.reason for _, bad in rejects)),
            noted=dict(+noted),
        )
        return output.add(table_of(kept, schema), _reject_table(rejects, schema), tally)

    def _checked(
        self, record: ImageRecord, problem: BadPicture | None, output: ShardOutput
    ) -> tuple[ImageRecord, codec.Header]:
        """The record with its header, and the header; raises BadPicture."""
        if problem is not None:
            raise problem
        data = record.data or b""
        try:
            header = codec.probe(data, self.limits)
            if self.verify:
                data, pixels = self._decoded(data, header)
                if output.histograms is not None:
                    output.histograms.add(histograms.measures(pixels))
        except StriateError:
            raise
        except Exception as error:
            raise StriateError(f"picture '{record.key}': {type(error).__name__}: {error}") from error
        return dataclasses.replace(record, header=header, data=data), header

    def _decoded(self, data: bytes, header: codec.Header) -> tuple[bytes, NDArray[Any]]:
        """The bytes to be stored, and their pixels."""
        try:
            return data, codec.decode(data, header=header)
        except BadPicture:
            repaired = codec.repair(data) if self.repair else None
            if repaired is None:
                raise
            return repaired, codec.decode(repaired, self.limits)


def _row_groups(reads: Iterable[Read], num_rows: int) -> Iterator[list[Read]]:
    """Pictures that fill a row group each, in the order of their rows, as soon as they are there.

    A reader gives them in the order that is cheapest for it."""
    held: dict[int, Read] = {}
    group: list[Read] = []
    size = done = 0
    for read in reads:
        held[read.row] = read
        while done in held:
            group.append(held.pop(done))
            size += len(group[-1].data or b"")
            done += 1
            if size >= ROW_GROUP_BYTES or done == num_rows:
                yield group
                group, size = [], 0


def _reject_table(rejects: Sequence[tuple[ImageRecord, BadPicture]], schema: pa.Schema) -> pa.Table:
    table = table_of([record for record, _ in rejects], schema)
    for name in REJECT_COLUMNS:
        table = table.append_column(name, pa.array([getattr(bad, name) for _, bad in rejects], pa.string()))
    return table
