"""What one worker does with one shard, from reading it to its report. No Ray here: jobs/ maps these over shards.

A job object holds what all shards share and travels to each worker once; a `ShardTask` is plain data.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from library import storage
from library.dataset import histograms
from library.dataset.manifest import REJECTS, Report, ShardReport, Tally, digest_of, save_report
from library.dataset.record import REJECT_COLUMNS, ImageRecord, dataset_schema, reject_schema, table_of
from library.dataset.shards import ROW_GROUP_BYTES, SUFFIX, ShardReader, ShardWriter, batches
from library.errors import BadPicture, StriateError
from library.imaging import codec
from library.pipeline import Pipeline
from library.pipeline.batch import run_batch
from library.sources import Listing, Options, Read, read_pictures
from library.sources.index import extras_of
from library.versions import VERSIONS

_compute: Any = pyarrow.compute  # its functions are made at import, where no type checker sees them

#: Pictures that are worked on before their results are written.
_BATCH_ROWS = 64

#: What a job reports of each shard.
ReportT_co = TypeVar("ReportT_co", bound=Report, covariant=True)

#: Called once a batch with the counts of what was done since the last call.
Progress = Callable[[Tally], None]


@dataclass(frozen=True)
class ShardTask:
    """One shard to be made.

    Attributes:
        dataset: URI of the dataset it belongs to.
        stem: its name there, without `.parquet`.
        input_digest: of what it is made from; together with the job's `work_digest` it decides the output.
        rows: pictures to be read.
        max_rows: stop after so many (for a try-out); None for all.
        index: for ingest, the rows of the source's listing, as an Arrow stream.
    """

    dataset: str
    stem: str
    input_digest: str
    rows: int
    max_rows: int | None = None
    index: bytes = b""

    @property
    def pictures(self) -> int:
        """How many are read."""
        return self.rows if self.max_rows is None else min(self.rows, self.max_rows)


class ShardJob(Protocol[ReportT_co]):
    """The work that all shards of a job share."""

    def work_digest(self, task: ShardTask) -> str:
        """Of all that decides the output apart from the input."""
        ...

    def run(self, task: ShardTask, progress: Progress) -> ReportT_co:
        """Work on the shard and commit the result; raises StriateError naming the shard."""
        ...


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


class ShardOutput:
    """A shard and its rejects being written, and the counts that go into its report.

    Nothing appears under its name before the block ends well; the report is written by `commit`.

    Args:
        task: the shard.
        schema: of what is kept.
        rejected: columns of the rejects, less the reason; those of `schema` where it is None.
    """

    def __init__(
        self, task: ShardTask, schema: pa.Schema, rejected: pa.Schema | None = None, *, measure: bool = False
    ) -> None:
        self._task = task
        self.histograms = histograms.Histograms() if measure else None
        self._schema = schema
        self._rejected = schema if rejected is None else rejected
        self._rejects: ShardWriter | None = None
        self._files = ExitStack()
        self._tallies: list[Tally] = []
        self._seconds: Counter[str] = Counter()

    def __enter__(self) -> ShardOutput:
        self._writer = self._files.enter_context(
            ShardWriter(self._task.dataset, self._task.stem + SUFFIX, self._schema)
        )
        return self

    def __exit__(self, *raised: Any) -> None:
        start = perf_counter()
        self._files.__exit__(*raised)
        self.spent({"write": perf_counter() - start})

    def spent(self, seconds: Mapping[str, float]) -> None:
        """Add to the time by stage."""
        self._seconds.update(seconds)  # pyright: ignore[reportArgumentType] -- a Counter sums floats as well

    def add(self, kept: pa.Table, rejects: pa.Table, tally: Tally) -> Tally:
        """Write what was kept; returns `tally` completed with the counts of `kept`."""
        start = perf_counter()
        self._writer.add(kept)
        if rejects.num_rows:
            if self._rejects is None:
                name = f"{REJECTS}/{self._task.stem}{SUFFIX}"
                schema = reject_schema(self._rejected)
                self._rejects = self._files.enter_context(ShardWriter(self._task.dataset, name, schema))
            self._rejects.add(rejects)
        done = tally.model_copy(update=_kept_counts(kept))
        self._tallies.append(done)
        self.spent({"write": perf_counter() - start})
        return done

    def commit(self, work_digest: str) -> ShardReport:
        """Write the report; from then on the shard counts as done.

        Raises:
            StriateError: if the pictures do not add up.
        """
        tally = Tally.total(self._tallies)
        if not tally.balanced:
            raise StriateError(f"{self._task.stem}: pictures were lost or doubled, which is a defect: {tally}")
        report = ShardReport(
            stem=self._task.stem,
            input_digest=self._task.input_digest,
            work_digest=work_digest,
            output=self._writer.entry,
            rejects=None if self._rejects is None else self._rejects.entry,
            tally=tally,
            histograms=None if self.histograms is None else self.histograms.to_dict(),
            seconds={stage: round(seconds, 4) for stage, seconds in self._seconds.items()},
        )
        save_report(self._task.dataset, report)
        return report


def _kept_counts(kept: pa.Table) -> dict[str, Any]:
    sides = np.maximum(kept["width"].to_numpy(), kept["height"].to_numpy()) if kept.num_rows else np.zeros(0)
    rounded = 2 ** np.ceil(np.log2(np.maximum(sides, 1))).astype(np.int64)
    return {
        "rows_out": kept.num_rows,
        "image_bytes_out": image_bytes(kept),
        "classes": _counts(kept["label"]),
        "formats": _counts(kept["format"]),
        "channels": _counts(kept["channels"]),
        "sides": _counts(pa.chunked_array([rounded])),
    }


def _counts(column: pa.ChunkedArray[Any]) -> dict[str, int]:
    return {
        str(item["values"]): item["counts"]
        for item in _compute.value_counts(column).to_pylist()
        if item["values"] is not None
    }


def image_bytes(table: pa.Table) -> int:
    """Encoded bytes of all pictures of a table."""
    sizes = _compute.binary_length(_compute.struct_field(table["image"], "bytes"))
    return int(_compute.sum(sizes).as_py() or 0)
