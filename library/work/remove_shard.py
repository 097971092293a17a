"""What one worker does with one shard of `striate remove`. No Ray here: jobs/ maps it over shards."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import pyarrow as pa
import pyarrow.compute

from library import storage
from library.dataset import histograms
from library.dataset.manifest import REJECTS, VERSIONS, FileEntry, ShardReport, Tally, digest_of
from library.dataset.record import reject_schema
from library.dataset.shards import SUFFIX, ShardReader
from library.dataset.task import Progress, ShardOutput, ShardTask, image_bytes
from library.exchange.removal import REMOVED

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them


@dataclass(frozen=True)
class RemoveJob:
    """Writes shards and their rejects again without some pictures; the bytes of the others are not touched.

    Attributes:
        source: URI of the dataset.
        measure: keep histograms of the pictures that stay.
    """

    source: str
    measure: bool = False

    def work_digest(self, task: ShardTask) -> str:
        return digest_of(["remove", VERSIONS, self.measure and histograms.VERSION])

    def run(self, task: ShardTask, progress: Progress) -> ShardReport:
        removal = json.loads(task.index)
        keys = pa.array(removal["keys"], pa.string())
        reader = ShardReader(storage.join(self.source, task.stem + SUFFIX))
        schema = reader.schema()
        nothing = reject_schema(schema).empty_table()
        with ShardOutput(task, schema, measure=self.measure) as output:
            for table in reader:
                kept = _without(table, keys)
                tally = Tally(
                    rows_in=table.num_rows,
                    image_bytes_in=image_bytes(table),
                    dropped=_counted(table.num_rows - kept.num_rows),
                )
                if output.histograms is not None:
                    start = perf_counter()
                    stored = _compute.struct_field(kept["image"], "bytes")
                    output.histograms.add_pictures(data.as_py() or b"" for data in stored)
                    output.add_seconds({"measure": perf_counter() - start})
                progress(output.add(kept, nothing, tally))
            if removal["rejects"]:
                for rejects in ShardReader(storage.join(self.source, REJECTS, task.stem + SUFFIX)):
                    kept = _without(rejects, keys)
                    tally = Tally(
                        rows_in=rejects.num_rows,
                        dropped=_counted(rejects.num_rows - kept.num_rows),
                        rejected=dict(Counter(kept["reason"].to_pylist())),
                    )
                    progress(output.add(schema.empty_table(), kept, tally))
            output.add_seconds({"read": reader.waited_s})
        return output.commit(self.work_digest(task))


def removal_task(dataset: str, shard: FileEntry, rejects: FileEntry | None, keys: list[str]) -> ShardTask:
    """Returns the task that writes a shard without some keys.

    Args:
        dataset: URI of the dataset that is written.
        shard: the shard.
        rejects: the rejects of the same shard, if there are any.
        keys: which of their keys to leave out.
    """
    index = {"keys": sorted(keys), "rejects": rejects is not None}
    digest = digest_of([shard.digest, rejects and rejects.digest, index])
    rows = shard.rows + (rejects.rows if rejects else 0)
    return ShardTask(dataset, shard.name.removesuffix(SUFFIX), digest, rows, index=json.dumps(index).encode())


def _without(table: pa.Table, keys: pa.Array[Any]) -> pa.Table:
    return table.filter(_compute.invert(_compute.is_in(table["key"].cast(pa.string()), keys)))


def _counted(removed: int) -> dict[str, int]:
    return {REMOVED: removed} if removed else {}
