"""What one worker does with one shard of `striate evaluate`. No Ray here: jobs/ maps it over shards.

PyTorch is imported when the first shard is processed: neither planning nor a worker of another job waits for it.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from library import storage
from library.dataset.manifest import VERSIONS, Tally, digest_of
from library.dataset.shards import SUFFIX, ShardReader, batches
from library.dataset.task import Progress, ShardTask
from library.errors import NOT_FINITE, BadPicture, StriateError
from library.evaluation.robustness import CORRUPTIONS, chosen, order_of
from library.evaluation.sums import EvaluateReport, Example, Outcomes, Pairs, Sums
from library.imaging import codec
from library.imaging.contact_sheet import small_copy
from library.pipeline.inputs import Prepared
from library.work.classifying import BATCH, Classifier, Prefetcher, drop_reason, prepare_or_reject
from library.work.multilabel_shard import NO_LABELS, LabelScorer, LabelShard

if TYPE_CHECKING:
    from library.bundle.bundle import Bundle

#: Reasons for dropping a picture because of its label.
UNKNOWN_LABEL = "unknown_label"


@dataclass(frozen=True)
class EvaluateJob:
    """Compares the predictions of one or two classifiers with the labels of a dataset, and sums up the outcomes.

    Every picture is processed as in `Bundle.predict`. A task's `dataset` is the one that is evaluated.

    Attributes:
        bundles: URIs of the classifiers.
        bundle_ids: ids of the classifiers that the job was planned with.
        robust_fraction: fraction of the pictures on which robustness is measured too.
        examples: keep the most confident mistakes as small pictures.
        device: cpu or cuda.
        threads: pictures decoded at the same time; on a CPU PyTorch uses as many threads.
        leaked: keys of the pictures that leaked from a training set, which are summed up separately, too; None where
            that is not asked.
        labels: where the only classifier gives a picture any number of classes: the column with their names.
        threshold: there, the least probability of a predicted class.
    """

    bundles: tuple[str, ...]
    bundle_ids: tuple[str, ...]
    robust_fraction: float = 0.0
    examples: bool = False
    device: str = "cpu"
    threads: int = 1
    leaked: frozenset[str] | None = None
    labels: str | None = None
    threshold: float | None = None

    def work_digest(self, task: ShardTask) -> str:
        own = [self.bundle_ids, self.robust_fraction, self.examples, self.device, version("torch")]
        if self.leaked is not None:
            own.append(self._leaked_digest)
        if self.labels is not None:
            own += [self.labels, self.threshold]
        return digest_of(["evaluate", *own, VERSIONS])

    @cached_property
    def _leaked_digest(self) -> str:
        return digest_of(sorted(self.leaked or ()))

    def run(self, task: ShardTask, progress: Progress) -> EvaluateReport:
        start = perf_counter()
        scorer = self._label_scorer if self.labels is not None else self._scorer
        load_s = perf_counter() - start
        scores = scorer.score(storage.join(task.dataset, task.stem + SUFFIX), progress)
        if isinstance(scores, LabelShard):
            results: dict[str, Any] = {"label_scores": scores.scores}
        else:
            results = {"sums": scores.sums, "pairs": scores.pairs, "leaked": scores.leaked}
        return EvaluateReport(
            stem=task.stem,
            input_digest=task.input_digest,
            work_digest=self.work_digest(task),
            tally=scores.tally,
            seconds={stage: round(seconds, 4) for stage, seconds in {"load": load_s, **scores.seconds}.items()},
            **results,
        )

    def _loaded(self) -> list[Bundle]:
        import torch

        from library.bundle.bundle import Bundle

        torch.set_num_threads(self.threads)
        uris_and_ids = zip(self.bundles, self.bundle_ids, strict=True)
        return [Bundle.load(uri, self.device, bundle_id) for uri, bundle_id in uris_and_ids]

    @cached_property
    def _label_scorer(self) -> LabelScorer:
        assert self.labels is not None
        assert self.threshold is not None
        (bundle,) = self._loaded()
        return LabelScorer(bundle, self.labels, self.threshold, threads=self.threads, examples=self.examples)

    @cached_property
    def _scorer(self) -> ShardScorer:
        return ShardScorer(
            self._loaded(),
            threads=self.threads,
            robust_fraction=self.robust_fraction,
            examples=self.examples,
            leaked=self.leaked,
        )


@dataclass
class ShardScores:
    """The outcomes of one shard.

    Attributes:
        sums: for each classifier.
        pairs: where there are two classifiers.
        tally: of the first classifier; `rows_out` counts the judged pictures.
        seconds: time waited for each stage (read, prepare, infer, robustness).
        leaked: for each classifier, of the leaked pictures alone; empty where none were named.
    """

    sums: list[Sums]
    pairs: Pairs | None
    tally: Tally
    seconds: Counter[str]
    leaked: list[Sums]


@dataclass(frozen=True)
class Judged:
    """One classifier's results for a batch: each picture is among the outcomes, dropped, or rejected.

    Attributes:
        outcomes: of the pictures that were judged.
        dropped: pictures by reason.
        rejected: pictures by reason.
        unknown: pictures by label that the classifier does not know; these are dropped.
    """

    outcomes: Outcomes
    dropped: Counter[str] = field(default_factory=Counter[str])
    rejected: Counter[str] = field(default_factory=Counter[str])
    unknown: Counter[str] = field(default_factory=Counter[str])


@dataclass(frozen=True)
class Row:
    """One picture, and for each classifier its prepared form, why it cannot be used, or None for an unknown label."""

    key: str
    label: str | None
    columns: dict[str, Any]
    data: bytes
    prepared: Sequence[Prepared | BadPicture | None]


class ShardScorer:
    """Judges the pictures of shards with one or two classifiers.

    Args:
        bundles: the classifiers.
        threads: pictures decoded at the same time; above 1 the next batch is decoded while the classifiers work.
        robust_fraction: fraction of the pictures on which robustness is measured too.
        examples: keep the most confident mistakes as small pictures.
        leaked: keys of the pictures that are summed up separately, too; None for none.
    """

    def __init__(
        self,
        bundles: Sequence[Classifier],
        *,
        threads: int = 1,
        robust_fraction: float = 0.0,
        examples: bool = False,
        leaked: frozenset[str] | None = None,
    ) -> None:
        self._bundles = bundles
        self._ids = [{name: number for number, name in enumerate(bundle.classes)} for bundle in bundles]
        self._threads = threads
        self._robust_fraction, self._examples = robust_fraction, examples
        self._leaked = leaked
        self._seconds: Counter[str] = Counter()

    def score(self, uri: str, progress: Progress) -> ShardScores:
        """Judges the shard at a URI.

        Raises:
            StriateError: the shard cannot be read, or a step's own code failed; names the shard.
        """
        sums = [Sums() for _ in self._bundles]
        leaked = [Sums() for _ in self._bundles] if self._leaked is not None else []
        pairs = Pairs() if len(self._bundles) == 2 else None
        mistaken: list[dict[str, bytes]] = [{} for _ in self._bundles]  # the pictures of `mistakes`, by key
        tallies: list[Tally] = []
        for rows, judged in self.judged(uri):
            for index, batch in enumerate(judged):
                sums[index].count(batch.dropped, batch.rejected, batch.unknown)
                sums[index].add(batch.outcomes)
                if self._leaked is not None:
                    leaked[index].add(batch.outcomes.among_keys(self._leaked))
                if self._examples:
                    candidates = mistaken[index] | {row.key: row.data for row in rows}
                    mistaken[index] = {mistake.key: candidates[mistake.key] for mistake in sums[index].mistakes}
            if pairs is not None:
                pairs.add(judged[0].outcomes, judged[1].outcomes)
            for row in rows:
                if chosen(row.key, self._robust_fraction):
                    self._judge_corrupted(row, judged, sums)
            tallies.append(_tally(rows, judged[0]))
            progress(tallies[-1])
        for one, pictures in zip(sums, mistaken, strict=True):
            one.examples = [Example(key, *small_copy(codec.decode(data))) for key, data in pictures.items()]
        return ShardScores(sums, pairs, Tally.total(tallies), self._seconds, leaked)

    def judged(self, uri: str) -> Iterator[tuple[Sequence[Row], list[Judged]]]:
        """Yields the pictures of a shard in batches, with each classifier's results; raises as `score`."""
        self._seconds = Counter()
        reader, prefetcher = ShardReader(uri), Prefetcher(self._threads)
        try:
            for rows in prefetcher((table.to_pylist() for table in batches(reader, BATCH)), self._prepare):
                yield rows, [self._judge(number, rows) for number in range(len(self._bundles))]
        except StriateError as error:
            raise StriateError(f"shard {uri}: {error}") from error
        self._add_seconds("read", reader.waited_s)
        self._add_seconds("prepare", prefetcher.waited_s)

    def _prepare(self, record: dict[str, Any]) -> Row:
        columns = {name: value for name, value in record.items() if name != "image"}
        key, label, data = record["key"], record["label"], record["image"]["bytes"] or b""
        prepared = [
            prepare_or_reject(bundle, data, columns) if label in ids else None
            for bundle, ids in zip(self._bundles, self._ids, strict=True)
        ]
        return Row(key, label, columns, data, prepared)

    def _judge(self, number: int, rows: Sequence[Row]) -> Judged:
        dropped, rejected, unknown = Counter[str](), Counter[str](), Counter[str]()
        keys: list[str] = []
        truth: list[int] = []
        pictures: list[Prepared] = []
        for row in rows:
            prepared = row.prepared[number]
            if row.label is None:
                dropped[NO_LABELS] += 1
            elif prepared is None:
                dropped[UNKNOWN_LABEL] += 1
                unknown[row.label] += 1
            elif not isinstance(prepared, BadPicture):
                keys.append(row.key)
                truth.append(self._ids[number][row.label])
                pictures.append(prepared)
            elif (reason := drop_reason(prepared)) is not None:
                dropped[reason] += 1
            else:
                rejected[prepared.reason] += 1
        start = perf_counter()
        bundle = self._bundles[number]
        empty = np.zeros((0, len(bundle.classes)), np.float32)
        probabilities = bundle.probabilities(pictures) if pictures else empty
        self._add_seconds("infer", perf_counter() - start)
        # A float picture may hold NaN, and every comparison with NaN is false.
        finite = np.flatnonzero(np.isfinite(probabilities).all(1))
        if len(finite) < len(pictures):
            rejected[NOT_FINITE] += len(pictures) - len(finite)
        outcomes = Outcomes(
            tuple(bundle.classes),
            tuple(keys[index] for index in finite),
            np.asarray(truth, np.int64)[finite],
            probabilities[finite],
        )
        return Judged(outcomes, dropped, rejected, unknown)

    def _judge_corrupted(self, row: Row, judged: Sequence[Judged], sums: Sequence[Sums]) -> None:
        """Judges a picture again under every corruption, with those classifiers that have judged it."""
        rows = {
            number: batch.outcomes.keys.index(row.key)
            for number, batch in enumerate(judged)
            if row.key in batch.outcomes.keys
        }
        if not rows:
            return
        start = perf_counter()
        pixels = codec.decode(row.data)
        prepared: dict[int, dict[int, Prepared]] = {number: {} for number in rows}
        for column, corruption in enumerate(CORRUPTIONS):
            corrupted = corruption(pixels, row.key)
            for number in rows:
                with contextlib.suppress(BadPicture):
                    prepared[number][column] = self._bundles[number].prepare_pixels(corrupted, **row.columns)
        for number, pictures in prepared.items():
            digits = ["-"] * len(CORRUPTIONS)
            outcomes, index = judged[number].outcomes, rows[number]
            if pictures:
                predicted = self._bundles[number].probabilities(list(pictures.values())).argmax(1)
                for column, correct in zip(pictures, predicted == outcomes.truth[index], strict=True):
                    digits[column] = _digit(correct)
            sums[number].robust.append((order_of(row.key), _digit(outcomes.correct[index]) + "".join(digits)))
        self._add_seconds("robustness", perf_counter() - start)

    def _add_seconds(self, stage: str, seconds: float) -> None:
        self._seconds[stage] += seconds  # pyright: ignore[reportArgumentType] -- a Counter sums floats as well


def _digit(correct: Any) -> str:
    return "1" if correct else "0"


def _tally(rows: Sequence[Row], judged: Judged) -> Tally:
    return Tally(
        rows_in=len(rows),
        rows_out=len(judged.outcomes),
        dropped=dict(judged.dropped),
        rejected=dict(judged.rejected),
        image_bytes_in=sum(len(row.data) for row in rows),
    )
