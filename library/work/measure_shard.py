"""What one worker does with one shard of `striate measure`. No Ray here: jobs/ maps it over shards."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import pyarrow as pa
import pyarrow.compute

from library import storage
from library.choosing.measures.measuring import MEASURES, REASON, measure_rows
from library.choosing.measures.side_table import Origin, read_part, recorded_dataset, schema_of
from library.dataset.manifest import ShardReport, Tally, digest_of
from library.dataset.shards import SUFFIX, ShardReader, ShardWriter, batches
from library.dataset.task import Progress, ShardTask, image_bytes

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them

#: Pictures that are measured before their results are written.
_BATCH_ROWS = 64


@dataclass(frozen=True)
class MeasureJob:
    """Adds measures of a shard's pictures to its file of the side table.

    A task's `dataset` is the one that is measured. The file appears complete under its name, so it needs no report:
    what it holds is in its own metadata. Columns that it has already and that are up to date are kept as they are.

    Attributes:
        folder: URI of the side table.
        columns: names of measures, in the order of `MEASURES`.
    """

    folder: str
    columns: tuple[str, ...]

    def work_digest(self, task: ShardTask) -> str:
        return digest_of(["measure", {name: MEASURES[name].made_by for name in self.columns}])

    def run(self, task: ShardTask, progress: Progress) -> ShardReport:
        seconds: dict[str, float] = {}
        name = task.stem + SUFFIX
        earlier = read_part(self.folder, name, task.input_digest, task.rows, list(MEASURES))
        have = () if earlier is None else tuple(column for column in earlier.column_names if column in MEASURES)
        names = tuple(column for column in MEASURES if column in self.columns or column in have)
        todo = tuple(column for column in names if column not in have)
        made_by = {column: MEASURES[column].made_by for column in names}
        origin = Origin(task.input_digest, task.rows, made_by, recorded_dataset(task.dataset, self.folder))
        schema = schema_of(names, origin)
        reader = ShardReader(storage.join(task.dataset, name), rows=task.rows)
        tallies: list[Tally] = []
        with ShardWriter(self.folder, name, schema) as writer:
            first = 0
            for rows in batches(reader, _BATCH_ROWS):
                measured = measure_rows(rows, todo)
                start = perf_counter()
                kept = None if earlier is None else earlier.slice(first, rows.num_rows)
                writer.add(_joined(measured.table, kept, schema))
                first += rows.num_rows
                tally = Tally(
                    rows_in=rows.num_rows,
                    rows_out=rows.num_rows - sum(measured.rejected.values()),
                    rejected=dict(measured.rejected),
                    image_bytes_in=image_bytes(rows),
                )
                tallies.append(tally)
                progress(tally)
                for stage, spent in (*measured.seconds.items(), ("write", perf_counter() - start)):
                    seconds[stage] = seconds.get(stage, 0.0) + spent
        seconds["read"] = reader.waited_s
        return ShardReport(
            stem=task.stem,
            input_digest=task.input_digest,
            work_digest=self.work_digest(task),
            output=writer.entry,
            tally=Tally.total(tallies),
            seconds={stage: round(spent, 4) for stage, spent in seconds.items()},
        )


def _joined(measured: pa.Table, kept: pa.Table | None, schema: pa.Schema) -> pa.Table:
    """Returns new columns beside those that the file had already."""
    if kept is None:
        return pa.Table.from_arrays([measured[name] for name in schema.names], schema=schema)
    # A column that needs no pixels gives no reason, and an earlier reason holds only if it left a kept column empty: a
    # codec that was updated since may decode the picture.
    reason = measured[REASON]
    for name in set(kept.column_names) & set(MEASURES):
        if MEASURES[name].needs != "header":
            reason = _compute.if_else(_compute.is_null(kept[name]), _compute.coalesce(reason, kept[REASON]), reason)
    columns = {REASON: reason}
    arrays = [
        columns.get(name, measured[name] if name in measured.column_names else kept[name]) for name in schema.names
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
