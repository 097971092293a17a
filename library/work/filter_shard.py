"""What one worker does with one shard of `striate filter`. No Ray here: jobs/ maps it over shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import pyarrow as pa
import pyarrow.compute

from library import storage
from library.choosing.measures.measuring import REASON
from library.choosing.measures.side_table import folder_of, read_part
from library.dataset import histograms
from library.dataset.manifest import VERSIONS, ShardReport, Tally, digest_of
from library.dataset.shards import SUFFIX, ShardReader, batches
from library.dataset.task import Progress, ShardOutput, ShardTask, image_bytes
from library.errors import StriateError
from library.imaging import codec
from library.pipeline import Pipeline
from library.pipeline.annotations import Annotations
from library.pipeline.batch import run_batch
from library.steps.base import Step

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them

#: Pictures that are filtered before their results are written.
_BATCH_ROWS = 64


@dataclass(frozen=True)
class FilterJob:
    """Runs the shards of a dataset through a pipeline.

    Scores in the dataset's side table (`striate measure`) spare selectors the pixels; the output is the same with and
    without it.

    Attributes:
        source: URI of the dataset to read.
        pipeline: canonical text; empty for a plain copy.
        encode: how changed pictures are stored.
        measure: decode and measure every picture that is kept.
        plugins: digests by name of those that the pipeline uses.
        annotations: the columns of masks and boxes that follow the pictures.
    """

    source: str
    pipeline: str
    encode: str = "keep"
    measure: bool = False
    plugins: Mapping[str, str] = field(default_factory=dict[str, str])
    annotations: Annotations = field(default_factory=Annotations)

    def work_digest(self, task: ShardTask) -> str:
        return digest_of(
            ["filter", self.pipeline, self.encode, task.max_rows, VERSIONS, self.measure and histograms.VERSION]
            + ([self.plugins] if self.plugins else [])
            + ([self.annotations.recorded()] if self.annotations else [])
        )

    def run(self, task: ShardTask, progress: Progress) -> ShardReport:
        steps = Pipeline.parse(self.pipeline).steps if self.pipeline else ()
        encoding = codec.Encoding.parse(self.encode)
        reader = ShardReader(storage.join(self.source, task.stem + SUFFIX), task.max_rows, rows=task.rows)
        measured, first = measured_scores(self.source, steps, task), 0
        with ShardOutput(task, reader.schema(), measure=self.measure) as output:
            for table in batches(reader, _BATCH_ROWS):
                scores = None if measured is None else measured.slice(first, table.num_rows)
                first += table.num_rows
                try:
                    result = run_batch(steps, table, encoding, annotations=self.annotations, measured=scores)
                except StriateError as error:
                    raise StriateError(f"shard {reader.uri}: {error}") from error
                output.add_seconds(result.seconds)
                tally = Tally(
                    rows_in=table.num_rows,
                    image_bytes_in=image_bytes(table),
                    dropped=dict(result.dropped),
                    rejected=dict(result.rejected),
                    noted=dict(result.noted),
                )
                if output.histograms is not None:
                    start = perf_counter()
                    stored = _compute.struct_field(result.table["image"], "bytes")
                    output.histograms.add_pictures(data.as_py() or b"" for data in stored)
                    output.add_seconds({"measure": perf_counter() - start})
                progress(output.add(result.table, result.rejects, tally))
            output.add_seconds({"read": reader.waited_s})
        return output.commit(self.work_digest(task))


def measured_scores(source: str, steps: Sequence[Step], task: ShardTask) -> pa.Table | None:
    """Returns the scores of a shard that steps can read instead of pixels, in the order of its rows.

    Args:
        source: URI of the dataset, whose side table is below it.
        steps: filters and selectors.
        task: of the shard.

    Returns:
        None where `striate measure` has stored none of them, or none is up to date.
    """
    names = sorted({name for step in steps for name in step.scores()})
    if not names:
        return None
    part = read_part(folder_of(source), task.stem + SUFFIX, task.input_digest, task.rows, names)
    return None if part is None else part.drop_columns(["key", REASON])
