"""What one worker does with one shard of `striate ingest`. No Ray here: jobs/ maps it over shards."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from library import storage
from library.dataset import histograms
from library.dataset.manifest import VERSIONS, ShardReport, Tally, digest_of
from library.dataset.record import REJECT_COLUMNS, ImageRecord, dataset_schema, table_of
from library.dataset.shards import ROW_GROUP_BYTES
from library.dataset.task import Progress, ShardOutput, ShardTask
from library.errors import BadPicture, StriateError
from library.imaging import codec
from library.sources import Listing, Options, Read, read_pictures
from library.sources.listing import extras_of


@dataclass(frozen=True)
class IngestJob:
    """Reads and checks the pictures of a source, and writes them to shards.

    Attributes:
        reader: name of the reader that delivers the pictures (`Listing.kind`).
        columns: the columns that pass through.
        gzip_indexes: index of each gzip stream by URI, which the reader needs.
        options: as passed to `list_source`.
        verify: decode every picture, not only its header.
        limits: a picture that exceeds them is rejected.
        measure: measure every picture that is kept; requires `verify`.
        repair: cut stray bytes out of files whose pixels are whole (`codec.repair`); requires `verify`.
    """

    reader: str
    columns: pa.Schema
    gzip_indexes: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
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
        return cls(listing.kind, listing.columns, listing.gzip_indexes, options, verify, measure=measure, repair=repair)

    def work_digest(self, task: ShardTask) -> str:
        parameters = ["ingest", self.reader, self.verify, self.columns.to_string(), VERSIONS]
        return digest_of([*parameters, self.measure and histograms.VERSION, self.repair])

    def run(self, task: ShardTask, progress: Progress) -> ShardReport:
        with pa.ipc.open_stream(task.index) as stream:
            rows = stream.read_all()
        schema = dataset_schema(list(self.columns))
        with ShardOutput(task, schema, measure=self.measure) as output:
            done, start = 0, perf_counter()
            for pictures in _row_groups(
                read_pictures(self.reader, rows, self.gzip_indexes, self.options), rows.num_rows
            ):
                output.add_seconds({"read": perf_counter() - start})
                progress(self._store(rows.slice(done, len(pictures)), pictures, schema, output))
                done, start = done + len(pictures), perf_counter()
            if done < rows.num_rows:
                raise StriateError(f"the {self.reader} reader did not deliver every picture; this is a bug")
        return output.commit(self.work_digest(task))

    def _store(self, rows: pa.Table, pictures: list[Read], schema: pa.Schema, output: ShardOutput) -> Tally:
        """Checks some pictures, and writes each to the shard or to its rejects."""
        start = perf_counter()
        records: list[ImageRecord] = []
        rejects: list[tuple[ImageRecord, BadPicture]] = []
        noted: Counter[str] = Counter()
        keys_and_labels = rows.select(["key", "label"]).to_pylist()
        extras = extras_of(rows).to_pylist()
        for row, picture, listed in zip(keys_and_labels, pictures, extras, strict=True):
            record = ImageRecord(
                row["key"], picture.data, storage.name_of(row["key"]), row["label"], extras={**listed, **picture.extras}
            )
            try:
                checked, header = self._checked(record, picture.problem, output)
            except BadPicture as bad:
                rejects.append((record, bad))
                continue
            records.append(checked)
            noted.update(more_pages=int(header.has_more_pages), repaired=int(checked.data is not record.data))
        output.add_seconds({"check": perf_counter() - start})
        tally = Tally(
            rows_in=rows.num_rows,
            image_bytes_in=sum(len(picture.data or b"") for picture in pictures),
            rejected=dict(Counter(bad.reason for _, bad in rejects)),
            noted=dict(+noted),
        )
        return output.add(table_of(records, schema), _reject_table(rejects, schema), tally)

    def _checked(
        self, record: ImageRecord, problem: BadPicture | None, output: ShardOutput
    ) -> tuple[ImageRecord, codec.Header]:
        """Returns the record with its header, and the header; raises BadPicture."""
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
        """Returns the bytes to be stored, and their pixels; raises BadPicture."""
        try:
            return data, codec.decode(data, header=header)
        except BadPicture:
            repaired = codec.repair(data) if self.repair else None
            if repaired is None:
                raise
            return repaired, codec.decode(repaired, self.limits)


def _row_groups(reads: Iterable[Read], num_rows: int) -> Iterator[list[Read]]:
    """Yields the pictures of one row group at a time, in the order of their rows, as soon as all of them are read.

    A reader delivers pictures in the order that is cheapest for it."""
    waiting: dict[int, Read] = {}
    group: list[Read] = []
    size = done = 0
    for read in reads:
        waiting[read.row] = read
        while done in waiting:
            group.append(waiting.pop(done))
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
