"""What one worker does with one shard of `striate evaluate`. No Ray here: jobs/ maps it over shards.

PyTorch is imported when the first shard is worked on: neither planning nor a worker of another job waits for it.
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
from library.imaging.contact_sheet import thumbnail, visible
from library.work.prefetch import BATCH, Ahead, seen_by, why_dropped

if TYPE_CHECKING:  # a bundle imports torch
    from library.bundle.bundle import Bundle, Prepared

_EXAMPLE_PX = 160

#: Why pictures are dropped for their label.
NO_LABEL, UNKNOWN_LABEL = "no_label", "unknown_label"


@dataclass(frozen=True)
class EvaluateJob:
    """What one classifier, or two, make of every labelled picture of a dataset, as sums.

    Every picture goes the way of `Bundle.predict`. A task's `dataset` is the one that is judged.

    Attributes:
        bundles: URIs of the classifiers.
        bundle_ids: the classifiers that were planned with.
        robust_fraction: of the pictures on which robustness is measured too.
        examples: whether the most confident mistakes are kept as small pictures.
        device: cpu or cuda.
        threads: pictures decoded at once; on a CPU PyTorch takes as many for itself.
    """

    bundles: tuple[str, ...]
    bundle_ids: tuple[str, ...]
    robust_fraction: float = 0.0
    examples: bool = False
    device: str = "cpu"
    threads: int = 1

    def work_digest(self, task: ShardTask) -> str:
        own = [self.bundle_ids, self.robust_fraction, self.examples, self.device, version("torch")]
        return digest_of(["evaluate", *own, VERSIONS])

    def run(self, task: ShardTask, progress: Progress) -> EvaluateReport:
        start = perf_counter()
        scorer = self._scorer
        loaded = perf_counter() - start
        scores = scorer.score(storage.join(task.dataset, task.stem + SUFFIX), progress)
        return EvaluateReport(
            stem=task.stem,
            input_digest=task.input_digest,
            work_digest=self.work_digest(task),
            tally=scores.tally,
            seconds={stage: round(spent, 4) for stage, spent in {"load": loaded, **scores.seconds}.items()},
            sums=scores.sums,
            pairs=scores.pairs,
        )

    @cached_property
    def _scorer(self) -> ShardScorer:
        import torch

        from library.bundle.bundle import Bundle

        torch.set_num_threads(self.threads)
        planned = zip(self.bundles, self.bundle_ids, strict=True)
        bundles = [Bundle.load(uri, self.device, bundle_id) for uri, bundle_id in planned]
        return ShardScorer(bundles, threads=self.threads, robust_fraction=self.robust_fraction, examples=self.examples)


@dataclass
class ShardScores:
    """What a shard gives.

    Attributes:
        sums: for each classifier.
        pairs: of two classifiers.
        tally: of the first classifier; `rows_out` are the judged pictures.
        seconds: by stage (read, prepare, infer, robustness): how long each was waited for.
    """

    sums: list[Sums]
    pairs: Pairs | None
    tally: Tally
    seconds: Counter[str]


@dataclass(frozen=True)
class Judged:
    """What one classifier makes of a batch: each picture is among the outcomes, dropped, or rejected.

    Attributes:
        unknown: pictures by label, where the classifier does not know it; these are dropped.
    """

    outcomes: Outcomes
    dropped: Counter[str] = field(default_factory=Counter[str])
    rejected: Counter[str] = field(default_factory=Counter[str])
    unknown: Counter[str] = field(default_factory=Counter[str])


@dataclass(frozen=True)
class Row:
    """One picture, and for each classifier what it sees of it: or why it sees nothing, or None for an unknown label."""

    key: str
    label: str | None
    columns: dict[str, Any]
    data: bytes
    prepared: Sequence[Prepared | BadPicture | None]


class ShardScorer:
    """Judges the pictures of shards with one or two classifiers.

    Args:
        bundles: the classifiers.
        threads: pictures decoded at once; past 1 the next batch is decoded while the classifiers work.
        robust_fraction: of the pictures on which robustness is measured too.
        examples: whether the most confident mistakes are kept as small pictures.
    """

    def __init__(
        self, bundles: Sequence[Bundle], *, threads: int = 1, robust_fraction: float = 0.0, examples: bool = False
    ) -> None:
        self._bundles = bundles
        self._ids = [{name: number for number, name in enumerate(bundle.classes)} for bundle in bundles]
        self._threads = threads
        self._robust_fraction, self._examples = robust_fraction, examples
        self._seconds: Counter[str] = Counter()

    def score(self, uri: str, progress: Progress) -> ShardScores:
        """Judge the shard at a URI.

        Raises:
            StriateError: when the shard cannot be read, or a step's own code fails; names the shard.
        """
        sums = [Sums() for _ in self._bundles]
        pairs = Pairs() if len(self._bundles) == 2 else None
        pictures: list[dict[str, bytes]] = [{} for _ in self._bundles]
        tallies: list[Tally] = []
        for rows, judged in self.judged(uri):
            for mine, kept, one in zip(sums, pictures, judged, strict=True):
                mine.count(one.dropped, one.rejected, one.unknown)
                mine.add(one.outcomes)
                if self._examples:
                    kept.update((row.key, row.data) for row in rows)
                    wanted = {mistake.key: kept[mistake.key] for mistake in mine.mistakes}
                    kept.clear()
                    kept.update(wanted)
            if pairs is not None:
                pairs.add(judged[0].outcomes, judged[1].outcomes)
            for row in rows:
                if chosen(row.key, self._robust_fraction):
                    self._judge_corrupted(row, judged, sums)
            tallies.append(_tally(rows, judged[0]))
            progress(tallies[-1])
        for mine, kept in zip(sums, pictures, strict=True):
            mine.examples = [_example(key, data) for key, data in kept.items()]
        return ShardScores(sums, pairs, Tally.total(tallies), self._seconds)

    def judged(self, uri: str) -> Iterator[tuple[Sequence[Row], list[Judged]]]:
        """The pictures of a shard in batches, and for each classifier what it makes of them; raises as `score`."""
        self._seconds = Counter()
        reader, ahead = ShardReader(uri), Ahead(self._threads)
        try:
            for rows in ahead((table.to_pylist() for table in batches(reader, BATCH)), self._prepare):
                yield rows, [self._judge(number, rows) for number in range(len(self._bundles))]
        except StriateError as error:
            raise StriateError(f"shard {uri}: {error}") from error
        self._spent("read", reader.waited)
        self._spent("prepare", ahead.waited)

    def _prepare(self, record: dict[str, Any]) -> Row:
        columns = {name: value for name, value in record.items() if name != "image"}
        key, label, data = record["key"], record["label"], record["image"]["bytes"] or b""
        seen = [
            seen_by(bundle, data, columns) if label in ids else None
            for bundle, ids in zip(self._bundles, self._ids, strict=True)
        ]
        return Row(key, label, columns, data, seen)

    def _judge(self, number: int, rows: Sequence[Row]) -> Judged:
        dropped, rejected, unknown = Counter[str](), Counter[str](), Counter[str]()
        keys: list[str] = []
        truth: list[int] = []
        pictures: list[Any] = []
        for row in rows:
            prepared = row.prepared[number]
            if row.label is None:
                dropped[NO_LABEL] += 1
            elif prepared is None:
                dropped[UNKNOWN_LABEL] += 1
                unknown[row.label] += 1
            elif not isinstance(prepared, BadPicture):
                keys.append(row.key)
                truth.append(self._ids[number][row.label])
                pictures.append(prepared)
            elif (reason := why_dropped(prepared)) is not None:
                dropped[reason] += 1
            else:
                rejected[prepared.reason] += 1
        start = perf_counter()
        bundle = self._bundles[number]
        empty = np.zeros((0, len(bundle.classes)), np.float32)
        probabilities = bundle.probabilities(pictures) if pictures else empty
        self._spent("infer", perf_counter() - start)
        # A float picture may hold NaN, and every comparison with one is false.
        finite = np.isfinite(probabilities).all(1)
        sound = np.flatnonzero(finite)
        if len(sound) < len(pictures):
            rejected[NOT_FINITE] += len(pictures) - len(sound)
        outcomes = Outcomes(
            tuple(bundle.classes),
            tuple(keys[place] for place in sound),
            np.asarray(truth, np.int64)[sound],
            probabilities[sound],
        )
        return Judged(outcomes, dropped, rejected, unknown)

    def _judge_corrupted(self, row: Row, judged: Sequence[Judged], sums: Sequence[Sums]) -> None:
        """Let those classifiers that have judged a picture judge it again under every corruption."""
        places = {
            number: one.outcomes.keys.index(row.key)
            for number, one in enumerate(judged)
            if row.key in one.outcomes.keys
        }
        if not places:
            return
        start = perf_counter()
        pixels = codec.decode(row.data)
        prepared: dict[int, dict[int, Any]] = {number: {} for number in places}
        for column, corruption in enumerate(CORRUPTIONS):
            worse = corruption(pixels, row.key)
            for number in places:
                with contextlib.suppress(BadPicture):
                    prepared[number][column] = self._bundles[number].prepare_pixels(worse, **row.columns)
        for number, pictures in prepared.items():
            answers = ["-"] * len(CORRUPTIONS)
            outcomes, place = judged[number].outcomes, places[number]
            if pictures:
                predicted = self._bundles[number].probabilities(list(pictures.values())).argmax(1)
                for column, right in zip(pictures, predicted == outcomes.truth[place], strict=True):
                    answers[column] = _digit(right)
            sums[number].robust.append((order_of(row.key), _digit(outcomes.correct[place]) + "".join(answers)))
        self._spent("robustness", perf_counter() - start)

    def _spent(self, stage: str, seconds: float) -> None:
        self._seconds[stage] += seconds  # pyright: ignore[reportArgumentType] -- a Counter sums floats as well


def _digit(right: Any) -> str:
    return "1" if right else "0"


def _tally(rows: Sequence[Row], judged: Judged) -> Tally:
    return Tally(
        rows_in=len(rows),
        rows_out=len(judged.outcomes),
        dropped=dict(judged.dropped),
        rejected=dict(judged.rejected),
        image_bytes_in=sum(len(row.data) for row in rows),
    )


def _example(key: str, data: bytes) -> Example:
    """Small pictures as they are, larger ones made smaller and stored as JPEG: a page with many stays light."""
    pixels = codec.decode(data)
    if max(pixels.shape[:2]) <= _EXAMPLE_PX:
        return Example(key, *codec.encode(visible(pixels), codec.Encoding("png")))
    return Example(key, *codec.encode(thumbnail(pixels, _EXAMPLE_PX), codec.Encoding("jpeg", 85)))
