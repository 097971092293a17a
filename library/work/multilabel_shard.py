"""What one worker does with one shard of `striate evaluate` where a picture may have any number of classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.dataset.manifest import Tally
from library.dataset.shards import ShardReader, batches
from library.dataset.task import Progress
from library.errors import NOT_FINITE, BadPicture, StriateError
from library.evaluation.robustness import order_of
from library.evaluation.several_labels import label_mistakes
from library.evaluation.sums import Example, LabelScores
from library.imaging import codec
from library.imaging.contact_sheet import small_copy
from library.pipeline.inputs import Prepared
from library.work.classifying import BATCH, Classifier, Prefetcher, drop_reason, prepare_or_reject

#: Reason for dropping a picture whose list of names is null.
NO_LABELS = "no_label"


@dataclass
class LabelShard:
    """The outcomes of one shard.

    Attributes:
        scores: of its pictures.
        tally: `rows_out` counts the judged pictures.
        seconds: time waited for each stage (read, prepare, infer).
    """

    scores: LabelScores
    tally: Tally
    seconds: Counter[str]


@dataclass(frozen=True)
class _Row:
    key: str
    labels: Sequence[Any] | None
    data: bytes
    prepared: Prepared | BadPicture | None


class LabelScorer:
    """Judges the pictures of shards with a classifier that gives a picture any number of classes.

    Args:
        bundle: the classifier.
        column: with a list of names for each picture. Names that are not classes are counted and otherwise ignored; an
            empty list says that no class applies, and a picture whose list is null is dropped.
        threshold: least probability of a predicted class.
        threads: pictures decoded at the same time.
        examples: keep the surest mistakes as small pictures.
    """

    def __init__(
        self, bundle: Classifier, column: str, threshold: float, *, threads: int = 1, examples: bool = False
    ) -> None:
        self._bundle, self._column, self._threshold = bundle, column, threshold
        self._ids = {name: number for number, name in enumerate(bundle.classes)}
        self._threads, self._examples = threads, examples

    def score(self, uri: str, progress: Progress) -> LabelShard:
        """Judges the shard at a URI.

        Raises:
            StriateError: the shard cannot be read, or a step's own code failed; names the shard.
        """
        scores, seconds = LabelScores(), Counter[str]()
        reader, prefetcher = ShardReader(uri), Prefetcher(self._threads)
        mistaken: dict[str, bytes] = {}
        tallies: list[Tally] = []
        infer_s = 0.0
        try:
            for rows in prefetcher((table.to_pylist() for table in batches(reader, BATCH)), self._prepare):
                start = perf_counter()
                tallies.append(self._judge(rows, scores))
                infer_s += perf_counter() - start
                if self._examples:
                    candidates = mistaken | {row.key: row.data for row in rows}
                    mistaken = {mistake.key: candidates[mistake.key] for mistake in scores.mistakes}
                progress(tallies[-1])
        except StriateError as error:
            raise StriateError(f"shard {uri}: {error}") from error
        scores.examples = [Example(key, *small_copy(codec.decode(data))) for key, data in mistaken.items()]
        seconds.update({"read": reader.waited_s, "prepare": prefetcher.waited_s, "infer": infer_s})  # pyright: ignore[reportArgumentType, reportCallIssue] -- a Counter sums floats as well
        return LabelShard(scores, Tally.total(tallies), seconds)

    def _prepare(self, record: dict[str, Any]) -> _Row:
        columns = {name: value for name, value in record.items() if name != "image"}
        data, labels = record["image"]["bytes"] or b"", record[self._column]
        prepared = None if labels is None else prepare_or_reject(self._bundle, data, columns)
        return _Row(record["key"], labels, data, prepared)

    def _judge(self, rows: Sequence[_Row], scores: LabelScores) -> Tally:
        dropped, rejected, unknown = Counter[str](), Counter[str](), Counter[str]()
        judged: list[_Row] = []
        pictures: list[Prepared] = []
        for row in rows:
            if row.labels is None or row.prepared is None:
                dropped[NO_LABELS] += 1
            elif not isinstance(row.prepared, BadPicture):
                judged.append(row)
                pictures.append(row.prepared)
            elif (reason := drop_reason(row.prepared)) is not None:
                dropped[reason] += 1
            else:
                rejected[row.prepared.reason] += 1
        probabilities = np.zeros((0, len(self._ids)), np.float32)
        if pictures:
            probabilities = self._bundle.probabilities(pictures)
        # A float picture may hold NaN, and every comparison with NaN is false.
        finite = np.flatnonzero(np.isfinite(probabilities).all(1))
        if len(finite) < len(pictures):
            rejected[NOT_FINITE] += len(pictures) - len(finite)
        judged, probabilities = [judged[row] for row in finite.tolist()], probabilities[finite]
        truth = self._truth(judged, unknown)
        keys = [row.key for row in judged]
        scores.count(dropped, rejected, unknown)
        scores.add(
            np.array([order_of(key) for key in keys], np.uint64),
            truth,
            probabilities,
            label_mistakes(self._bundle.classes, keys, truth, probabilities, self._threshold),
        )
        return Tally(
            rows_in=len(rows),
            rows_out=len(judged),
            dropped=dict(dropped),
            rejected=dict(rejected),
            image_bytes_in=sum(len(row.data) for row in rows),
        )

    def _truth(self, rows: Sequence[_Row], unknown: Counter[str]) -> NDArray[np.bool_]:
        """Returns which classes each picture has (N x classes), and counts the names that are none."""
        truth = np.zeros((len(rows), len(self._ids)), np.bool_)
        for number, row in enumerate(rows):
            for name in {str(label) for label in row.labels or ()}:
                if name in self._ids:
                    truth[number, self._ids[name]] = True
                else:
                    unknown[name] += 1
        return truth
