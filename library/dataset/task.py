"""The work on one shard: the task that describes it, the job that does it, and the output that commits it.

A `ShardJob` holds what all shards share and travels to each worker once; a `ShardTask` is plain data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute

from library.dataset import histograms
from library.dataset.manifest import REJECTS, Report, ShardReport, Tally, save_report
from library.dataset.record import reject_schema
from library.dataset.shards import SUFFIX, ShardWriter
from library.errors import StriateError

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them

#: The report that a job writes for each shard.
ReportT_co = TypeVar("ReportT_co", bound=Report, covariant=True)

#: Called after each batch with the counts of that batch.
Progress = Callable[[Tally], None]


@dataclass(frozen=True)
class ShardTask:
    """One shard to be written.

    Attributes:
        dataset: URI of the dataset that it belongs to.
        stem: its name there, without `.parquet`.
        input_digest: digest of the input; together with the job's `work_digest` it decides the output.
        rows: pictures in the input.
        max_rows: read only the first `max_rows` pictures; None for all.
        index: what else the work on this shard needs: for ingest, the rows of the source's listing, as an Arrow stream.
    """

    dataset: str
    stem: str
    input_digest: str
    rows: int
    max_rows: int | None = None
    index: bytes = b""

    @property
    def pictures(self) -> int:
        """How many pictures are read."""
        return self.rows if self.max_rows is None else min(self.rows, self.max_rows)


class ShardJob(Protocol[ReportT_co]):
    """The work that all shards of a job share."""

    def work_digest(self, task: ShardTask) -> str:
        """Digest of everything that decides the output apart from the input."""
        ...

    def run(self, task: ShardTask, progress: Progress) -> ReportT_co:
        """Process the shard and commit the result; raises StriateError that names the shard."""
        ...


class ShardOutput:
    """Writes a shard and its rejects, and counts what goes into its report.

    No file appears under its final name before the block ends without an error; `commit` writes the report.

    Args:
        task: the shard.
        schema: columns of the shard.
        reject_columns: columns of the rejects, without the reason; those of `schema` where it is None.
        measure: collect `histograms` of the kept pictures.
    """

    def __init__(
        self, task: ShardTask, schema: pa.Schema, reject_columns: pa.Schema | None = None, *, measure: bool = False
    ) -> None:
        self._task = task
        self.histograms = histograms.Histograms() if measure else None
        self._schema = schema
        self._reject_columns = schema if reject_columns is None else reject_columns
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
        self.add_seconds({"write": perf_counter() - start})

    def add_seconds(self, seconds: Mapping[str, float]) -> None:
        """Adds to the seconds spent in each stage."""
        self._seconds.update(seconds)  # pyright: ignore[reportArgumentType] -- a Counter sums floats as well

    def add(self, rows: pa.Table, rejects: pa.Table, tally: Tally) -> Tally:
        """Writes rows to the shard and its rejects; returns `tally` completed with the counts of `rows`."""
        start = perf_counter()
        self._writer.add(rows)
        if rejects.num_rows:
            if self._rejects is None:
                name = f"{REJECTS}/{self._task.stem}{SUFFIX}"
                schema = reject_schema(self._reject_columns)
                self._rejects = self._files.enter_context(ShardWriter(self._task.dataset, name, schema))
            self._rejects.add(rejects)
        complete = tally.model_copy(update=row_counts(rows))
        self._tallies.append(complete)
        self.add_seconds({"write": perf_counter() - start})
        return complete

    def commit(self, work_digest: str) -> ShardReport:
        """Writes the report, which marks the shard as done.

        Raises:
            StriateError: pictures were lost or counted twice.
        """
        tally = Tally.total(self._tallies)
        if not tally.balanced:
            raise StriateError(f"{self._task.stem}: pictures were lost or counted twice, which is a bug: {tally}")
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


def row_counts(rows: pa.Table) -> dict[str, Any]:
    """Returns the fields of a `Tally` that count the pictures of a shard: rows_out, image_bytes_out, classes, ..."""
    sides = np.maximum(rows["width"].to_numpy(), rows["height"].to_numpy()) if rows.num_rows else np.zeros(0)
    rounded = 2 ** np.ceil(np.log2(np.maximum(sides, 1))).astype(np.int64)
    return {
        "rows_out": rows.num_rows,
        "image_bytes_out": image_bytes(rows),
        "classes": _counts(rows["label"]),
        "formats": _counts(rows["format"]),
        "channels": _counts(rows["channels"]),
        "sides": _counts(pa.chunked_array([rounded])),
    }


def _counts(column: pa.ChunkedArray[Any]) -> dict[str, int]:
    return {
        str(item["values"]): item["counts"]
        for item in _compute.value_counts(column).to_pylist()
        if item["values"] is not None
    }


def image_bytes(table: pa.Table) -> int:
    """Returns the size of all encoded pictures of a table, in bytes."""
    sizes = _compute.binary_length(_compute.struct_field(table["image"], "bytes"))
    return int(_compute.sum(sizes).as_py() or 0)
