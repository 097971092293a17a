"""What one worker does with one shard of `striate predict`. No Ray here: jobs/ maps it over shards.

PyTorch is imported when the first shard is worked on: neither planning nor a worker of another job waits for it.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from library import storage
from library.dataset.manifest import VERSIONS, ShardReport, Tally, digest_of
from library.dataset.shards import SUFFIX, ShardReader, batches
from library.dataset.task import Progress, ShardOutput, ShardTask, image_bytes
from library.errors import NOT_FINITE, NOT_FINITE_WHY, BadPicture, StriateError
from library.pipeline.batch import reject_table
from library.steps.selectors import TOP_CLASSES, TOP_PROBABILITIES
from library.work.prefetch import BATCH, Ahead, seen_by, why_dropped

if TYPE_CHECKING:
    from library.bundle.bundle import Bundle, Prepared
    from library.runtimes import Runtime

_PREDICTED, _SCORE, _FEATURES = "predicted", "score", "features"
_COLUMNS = (
    pa.field(_PREDICTED, pa.string()),
    pa.field(_SCORE, pa.float32()),
    pa.field(TOP_CLASSES, pa.list_(pa.string())),
    pa.field(TOP_PROBABILITIES, pa.list_(pa.float32())),
    pa.field(_FEATURES, pa.list_(pa.float32())),
)
#: Key of the schema's metadata: JSON with the id of the bundle whose predictions a shard holds, and their columns.
PREDICTED_BY = b"striate.predicted_by"


@dataclass(frozen=True)
class PredictJob:
    """What a classifier says of every picture of a dataset, in columns beside it.

    A shard's batches are its own pictures in their order, and nothing is chosen by the clock: two attempts on one type
    of machine, with as many threads, write the same bytes. On another processor probabilities differ by up to 1e-5.

    Pictures keep their bytes and all their other columns. One that the classifier's own selectors drop is dropped with
    their reason, one that cannot be used is rejected; labels are not looked at.

    Attributes:
        source: URI of the dataset to read.
        bundle: URI of the classifier.
        bundle_id: the classifier that was planned with.
        top_k: how many classes are kept of each answer; all where there are fewer.
        features: whether the vector that the classifier's head sees is kept too.
        runtime: how probabilities are computed; of `library.runtimes.NAMES`, but never auto, which measures. None is
            ONNX Runtime on a CPU, where it is faster a picture than PyTorch is in batches; and eager on a GPU, or where
            features are kept.
        device: cpu or cuda.
        threads: pictures decoded at once; on a CPU PyTorch takes as many for itself.
    """

    source: str
    bundle: str
    bundle_id: str
    top_k: int = 5
    features: bool = False
    runtime: str | None = None
    device: str = "cpu"
    threads: int = 1

    @property
    def chosen_runtime(self) -> str:
        """The runtime, by name."""
        return self.runtime or ("onnx" if self.device == "cpu" and not self.features else "eager")

    def work_digest(self, task: ShardTask) -> str:
        runtime = self.chosen_runtime
        computed_by = [version("torch"), *([version("onnxruntime")] if runtime == "onnx" else [])]
        own = [self.bundle_id, self.top_k, self.features, runtime, self.device, computed_by]
        return digest_of(["predict", *own, task.max_rows, VERSIONS])

    def run(self, task: ShardTask, progress: Progress) -> ShardReport:
        start = perf_counter()
        model = self._model
        loaded = perf_counter() - start
        reader = ShardReader(storage.join(self.source, task.stem + SUFFIX), task.max_rows)
        before = reader.schema()
        after = predicted_schema(before, self.bundle_id, features=self.features)
        ahead, tables = Ahead(self.threads), deque[pa.Table]()

        def rows() -> Iterator[Sequence[Mapping[str, Any]]]:
            for table in batches(reader, BATCH):
                tables.append(table)
                yield table.to_pylist()

        with ShardOutput(task, after, before) as output:
            output.spent({"load": loaded})
            try:
                for seen in ahead(rows(), self._prepare):
                    start = perf_counter()
                    kept, rejects, tally = self._judged(model, tables.popleft(), seen, after)
                    output.spent({"infer": perf_counter() - start})
                    progress(output.add(kept, rejects, tally))
            except StriateError as error:
                raise StriateError(f"shard {reader.uri}: {error}") from error
            output.spent({"read": reader.waited, "prepare": ahead.waited})
        return output.commit(self.work_digest(task))

    @cached_property
    def _model(self) -> tuple[Bundle, Runtime]:
        import torch

        from library.bundle.bundle import Bundle
        from library.runtimes import open_runtime

        torch.set_num_threads(self.threads)
        bundle = Bundle.load(self.bundle, self.device, self.bundle_id)
        return bundle, open_runtime(bundle, self.chosen_runtime, threads=self.threads, measure=False)

    def _prepare(self, row: Mapping[str, Any]) -> Prepared | BadPicture:
        columns = {name: value for name, value in row.items() if name != "image"}
        return seen_by(self._model[0], (row["image"] or {}).get("bytes") or b"", columns)

    def _judged(
        self, model: tuple[Bundle, Runtime], table: pa.Table, seen: Sequence[Any], schema: pa.Schema
    ) -> tuple[pa.Table, pa.Table, Tally]:
        """What is kept of a few pictures, with its new columns; what is put aside; and the counts."""
        dropped, rejects = Counter[str](), list[tuple[int, str, str]]()
        usable: list[int] = []
        for row, picture in enumerate(seen):
            if not isinstance(picture, BadPicture):
                usable.append(row)
            elif (reason := why_dropped(picture)) is not None:
                dropped[reason] += 1
            else:
                rejects.append((row, picture.reason, picture.detail))
        probabilities, features = self._asked(model, [seen[row] for row in usable])
        finite = np.isfinite(probabilities).all(axis=1)
        sound, unsound = (np.flatnonzero(chosen).tolist() for chosen in (finite, ~finite))
        rejects += [(usable[place], NOT_FINITE, NOT_FINITE_WHY) for place in unsound]
        answered = table.take(pa.array([usable[place] for place in sound], pa.int64()))
        ranked = [answer.classes for answer in model[0].ranked(probabilities[sound], self.top_k)]
        kept = _with_answers(answered, ranked, None if features is None else features[sound], schema)
        tally = Tally(
            rows_in=table.num_rows,
            image_bytes_in=image_bytes(table),
            dropped=dict(dropped),
            rejected=dict(Counter(reason for _, reason, _ in rejects)),
        )
        return kept, reject_table(table, sorted(rejects)), tally

    def _asked(
        self, model: tuple[Bundle, Runtime], pictures: Sequence[Prepared]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Probabilities, and the features where they are wanted."""
        bundle, runtime = model
        if not pictures:
            return np.zeros((0, len(bundle.classes)), np.float32), None
        if not self.features:
            return runtime.probabilities(pictures), None
        features, probabilities = bundle.features(pictures)
        return probabilities, features


def predicted_schema(source: pa.Schema, bundle_id: str, *, features: bool) -> pa.Schema:
    """The columns of a dataset with predictions: those of its source, less the predictions of an earlier bundle.

    Raises:
        StriateError: when the source has columns of these names that are not ours.
    """
    earlier = _names_of_ours(source)
    others = [column for column in source if column.name not in earlier]
    new = [column for column in _COLUMNS if features or column.name != _FEATURES]
    taken = {column.name for column in others} & {column.name for column in new}
    if taken:
        raise StriateError(
            f"the dataset has a column '{min(taken)}' that `striate predict` did not write and would have to replace; "
            "rename it in the source, and ingest that again"
        )
    mark = {"bundle_id": bundle_id, "columns": [column.name for column in new]}
    return pa.schema([*others, *new], metadata={**(source.metadata or {}), PREDICTED_BY: json.dumps(mark)})


def _names_of_ours(schema: pa.Schema) -> frozenset[str]:
    """The columns of predictions that we have written."""
    mark = (schema.metadata or {}).get(PREDICTED_BY)
    return frozenset(json.loads(mark)["columns"] if mark else ())


def _with_answers(
    table: pa.Table,
    ranked: Sequence[Sequence[tuple[str, float]]],
    features: NDArray[np.float32] | None,
    schema: pa.Schema,
) -> pa.Table:
    answers: dict[str, Any] = {
        _PREDICTED: [classes[0][0] for classes in ranked],
        _SCORE: [classes[0][1] for classes in ranked],
        TOP_CLASSES: [[name for name, _ in classes] for classes in ranked],
        TOP_PROBABILITIES: [[share for _, share in classes] for classes in ranked],
        _FEATURES: [] if features is None else list(features),
    }
    new = _names_of_ours(schema)
    arrays = [
        pa.array(answers[column.name], column.type) if column.name in new else table[column.name] for column in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
