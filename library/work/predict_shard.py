"""What one worker does with one shard of `striate predict`. No Ray here: jobs/ maps it over shards.

A worker that runs an exported graph imports no PyTorch; another imports it when its first shard is processed.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from library import storage
from library.bundle.description import load_planned
from library.dataset.manifest import VERSIONS, ShardReport, Tally, digest_of
from library.dataset.shards import SUFFIX, ShardReader, batches
from library.dataset.task import Progress, ShardOutput, ShardTask, image_bytes
from library.errors import NOT_FINITE, NOT_FINITE_WHY, BadPicture, StriateError
from library.pipeline.batch import reject_table
from library.pipeline.inputs import Prepared
from library.runtimes.without_torch import GraphClassifier, exported_graph
from library.steps.selectors import TOP_CLASSES, TOP_PROBABILITIES
from library.work.classifying import BATCH, Classifier, Prefetcher, drop_reason, prepare_or_reject

_PREDICTED, _SCORE, _FEATURES, _LABELS = "predicted", "score", "features", "predicted_labels"
#: The probability from which on a class counts as predicted, where a picture may have any number of classes.
THRESHOLD = 0.5
_COLUMNS = (
    pa.field(_PREDICTED, pa.string()),
    pa.field(_SCORE, pa.float32()),
    pa.field(TOP_CLASSES, pa.list_(pa.string())),
    pa.field(TOP_PROBABILITIES, pa.list_(pa.float32())),
    pa.field(_LABELS, pa.list_(pa.string())),
    pa.field(_FEATURES, pa.list_(pa.float32())),
)
#: Key of the schema's metadata: JSON with the id of the bundle whose predictions a shard holds, and their columns.
PREDICTED_BY = b"striate.predicted_by"


@dataclass(frozen=True)
class PredictJob:
    """Adds columns with a classifier's prediction to every picture of a dataset.

    A shard's batches hold its own pictures in order, and nothing depends on timing: two attempts on the same type of
    machine with the same number of threads write the same bytes. On another processor probabilities differ by up to
    1e-5.

    Pictures keep their bytes and all their other columns. A picture that the classifier's own selectors drop is dropped
    with their reason, and one that cannot be used is rejected; labels are ignored.

    Attributes:
        source: URI of the dataset to read.
        bundle: URI of the classifier.
        bundle_id: id of the classifier that the job was planned with.
        top_k: how many of the most probable classes are kept; all where there are fewer.
        features: also keep the vector that the classifier's head sees.
        runtime: one of `library.runtimes.NAMES`. None is onnx on a CPU, where it
            takes less time per picture than PyTorch in batches, and eager on a GPU or where features are kept.
        device: cpu or cuda.
        threads: pictures decoded at the same time; on a CPU the runtime uses as many threads.
        threshold: where a picture may have any number of classes, the probability from which on one is among
            `predicted_labels`; None for a classifier that gives one class.
        graph: returns the classifier's exported graph, which one process makes for all; None for this process to get it
            itself. Only a single network in ONNX Runtime has one.
    """

    source: str
    bundle: str
    bundle_id: str
    top_k: int = 5
    features: bool = False
    runtime: str | None = None
    device: str = "cpu"
    threads: int = 1
    threshold: float | None = None
    graph: Callable[[], bytes] | None = field(default=None, repr=False, compare=False)

    @property
    def chosen_runtime(self) -> str:
        """Name of the runtime."""
        return self.runtime or ("onnx" if self.device == "cpu" and not self.features else "eager")

    def work_digest(self, task: ShardTask) -> str:
        runtime = self.chosen_runtime
        computed_by = [version("torch"), *([version("onnxruntime")] if runtime == "onnx" else [])]
        own = [self.bundle_id, self.top_k, self.features, runtime, self.device, computed_by]
        own += [] if self.threshold is None else [self.threshold]
        return digest_of(["predict", *own, task.max_rows, VERSIONS])

    def run(self, task: ShardTask, progress: Progress) -> ShardReport:
        start = perf_counter()
        model = self._model
        load_s = perf_counter() - start
        reader = ShardReader(storage.join(self.source, task.stem + SUFFIX), task.max_rows, rows=task.rows)
        before = reader.schema()
        several = self.threshold is not None
        after = predicted_schema(before, self.bundle_id, features=self.features, several_labels=several)
        prefetcher, tables = Prefetcher(self.threads), deque[pa.Table]()

        def rows() -> Iterator[Sequence[Mapping[str, Any]]]:
            for table in batches(reader, BATCH):
                tables.append(table)
                yield table.to_pylist()

        with ShardOutput(task, after, before) as output:
            output.add_seconds({"load": load_s})
            try:
                for prepared in prefetcher(rows(), self._prepare):
                    start = perf_counter()
                    stored, rejects, tally = self._predict(model, tables.popleft(), prepared, after)
                    output.add_seconds({"infer": perf_counter() - start})
                    progress(output.add(stored, rejects, tally))
            except StriateError as error:
                raise StriateError(f"shard {reader.uri}: {error}") from error
            output.add_seconds({"read": reader.waited_s, "prepare": prefetcher.waited_s})
        return output.commit(self.work_digest(task))

    @cached_property
    def _model(self) -> _Model:
        record = load_planned(self.bundle, self.bundle_id)
        if self.chosen_runtime == "onnx" and not record.members:
            graph = exported_graph(self.bundle, self.bundle_id) if self.graph is None else self.graph()
            classifier = GraphClassifier(self.bundle, record, graph, threads=self.threads)
            return _Model(classifier, classifier.probabilities)
        import torch

        from library.bundle.bundle import Bundle
        from library.runtimes.runtime import open_runtime

        torch.set_num_threads(self.threads)
        bundle = Bundle.load(self.bundle, self.device, self.bundle_id)
        runtime = open_runtime(bundle, self.chosen_runtime, threads=self.threads, measure=False)
        return _Model(bundle, runtime.probabilities)

    def _prepare(self, row: Mapping[str, Any]) -> Prepared | BadPicture:
        columns = {name: value for name, value in row.items() if name != "image"}
        return prepare_or_reject(self._model.classifier, (row["image"] or {}).get("bytes") or b"", columns)

    def _predict(
        self, model: _Model, table: pa.Table, pictures: Sequence[Prepared | BadPicture], schema: pa.Schema
    ) -> tuple[pa.Table, pa.Table, Tally]:
        """Returns the rows of `table` to be stored with their new columns, its rejects, and the counts."""
        dropped, rejects = Counter[str](), list[tuple[int, str, str]]()
        rows: list[int] = []
        usable: list[Prepared] = []
        for row, picture in enumerate(pictures):
            if not isinstance(picture, BadPicture):
                rows.append(row)
                usable.append(picture)
            elif (reason := drop_reason(picture)) is not None:
                dropped[reason] += 1
            else:
                rejects.append((row, picture.reason, picture.detail))
        probabilities, features = self._probabilities(model, usable)
        is_finite = np.isfinite(probabilities).all(axis=1)
        finite, not_finite = (np.flatnonzero(mask).tolist() for mask in (is_finite, ~is_finite))
        rejects += [(rows[index], NOT_FINITE, NOT_FINITE_WHY) for index in not_finite]
        predicted = table.take(pa.array([rows[index] for index in finite], pa.int64()))
        ranked = [prediction.classes for prediction in model.classifier.ranked(probabilities[finite], self.top_k)]
        labels: list[list[str]] = []
        if self.threshold is not None:
            every = model.classifier.ranked(probabilities[finite], len(model.classifier.classes))
            labels = [[name for name, share in one.classes if share >= self.threshold] for one in every]
        stored = _with_predictions(predicted, ranked, labels, None if features is None else features[finite], schema)
        tally = Tally(
            rows_in=table.num_rows,
            image_bytes_in=image_bytes(table),
            dropped=dict(dropped),
            rejected=dict(Counter(reason for _, reason, _ in rejects)),
        )
        return stored, reject_table(table, sorted(rejects)), tally

    def _probabilities(
        self, model: _Model, pictures: Sequence[Prepared]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Returns N x classes probabilities, and N x width features where they are kept."""
        if not pictures:
            return np.zeros((0, len(model.classifier.classes)), np.float32), None
        if not self.features:
            return model.probabilities(pictures), None
        features, probabilities = model.classifier.features(pictures)
        return probabilities, features


@dataclass(frozen=True)
class _Model:
    """A loaded classifier, and its probabilities as the runtime computes them."""

    classifier: Classifier
    probabilities: Callable[[Sequence[Prepared]], NDArray[np.float32]]


def predicted_schema(source: pa.Schema, bundle_id: str, *, features: bool, several_labels: bool = False) -> pa.Schema:
    """Returns the columns of a dataset with predictions: those of its source, without an earlier bundle's predictions.

    Raises:
        StriateError: the source has a column of the same name that `striate predict` did not write.
    """
    earlier = _prediction_columns(source)
    others = [column for column in source if column.name not in earlier]
    is_written = {_FEATURES: features, _LABELS: several_labels}
    new = [column for column in _COLUMNS if is_written.get(column.name, True)]
    conflicts = {column.name for column in others} & {column.name for column in new}
    if conflicts:
        raise StriateError(
            f"the dataset has a column '{min(conflicts)}' that `striate predict` did not write and would replace; "
            "rename the column in the source and ingest the source again"
        )
    mark = {"bundle_id": bundle_id, "columns": [column.name for column in new]}
    return pa.schema([*others, *new], metadata={**(source.metadata or {}), PREDICTED_BY: json.dumps(mark)})


def _prediction_columns(schema: pa.Schema) -> frozenset[str]:
    """Returns the names of the columns that an earlier `striate predict` wrote."""
    mark = (schema.metadata or {}).get(PREDICTED_BY)
    return frozenset(json.loads(mark)["columns"] if mark else ())


def _with_predictions(
    table: pa.Table,
    ranked: Sequence[Sequence[tuple[str, float]]],
    labels: Sequence[Sequence[str]],
    features: NDArray[np.float32] | None,
    schema: pa.Schema,
) -> pa.Table:
    predictions: dict[str, Any] = {
        _PREDICTED: [classes[0][0] for classes in ranked],
        _SCORE: [classes[0][1] for classes in ranked],
        TOP_CLASSES: [[name for name, _ in classes] for classes in ranked],
        TOP_PROBABILITIES: [[share for _, share in classes] for classes in ranked],
        _LABELS: labels,
        _FEATURES: [] if features is None else list(features),
    }
    new = _prediction_columns(schema)
    arrays = [
        pa.array(predictions[column.name], column.type) if column.name in new else table[column.name]
        for column in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
