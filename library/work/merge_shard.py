"""What one worker does with one shard of `striate merge`. No Ray here: jobs/ maps it over shards."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from library import storage
from library.dataset import histograms
from library.dataset.manifest import (
    VERSIONS,
    FileEntry,
    ShardReport,
    Tally,
    digest_of,
    load_report,
    report_uri,
    save_report,
)
from library.dataset.shards import SUFFIX, ShardReader
from library.dataset.task import Progress, ShardOutput, ShardTask, image_bytes, row_counts
from library.errors import StriateError
from library.exchange.merging import prefixed

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them

#: Reason for which a picture is dropped whose key an earlier dataset has.
KEY_CLASH = "key_clash"

_COPY_BYTES = 8 * 2**20


@dataclass(frozen=True)
class SourceShard:
    """The shard that a shard of a merge is made from; travels as the `index` of its task.

    Attributes:
        dataset: URI of its dataset.
        stem: its name there, without `.parquet`.
        digest: SHA-256 of its bytes.
        prefix: what is put before each key.
        dropped: the rows to leave out, as hex of packed bits; empty for none.
    """

    dataset: str
    stem: str
    digest: str
    prefix: str = ""
    dropped: str = ""

    @classmethod
    def of(cls, dataset: str, shard: FileEntry, prefix: str, dropped: NDArray[np.bool_]) -> SourceShard:
        """Returns the shard of a manifest's entry, without the rows for which `dropped` is true."""
        bits = np.packbits(dropped).tobytes().hex() if dropped.any() else ""
        return cls(dataset, shard.name.removesuffix(SUFFIX), shard.digest, prefix, bits)

    @classmethod
    def parse(cls, index: bytes) -> SourceShard:
        """Returns the shard of a task's `index`."""
        return cls(**json.loads(index))

    def to_bytes(self) -> bytes:
        """Returns what `parse` reads."""
        return json.dumps(asdict(self)).encode()

    @property
    def input_digest(self) -> str:
        """Digest of everything about this shard that decides the output; its place does not."""
        return digest_of([self.digest, self.prefix, self.dropped])

    @property
    def uri(self) -> str:
        """Where the shard is."""
        return storage.join(self.dataset, self.stem + SUFFIX)

    def keeps(self, rows: int) -> NDArray[np.bool_]:
        """Returns whether each of its rows is kept."""
        if not self.dropped:
            return np.ones(rows, bool)
        return ~np.unpackbits(np.frombuffer(bytes.fromhex(self.dropped), np.uint8), count=rows).astype(bool)


@dataclass(frozen=True)
class MergeJob:
    """Brings the shards of several datasets into one; no picture is decoded or changed.

    A shard that needs no change is copied byte for byte.

    Attributes:
        columns: the columns of the result; those that a dataset lacks are null there.
        measure: keep histograms of the pictures, as every dataset has them. Only shards that change are decoded.
    """

    columns: pa.Schema
    measure: bool = False

    def work_digest(self, task: ShardTask) -> str:
        columns = self.columns.to_string(show_field_metadata=False)
        return digest_of(["merge", columns, task.max_rows, VERSIONS, self.measure and histograms.VERSION])

    def run(self, task: ShardTask, progress: Progress) -> ShardReport:
        source = SourceShard.parse(task.index)
        reader = ShardReader(source.uri)
        schema = reader.schema()
        if not source.prefix and not source.dropped and schema.equals(self.columns, check_metadata=True):
            measured = _measured(source) if self.measure else None
            if measured is not None or not self.measure:
                return self._copy(task, source, reader, measured, progress)
        keeps, done = source.keeps(task.rows), 0
        with ShardOutput(task, self.columns, measure=self.measure) as output:
            for table in reader:
                kept = self._fitted(table.filter(pa.array(keeps[done : done + table.num_rows])), source)
                dropped = table.num_rows - kept.num_rows
                done += table.num_rows
                tally = Tally(
                    rows_in=table.num_rows,
                    image_bytes_in=image_bytes(table),
                    dropped={KEY_CLASH: dropped} if dropped else {},
                )
                if output.histograms is not None:
                    start = perf_counter()
                    stored = _compute.struct_field(kept["image"], "bytes")
                    output.histograms.add_pictures(data.as_py() or b"" for data in stored)
                    output.add_seconds({"measure": perf_counter() - start})
                progress(output.add(kept, kept.slice(0, 0), tally))
            output.add_seconds({"read": reader.waited_s})
            if done != task.rows:
                raise StriateError(f"{source.uri} holds {done:,} pictures, but its manifest {task.rows:,}; merge again")
        return output.commit(self.work_digest(task))

    def _fitted(self, table: pa.Table, source: SourceShard) -> pa.Table:
        """Returns rows with the columns of the result."""
        arrays: list[Any] = []
        for column in self.columns:
            if column.name not in table.schema.names:
                arrays.append(pa.nulls(table.num_rows, column.type))
                continue
            values = table[column.name]
            if column.name == "key":
                values = prefixed(values, source.prefix)
            arrays.append(values if values.type.equals(column.type) else values.cast(column.type))
        return pa.Table.from_arrays(arrays, schema=self.columns)

    def _copy(
        self,
        task: ShardTask,
        source: SourceShard,
        reader: ShardReader,
        measured: dict[str, Any] | None,
        progress: Progress,
    ) -> ShardReport:
        """Copies the bytes of a shard and counts its pictures."""
        start = perf_counter()
        tallies: list[Tally] = []
        for table in reader:
            image_sum = image_bytes(table)
            tally = Tally(rows_in=table.num_rows, image_bytes_in=image_sum, **row_counts(table))
            tallies.append(tally)
            progress(tally)
        counted_s = perf_counter() - start
        name = task.stem + SUFFIX
        with storage.open_read(source.uri) as file, storage.writer(storage.join(task.dataset, name)) as copy:
            while data := file.read(_COPY_BYTES):
                copy.write(data)
            if copy.digest != source.digest:  # before the copy gets its name
                raise StriateError(
                    f"{source.uri} is damaged or was changed: its bytes are not those that the manifest of its dataset "
                    "names; restore it, or create that dataset again"
                )
        total = Tally.total(tallies)
        report = ShardReport(
            stem=task.stem,
            input_digest=task.input_digest,
            work_digest=self.work_digest(task),
            output=FileEntry(name=name, rows=total.rows_out, bytes=copy.size, digest=copy.digest),
            tally=total,
            histograms=measured,
            seconds={"count": round(counted_s, 4), "copy": round(perf_counter() - start - counted_s, 4)},
        )
        save_report(task.dataset, report)
        return report


def _measured(source: SourceShard) -> dict[str, Any] | None:
    """Returns the histograms that the source's report has of this very shard; None where there are none."""
    [data] = storage.read_many([storage.Span(report_uri(source.dataset, source.stem))])
    report = load_report(data, ShardReport)
    return report.histograms if report is not None and report.output.digest == source.digest else None


def task_of(source: SourceShard, dataset: str, stem: str, rows: int) -> ShardTask:
    """Returns the task that writes a shard of `dataset` from a source's shard."""
    return ShardTask(dataset, stem, source.input_digest, rows, index=source.to_bytes())
