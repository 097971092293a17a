"""Copies chosen pictures of a shard, bytes untouched. No Ray here: jobs/ maps it over shards.

Which pictures stay was decided before, from tables of keys. The decisions of a shard are a small Parquet file below the
destination, so that they don't travel with the job and can be read afterwards.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pydantic

from library import storage
from library.dataset.manifest import DECISIONS, VERSIONS, ShardReport, Tally, digest_of
from library.dataset.record import reject_schema
from library.dataset.shards import SUFFIX, ShardReader
from library.dataset.task import Progress, ShardOutput, ShardTask, image_bytes
from library.errors import StriateError

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them

#: A decision for each picture: its key, and why it is dropped; null where it is kept.
DECISION_SCHEMA = pa.schema([pa.field("key", pa.string()), pa.field("reason", pa.string())])


class SelectReport(ShardReport):
    """The reports of one shard in every dataset that a job writes.

    Attributes:
        others: the reports of the datasets but the task's own, by URI.
    """

    others: dict[str, ShardReport] = pydantic.Field(default_factory=dict[str, ShardReport])


@dataclass(frozen=True)
class SelectJob:
    """Copies pictures of a dataset to one or more others, reading each shard once.

    Each of them gets the pictures that its own decisions keep, and counts the rest as dropped. A task writes its shard
    to all of them, whichever its `dataset` is.

    Attributes:
        source: URI of the dataset to read.
        decisions: digest of the decisions of each shard, by URI of the dataset that is written and by stem.
    """

    source: str
    decisions: Mapping[str, Mapping[str, str]]

    def work_digest(self, task: ShardTask) -> str:
        return digest_of(["select", self.decisions[task.dataset][task.stem], VERSIONS])

    def run(self, task: ShardTask, progress: Progress) -> SelectReport:
        reader = ShardReader(storage.join(self.source, task.stem + SUFFIX))
        schema, row = reader.schema(), 0
        with ExitStack() as files:
            copies = [
                _Copy(one, self.decisions[dataset][one.stem], files.enter_context(ShardOutput(one, schema)))
                for dataset in self.decisions
                for one in [replace(task, dataset=dataset)]
            ]
            for table in reader:
                tallies = [copy.add(table, row, reader.uri) for copy in copies]
                # Of several datasets, a picture is dropped only if none takes it.
                progress(tallies[0] if len(copies) == 1 else Tally(rows_in=table.num_rows, rows_out=table.num_rows))
                row += table.num_rows
            for copy in copies:
                copy.check_rows(row, reader.uri)
            copies[0].output.add_seconds({"read": reader.waited_s})
        reports = {copy.task.dataset: copy.output.commit(self.work_digest(copy.task)) for copy in copies}
        own = reports.pop(task.dataset)
        return SelectReport(**own.model_dump(), others=reports)


class _Copy:
    """The shard of one dataset that is written.

    Args:
        task: its task.
        digest: of its decisions.
        output: where its pictures go.
    """

    def __init__(self, task: ShardTask, digest: str, output: ShardOutput) -> None:
        self.task, self.output = task, output
        self._decisions = read_decisions(decisions_uri(task), digest)

    def add(self, table: pa.Table, row: int, shard: str) -> Tally:
        """Writes the chosen pictures of a table that begins at a row of the shard; returns its counts."""
        decided = self._decisions.slice(row, table.num_rows)
        if not table["key"].equals(decided["key"]):
            raise StriateError(
                f"shard {shard}: its keys are not those for which the decisions in {decisions_uri(self.task)} were "
                "made; the source was changed meanwhile. Run the same command again"
            )
        kept = table.filter(_compute.is_null(decided["reason"]))
        dropped = Counter(reason for reason in decided["reason"].to_pylist() if reason is not None)
        tally = Tally(rows_in=table.num_rows, image_bytes_in=image_bytes(table), dropped=dict(dropped))
        return self.output.add(kept, reject_schema(table.schema).empty_table(), tally)

    def check_rows(self, rows: int, shard: str) -> None:
        """Refuses decisions for more pictures than the shard holds."""
        if rows != self._decisions.num_rows:
            raise StriateError(
                f"shard {shard} holds {rows:,} pictures, but there are {self._decisions.num_rows:,} decisions; the "
                "source was changed meanwhile. Run the same command again"
            )


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
