"""Copies chosen pictures of a shard, bytes untouched. No Ray here: jobs/ maps it over shards.

Which pictures stay was decided before, from tables of keys. The decisions of a shard are a small Parquet file below the
destination, so that they don't travel with the job and can be read afterwards.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from library import storage
from library.dataset.manifest import DECISIONS, VERSIONS, ShardReport, Tally, digest_of
from library.dataset.record import reject_schema
from library.dataset.shards import SUFFIX, ShardReader
from library.dataset.task import Progress, ShardOutput, ShardTask, image_bytes
from library.errors import StriateError

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them

#: A decision for each picture: its key, and why it is dropped; null where it is kept.
DECISION_SCHEMA = pa.schema([pa.field("key", pa.string()), pa.field("reason", pa.string())])


@dataclass(frozen=True)
class SelectJob:
    """Copies the pictures of a dataset that its decisions keep, and counts the others as dropped.

    Attributes:
        source: URI of the dataset to read.
        decisions: digest of the decisions of each shard, by stem.
    """

    source: str
    decisions: Mapping[str, str]

    def work_digest(self, task: ShardTask) -> str:
        return digest_of(["select", self.decisions[task.stem], VERSIONS])

    def run(self, task: ShardTask, progress: Progress) -> ShardReport:
        reader = ShardReader(storage.join(self.source, task.stem + SUFFIX))
        decisions = read_decisions(decisions_uri(task), self.decisions[task.stem])
        schema, row = reader.schema(), 0
        no_rejects = reject_schema(schema).empty_table()
        with ShardOutput(task, schema) as output:
            for table in reader:
                decided = decisions.slice(row, table.num_rows)
                row += table.num_rows
                if not table["key"].equals(decided["key"]):
                    raise StriateError(
                        f"shard {reader.uri}: its keys are not those for which the decisions in {decisions_uri(task)} "
                        "were made; the source was changed meanwhile. Run the same command again"
                    )
                kept = table.filter(_compute.is_null(decided["reason"]))
                dropped = Counter(reason for reason in decided["reason"].to_pylist() if reason is not None)
                tally = Tally(rows_in=table.num_rows, image_bytes_in=image_bytes(table), dropped=dict(dropped))
                progress(output.add(kept, no_rejects, tally))
            output.add_seconds({"read": reader.waited_s})
        if row != decisions.num_rows:
            raise StriateError(
                f"shard {reader.uri} holds {row:,} pictures, but there are {decisions.num_rows:,} decisions; the "
                "source was changed meanwhile. Run the same command again"
            )
        return output.commit(self.work_digest(task))


def decisions_uri(task: ShardTask) -> str:
    """Returns the URI of the decisions of a shard, below the dataset that is written."""
    return storage.join(task.dataset, DECISIONS, task.stem + SUFFIX)


def decisions_file(decisions: pa.Table) -> tuple[bytes, str]:
    """Returns the decisions of one shard as a Parquet file, and their digest.

    Args:
        decisions: the columns of `DECISION_SCHEMA`, in the order of the shard.
    """
    sink = pa.BufferOutputStream()
    table = decisions.select(DECISION_SCHEMA.names).cast(DECISION_SCHEMA).combine_chunks()
    pq.write_table(table, sink, compression="zstd", use_dictionary=cast(Any, ["reason"]))
    data = sink.getvalue().to_pybytes()
    return data, hashlib.sha256(data).hexdigest()


def read_decisions(uri: str, digest: str) -> pa.Table:
    """Reads the decisions of a shard.

    Raises:
        StriateError: they are missing, or not those with this digest.
    """
    data = storage.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() != digest:
        raise StriateError(f"{uri} was changed while the job ran; run the same command again")
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
