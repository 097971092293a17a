"""What one worker does with one shard to judge a dataset: features of its pictures, or which of them selectors keep.

The result is a small table beside the dataset, a file a shard, with a report as for any shard: a killed job resumes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from library import storage
from library.choosing.labels.embedders import Embedder, LoadedEmbedder
from library.dataset.manifest import VERSIONS, ShardReport, Tally, digest_of, save_report
from library.dataset.shards import SUFFIX, ShardReader, ShardWriter, batches
from library.dataset.task import Progress, ShardTask, image_bytes
from library.errors import NOT_FINITE, BadPicture, StriateError
from library.pipeline import Pipeline
from library.pipeline.batch import run_batch
from library.pipeline.inputs import Prepared
from library.work.classifying import BATCH, Prefetcher, drop_reason
from library.work.filter_shard import measured_scores

KEY, LABEL, VECTOR = "key", "label", "vector"
_KEYS = pa.schema([(KEY, pa.string()), (LABEL, pa.string())])


@dataclass(frozen=True)
class EmbedJob:
    """Computes a vector of every picture of a dataset; a shard becomes a table of key, label and vector.

    Attributes:
        source: URI of the dataset.
        embedder: computes the vectors.
        device: cpu or cuda.
        threads: pictures that are decoded at the same time.
    """

    source: str
    embedder: Embedder
    device: str = "cpu"
    threads: int = 1

    def work_digest(self, task: ShardTask) -> str:
        return digest_of(["embed", list(self.embedder.identity), self.device, task.max_rows, VERSIONS])

    def run(self, task: ShardTask, progress: Progress) -> ShardReport:
        reader, prefetcher = (
            ShardReader(storage.join(self.source, task.stem + SUFFIX), task.max_rows, rows=task.rows),
            Prefetcher(self.threads),
        )
        start, tallies = perf_counter(), list[Tally]()
        keys: list[str] = []
        labels: list[str | None] = []
        vectors: list[NDArray[np.float32]] = []
        try:
            for rows in prefetcher((table.to_pylist() for table in batches(reader, BATCH)), self._prepare):
                kept, computed, tally = self._embed(rows)
                keys += [record[KEY] for record in kept]
                labels += [record[LABEL] for record in kept]
                vectors += [computed] if len(computed) else []
                tallies.append(tally)
                progress(tally)
        except StriateError as error:
            raise StriateError(f"shard {reader.uri}: {error}") from error
        whole = np.concatenate(vectors) if vectors else np.zeros((0, 1), np.float32)
        table = pa.table(
            {
                KEY: pa.array(keys, pa.string()),
                LABEL: pa.array(labels, pa.string()),
                VECTOR: pa.FixedSizeListArray.from_arrays(pa.array(whole.reshape(-1)), whole.shape[1]),
            }
        )
        with ShardWriter(task.dataset, task.stem + SUFFIX, table.schema) as writer:
            writer.add(table)
        return _commit(task, self.work_digest(task), writer, tallies, {"embed": perf_counter() - start})

    @cached_property
    def _loaded(self) -> LoadedEmbedder:
        return self.embedder.load(self.device)

    def _prepare(self, record: dict[str, Any]) -> tuple[dict[str, Any], Prepared | BadPicture]:
        columns = {name: value for name, value in record.items() if name != "image"}
        try:
            return record, self._loaded.prepare(record["image"]["bytes"] or b"", columns)
        except BadPicture as bad:
            return record, bad
        except StriateError:
            raise
        except Exception as error:
            raise StriateError(f"picture '{record[KEY]}': {type(error).__name__}: {error}") from error

    def _embed(
        self, rows: Sequence[tuple[dict[str, Any], Prepared | BadPicture]]
    ) -> tuple[list[dict[str, Any]], NDArray[np.float32], Tally]:
        dropped, rejected = Counter[str](), Counter[str]()
        records: list[dict[str, Any]] = []
        pictures: list[Prepared] = []
        for record, prepared in rows:
            if not isinstance(prepared, BadPicture):
                records.append(record)
                pictures.append(prepared)
            elif (reason := drop_reason(prepared)) is not None:
                dropped[reason] += 1
            else:
                rejected[prepared.reason] += 1
        vectors = self._loaded.embed(pictures) if pictures else np.zeros((0, 1), np.float32)
        finite = np.flatnonzero(np.isfinite(vectors).all(1))
        if len(finite) < len(pictures):  # a float picture may hold NaN
            rejected[NOT_FINITE] += len(pictures) - len(finite)
        tally = Tally(
            rows_in=len(rows),
            rows_out=len(finite),
            dropped=dict(dropped),
            rejected=dict(rejected),
            image_bytes_in=sum(len(record["image"]["bytes"] or b"") for record, _ in rows),
        )
        return [records[row] for row in finite.tolist()], vectors[finite], tally


@dataclass(frozen=True)
class SiftJob:
    """Finds which pictures selectors keep; a shard becomes a table of key and label of those pictures.

    Scores in the dataset's side table (`striate measure`) spare selectors the pixels, as in `striate filter`.

    Attributes:
        source: URI of the dataset.
        pipeline: canonical text of the selectors.
        plugins: digests by name of those that the pipeline uses.
    """

    source: str
    pipeline: str
    plugins: Mapping[str, str] = field(default_factory=dict[str, str])

    def work_digest(self, task: ShardTask) -> str:
        return digest_of(["sift", self.pipeline, self.plugins, task.max_rows, VERSIONS])

    def run(self, task: ShardTask, progress: Progress) -> ShardReport:
        reader = ShardReader(storage.join(self.source, task.stem + SUFFIX), task.max_rows, rows=task.rows)
        tallies: list[Tally] = []
        start = perf_counter()
        with ShardWriter(task.dataset, task.stem + SUFFIX, _KEYS) as writer:
            for table, tally in self._sift(reader, task):
                writer.add(table)
                tallies.append(tally)
                progress(tally)
        return _commit(task, self.work_digest(task), writer, tallies, {"select": perf_counter() - start})

    def _sift(self, reader: ShardReader, task: ShardTask) -> Iterator[tuple[pa.Table, Tally]]:
        steps = Pipeline.parse(self.pipeline).steps
        measured, first = measured_scores(self.source, steps, task), 0
        for table in batches(reader, BATCH):
            scores = None if measured is None else measured.slice(first, table.num_rows)
            first += table.num_rows
            try:
                result = run_batch(steps, table, measured=scores)
            except StriateError as error:
                raise StriateError(f"shard {reader.uri}: {error}") from error
            kept = result.table.select([KEY, LABEL]).cast(_KEYS)
            tally = Tally(
                rows_in=table.num_rows,
                rows_out=kept.num_rows,
                dropped=dict(result.dropped),
                rejected=dict(result.rejected),
                image_bytes_in=image_bytes(table),
            )
            yield kept, tally


def _commit(
    task: ShardTask, work_digest: str, writer: ShardWriter, tallies: Sequence[Tally], seconds: Mapping[str, float]
) -> ShardReport:
    total = Tally.total(tallies)
    # There is no file of rejects here, and a manifest that counts some names one.
    without = dict(sorted((Counter(total.dropped) + Counter(total.rejected)).items()))
    report = ShardReport(
        stem=task.stem,
        input_digest=task.input_digest,
        work_digest=work_digest,
        output=writer.entry,
        tally=total.model_copy(update={"dropped": without, "rejected": {}}),
        seconds={stage: round(spent, 4) for stage, spent in seconds.items()},
    )
    save_report(task.dataset, report)
    return report
