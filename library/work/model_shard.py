"""What one worker does with one shard of `striate measure --model`. No Ray here: jobs/ maps it over shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa

from library import storage
from library.choosing.measures.measuring import REASON
from library.choosing.measures.picture_models import OpenModel, PictureModel, open_model
from library.choosing.measures.side_table import Origin, recorded_dataset
from library.dataset.manifest import VERSIONS, ShardReport, Tally, digest_of
from library.dataset.shards import SUFFIX, ShardReader, ShardWriter, batches
from library.dataset.task import Progress, ShardTask, image_bytes
from library.errors import NOT_FINITE, BadPicture, StriateError
from library.pipeline.inputs import Prepared

_BATCH_ROWS = 32


@dataclass(frozen=True)
class ModelJob:
    """Writes what a model says about a shard's pictures to a side table of its own.

    A task's `dataset` is the one that is measured. As in `MeasureJob`, the file's own metadata is the report.

    Attributes:
        folder: URI of the side table of the model.
        model: what computes the columns.
    """

    folder: str
    model: PictureModel

    @property
    def made_by(self) -> str:
        """What decides the columns besides the shard."""
        runtime = "onnxruntime" if self.model.kind == "onnx" else "torch"
        return digest_of([self.model.digest, version(runtime), VERSIONS])

    def work_digest(self, task: ShardTask) -> str:
        return digest_of(["model", self.made_by])

    def run(self, task: ShardTask, progress: Progress) -> ShardReport:
        start = perf_counter()
        model = self._open
        seconds = Counter[str](load=perf_counter() - start)  # pyright: ignore[reportArgumentType] -- sums floats as well
        name = task.stem + SUFFIX
        dataset = recorded_dataset(task.dataset, self.folder)
        metadata = Origin(task.input_digest, task.rows, {"model": self.made_by}, dataset).metadata()
        first = [pa.field("key", pa.string()), pa.field(REASON, pa.string())]
        schema = pa.schema([*first, *model.columns], metadata=metadata)
        reader, tallies = ShardReader(storage.join(task.dataset, name), rows=task.rows), list[Tally]()
        with ShardWriter(self.folder, name, schema) as writer:
            for rows in batches(reader, _BATCH_ROWS):
                try:
                    table, rejected = self._embed(model, rows, schema, seconds)
                except StriateError as error:
                    raise StriateError(f"shard {reader.uri}: {error}") from error
                writer.add(table)
                tally = Tally(
                    rows_in=rows.num_rows,
                    rows_out=rows.num_rows - sum(rejected.values()),
                    rejected=dict(rejected),
                    image_bytes_in=image_bytes(rows),
                )
                tallies.append(tally)
                progress(tally)
        seconds["read"] = reader.waited_s  # pyright: ignore[reportArgumentType]
        return ShardReport(
            stem=task.stem,
            input_digest=task.input_digest,
            work_digest=self.work_digest(task),
            output=writer.entry,
            tally=Tally.total(tallies),
            seconds={stage: round(float(spent), 4) for stage, spent in seconds.items()},
        )

    @cached_property
    def _open(self) -> OpenModel:
        return open_model(self.model)

    def _embed(
        self, model: OpenModel, rows: pa.Table, schema: pa.Schema, seconds: Counter[str]
    ) -> tuple[pa.Table, Counter[str]]:
        start = perf_counter()
        reasons: list[str | None] = []
        usable: list[Prepared] = []
        places: list[int] = []
        for place, row in enumerate(rows.to_pylist()):
            columns = {name: value for name, value in row.items() if name != "image"}
            try:
                usable.append(model.prepare((row["image"] or {}).get("bytes") or b"", **columns))
                places.append(place)
                reasons.append(None)
            except BadPicture as bad:
                reasons.append(bad.reason)
        prepared = perf_counter()
        outputs = model.compute(usable) if usable else {}
        for index, place in enumerate(places):
            if any(not np.isfinite(values[index]).all() for values in outputs.values() if values.dtype != object):
                reasons[place] = NOT_FINITE
        seconds.update({"prepare": prepared - start, "infer": perf_counter() - prepared})  # pyright: ignore[reportArgumentType]
        at = {place: index for index, place in enumerate(places) if reasons[place] is None}
        arrays: dict[str, Any] = {"key": rows["key"], REASON: pa.array(reasons, pa.string())}
        for column in model.columns:
            values = outputs.get(column.name, ())
            arrays[column.name] = pa.array(_placed(values, at, rows.num_rows), column.type)
        table = pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema)
        return table, Counter(reason for reason in reasons if reason is not None)


def _placed(values: Sequence[Any] | np.ndarray[Any, Any], at: dict[int, int], rows: int) -> list[Any]:
    """Returns values in the order of the rows, None where a row has none."""
    result: list[Any] = [None] * rows
    for place, index in at.items():
        value = values[index]
        result[place] = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    return result
