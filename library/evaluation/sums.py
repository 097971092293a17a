"""What an evaluation keeps of labelled pictures: sums that are exact in any order, and a few samples.

All sums are integers: losses and confidences are counted in units of `UNIT`, so each is off by at most 5e-13 and adding
them loses nothing. The sums of a dataset are therefore the same for any division into shards and any order of shards,
and their size depends on the number of classes, not of pictures.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pydantic
from numpy.typing import NDArray

from library.dataset.manifest import Report

#: `top5` considers the five most probable classes, or all where there are fewer.
TOP_K = 5
CALIBRATION_BINS = 15
#: How many of the most confident mistakes are kept.
MISTAKES = 24
#: The unit in which losses (in nats) and probabilities are counted.
UNIT = 2.0**-40


@dataclass(frozen=True)
class Outcomes:
    """The predictions of a classifier for some labelled pictures.

    Attributes:
        classes: K names, in the order of the probabilities.
        keys: keys of the N pictures.
        truth: N class ids, int64.
        probabilities: N x K, float32; each row sums to 1.
    """

    classes: tuple[str, ...]
    keys: tuple[str, ...]
    truth: NDArray[np.int64]
    probabilities: NDArray[np.float32]

    def __post_init__(self) -> None:
        shape = (len(self.keys), len(self.classes))
        if self.truth.shape != shape[:1] or self.probabilities.shape != shape:
            arrays = f"class ids {self.truth.shape} and probabilities {self.probabilities.shape}"
            raise ValueError(f"{shape[0]} pictures of {shape[1]} classes do not match {arrays}")

    def __len__(self) -> int:
        return len(self.keys)

    def among_keys(self, keys: Set[str]) -> Outcomes:
        """Returns the outcomes of those pictures whose keys are among `keys`."""
        rows = [row for row, key in enumerate(self.keys) if key in keys]
        chosen = tuple(self.keys[row] for row in rows)
        return Outcomes(self.classes, chosen, self.truth[rows], self.probabilities[rows])

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable class of each picture; the first of ties, as in a Prediction."""
        return self.probabilities.argmax(1)

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the predicted class of each picture is the true one."""
        return self.predicted == self.truth

    @cached_property
    def confidence(self) -> NDArray[np.float64]:
        """The probability of the predicted class of each picture."""
        return self.probabilities.max(1).astype(np.float64)

    def among(self, k: int) -> NDArray[np.bool_]:
        """Returns whether each true class is among the `k` most probable ones; of ties the first classes count."""
        of_truth = self._of_truth[:, None]
        is_before = np.arange(len(self.classes)) < self.truth[:, None]
        is_ahead = (self.probabilities > of_truth) | ((self.probabilities == of_truth) & is_before)
        return is_ahead.sum(1) < k

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """Negative log likelihood of each true class, in nats; at most 87.3, the limit of float32."""
        return -np.log(np.maximum(self._of_truth.astype(np.float64), np.finfo(np.float32).tiny))

    @property
    def _of_truth(self) -> NDArray[np.float32]:
        return self.probabilities[np.arange(len(self)), self.truth]


@dataclass(frozen=True)
class Mistake:
    """A picture that was predicted as another class; the confidence is the probability of that wrong class."""

    key: str
    label: str
    predicted: str
    confidence: float


@dataclass(frozen=True)
class Example:
    """A small copy of a picture, `data` encoded as PNG or JPEG."""

    key: str
    data: bytes
    format: str


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")


def _no_bins() -> list[int]:
    return [0] * CALIBRATION_BINS


class Counted(_Model):
    """Counts of pictures, each of which was judged, dropped or rejected, and the most confident mistakes.

    Attributes:
        judged: number of judged pictures.
        dropped: pictures by reason: dropped by the classifier's own selectors, or because of their label.
        rejected: pictures that cannot be used, by reason.
        unknown: pictures by label that the classifier does not know; dropped, if it is their only label.
        mistakes: the `MISTAKES` most confident ones, most confident first; ties by key.
        examples: small copies of these, where requested.
    """

    judged: int = 0
    dropped: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    mistakes: list[Mistake] = []
    examples: list[Example] = []

    @property
    def pictures(self) -> int:
        """Number of all pictures: judged, dropped and rejected."""
        return self.judged + self.dropped.total() + self.rejected.total()

    def count(self, dropped: Counter[str], rejected: Counter[str], unknown: Counter[str]) -> None:
        """Adds pictures that were not judged."""
        self.dropped.update(dropped)
        self.rejected.update(rejected)
        self.unknown.update(unknown)

    def _merge_counts(self, other: Counted) -> None:
        self.judged += other.judged
        self.count(other.dropped, other.rejected, other.unknown)
        self._add_mistakes(other.mistakes)
        keys = {mistake.key for mistake in self.mistakes}
        self.examples = [example for example in (*self.examples, *other.examples) if example.key in keys]

    def _add_mistakes(self, mistakes: Iterable[Mistake]) -> None:
        candidates = [*self.mistakes, *mistakes]
        self.mistakes = heapq.nsmallest(MISTAKES, candidates, key=lambda mistake: (-mistake.confidence, mistake.key))


class Sums(Counted):
    """The outcomes of one classifier that gives each picture one class.

    Attributes:
        top1: judged pictures whose most probable class is the true one.
        top5: judged pictures whose true class is among the `TOP_K` most probable.
        loss: sum of the losses, in `UNIT`.
        loss_squared: sum of their squares, in `UNIT` squared.
        confusion: judged pictures by true class id x number of classes + predicted class id.
        bin_counts: judged pictures by confidence, in bins of equal width over 0 to 1, open below and closed above.
        bin_correct: those of them that are correct.
        bin_confidence: sum of their confidences, in `UNIT`.
        robust: for each picture on which robustness is measured (`library.evaluation.robustness`) its rank and the
            outcomes without corruption and under each corruption: 1 for correct, 0 for wrong, - for dropped by the
            classifier's own selectors.
    """

    top1: int = 0
    top5: int = 0
    loss: int = 0
    loss_squared: int = 0
    confusion: Counter[int] = Counter()
    bin_counts: list[int] = pydantic.Field(default_factory=_no_bins)
    bin_correct: list[int] = pydantic.Field(default_factory=_no_bins)
    bin_confidence: list[int] = pydantic.Field(default_factory=_no_bins)
    robust: list[tuple[int, str]] = []

    def add(self, outcomes: Outcomes) -> None:
        """Adds judged pictures."""
        correct = outcomes.correct
        losses = _in_units(outcomes.losses).tolist()
        self.judged += len(outcomes)
        self.top1 += int(correct.sum())
        self.top5 += int(outcomes.among(TOP_K).sum())
        self.loss += sum(losses)
        self.loss_squared += sum(loss * loss for loss in losses)
        self.confusion.update((outcomes.truth * len(outcomes.classes) + outcomes.predicted).tolist())
        bins = np.clip(np.ceil(outcomes.confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
        for name, values in (
            ("bin_counts", np.ones(len(outcomes), np.int64)),
            ("bin_correct", correct.astype(np.int64)),
            ("bin_confidence", _in_units(outcomes.confidence)),
        ):
            sums = np.zeros(CALIBRATION_BINS, np.int64)
            np.add.at(sums, bins, values)
            setattr(self, name, _added(getattr(self, name), sums.tolist()))
        self._add_mistakes(
            Mistake(
                outcomes.keys[row],
                outcomes.classes[outcomes.truth[row]],
                outcomes.classes[outcomes.predicted[row]],
                float(outcomes.confidence[row]),
            )
            for row in np.flatnonzero(~correct).tolist()
        )

    def merge(self, other: Sums) -> None:
        """Adds the sums of other pictures."""
        self._merge_counts(other)
        for name in ("top1", "top5", "loss", "loss_squared"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.confusion.update(other.confusion)
        for name in ("bin_counts", "bin_correct", "bin_confidence"):
            setattr(self, name, _added(getattr(self, name), getattr(other, name)))
        self.robust += other.robust

    def without(self, part: Sums) -> Sums:
        """Returns the sums of the judged pictures that are not in `part`, without their mistakes and examples."""
        sums = {name: getattr(self, name) - getattr(part, name) for name in ("judged", "top1", "top5")}
        sums |= {name: getattr(self, name) - getattr(part, name) for name in ("loss", "loss_squared", "confusion")}
        for name in ("bin_counts", "bin_correct", "bin_confidence"):
            sums[name] = _added(getattr(self, name), [-count for count in getattr(part, name)])
        return Sums(**sums)


class LabelRows(_Model):
    """What is kept of N pictures that may have any number of the K classes.

    Attributes:
        ranks: N numbers, uint64, that depend on the keys alone.
        truth: N x K bits, packed by `numpy.packbits`: which classes each picture has.
        probabilities: N x K, float32.
    """

    ranks: bytes
    truth: bytes
    probabilities: bytes


class LabelScores(Counted):
    """The outcomes of a classifier that gives a picture any number of classes.

    Average precision ranks all pictures of a class, so no sum can replace the probabilities: they are all kept, 4 bytes
    for each picture and class. This is the one result of an evaluation that grows with the number of pictures.

    Attributes:
        rows: of the judged pictures.
    """

    rows: list[LabelRows] = []

    def add(
        self,
        ranks: NDArray[np.uint64],
        truth: NDArray[np.bool_],
        probabilities: NDArray[np.float32],
        mistakes: Iterable[Mistake],
    ) -> None:
        """Adds N judged pictures: a rank for each, N x K classes, N x K probabilities, and those that are wrong."""
        if len(ranks):
            self.judged += len(ranks)
            packed = np.packbits(truth, axis=None).tobytes()
            self.rows.append(
                LabelRows(
                    ranks=ranks.tobytes(), truth=packed, probabilities=np.ascontiguousarray(probabilities).tobytes()
                )
            )
            self._add_mistakes(mistakes)

    def merge(self, other: LabelScores) -> None:
        """Adds other pictures."""
        self._merge_counts(other)
        self.rows += other.rows

    def arrays(self, classes: int) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Returns the classes of the N judged pictures, and their probabilities (both N x `classes`).

        The pictures are in the order of their ranks, so they are the same for any division into shards and any order
        of shards.
        """
        shape = (-1, classes)
        ranks = np.concatenate([np.frombuffer(one.ranks, np.uint64) for one in self.rows])
        probabilities = [np.frombuffer(one.probabilities, np.float32).reshape(shape) for one in self.rows]
        truth = [
            np.unpackbits(np.frombuffer(one.truth, np.uint8), count=part.size).astype(np.bool_).reshape(shape)
            for one, part in zip(self.rows, probabilities, strict=True)
        ]
        order = np.argsort(ranks, kind="stable")
        return np.concatenate(truth)[order], np.concatenate(probabilities)[order]


class Pairs(_Model):
    """How often two classifiers are correct on the pictures that both have judged."""

    both: int = 0
    only_first: int = 0
    only_second: int = 0
    neither: int = 0

    def add(self, first: Outcomes, second: Outcomes) -> None:
        """Adds pictures, matched by key."""
        second_correct = dict(zip(second.keys, second.correct.tolist(), strict=True))
        for key, correct in zip(first.keys, first.correct.tolist(), strict=True):
            if key in second_correct:
                pair = (correct, second_correct[key])
                self.both += pair == (True, True)
                self.only_first += pair == (True, False)
                self.only_second += pair == (False, True)
                self.neither += pair == (False, False)

    def merge(self, other: Pairs) -> None:
        """Adds other pictures."""
        for name, count in other:
            setattr(self, name, getattr(self, name) + count)


class EvaluateReport(Report):
    """The outcomes of one or two classifiers on a shard.

    The tally is that of the first classifier; its `rows_out` counts the judged pictures.

    Attributes:
        sums: for each classifier.
        pairs: where there are two classifiers.
        leaked: for each classifier, the pictures that leaked from the training set; empty where that was not asked.
        label_scores: of the only classifier, where it gives a picture any number of classes; there are no sums then.
    """

    sums: list[Sums] = pydantic.Field(default_factory=list[Sums])
    pairs: Pairs | None = None
    leaked: list[Sums] = pydantic.Field(default_factory=list[Sums])
    label_scores: LabelScores | None = None


class EvaluateTotals:
    """The sum of the reports of many shards.

    Attributes:
        sums: for each classifier.
        pairs: where there are two classifiers.
        leaked: for each classifier, of the leaked pictures alone.
        label_scores: of a classifier that gives a picture any number of classes.
        seconds: time by stage.

    Args:
        classifiers: how many give a picture one class: 0, 1 or 2.
    """

    def __init__(self, classifiers: int) -> None:
        self.sums = [Sums() for _ in range(classifiers)]
        self.label_scores = LabelScores()
        self.leaked = [Sums() for _ in range(classifiers)]
        self.pairs = Pairs() if classifiers == 2 else None
        self.seconds: Counter[str] = Counter()

    def add(self, report: EvaluateReport) -> None:
        """Adds the report of one shard."""
        for total, part in zip(self.sums, report.sums, strict=True):
            total.merge(part)
        for total, part in zip(self.leaked, report.leaked, strict=False):
            total.merge(part)
        if self.pairs is not None and report.pairs is not None:
            self.pairs.merge(report.pairs)
        if report.label_scores is not None:
            self.label_scores.merge(report.label_scores)
        self.seconds.update(report.seconds)  # pyright: ignore[reportArgumentType] -- a Counter sums floats as well


def _in_units(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(values / UNIT).astype(np.int64)


def _added(first: list[int], second: list[int]) -> list[int]:
    return [a + b for a, b in zip(first, second, strict=True)]
