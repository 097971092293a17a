"""One shard through classifiers: what each says of every picture, and what could not be judged."""

from __future__ import annotations

import contextlib
import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from library import codec
from library.ahead import BATCH, Ahead, seen_by, why_dropped
from library.errors import NOT_FINITE, BadPicture
from library.robustness import CORRUPTIONS, chosen
from library.shards import ShardReader, batches
from library.sheet import thumbnail, visible

if TYPE_CHECKING:  # a bundle imports torch
    from library.bundle import Bundle, Prepared

_EXAMPLE_PX = 160

#: Why pictures are dropped for their label.
NO_LABEL, UNKNOWN_LABEL = "no_label", "unknown_label"


@dataclass(frozen=True)
class Example:
    """A small copy of a picture, `data` encoded as PNG or JPEG."""

    key: str
    data: bytes
    format: str


@dataclass
class ShardScores:
    """What one classifier said of a shard: `rows = keys + dropped + rejected`.

    Attributes:
        keys: of the N judged pictures, in the order of the shard.
        truth: their class ids.
        probabilities: N x classes, float32, in parts.
        image_bytes: encoded bytes read.
        dropped: pictures that were not judged, by reason: the classifier's own selectors, or their label.
        rejected: pictures that cannot be used, by reason.
        unknown: pictures by label, where the classifier does not know it; dropped.
        examples: the most confident mistakes.
        robust: of pictures on which robustness is measured, by key: for each corruption 1 where the classifier is
            right, 0 where it is wrong, -1 where its own selectors drop what has become of the picture.
    """

    keys: list[str] = field(default_factory=list[str])
    truth: list[int] = field(default_factory=list[int])
    probabilities: list[NDArray[np.float32]] = field(default_factory=list[NDArray[np.float32]])
    image_bytes: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])
    rejected: Counter[str] = field(default_factory=Counter[str])
    unknown: Counter[str] = field(default_factory=Counter[str])
    examples: list[Example] = field(default_factory=list[Example])
    robust: dict[str, NDArray[np.int8]] = field(default_factory=dict[str, NDArray[np.int8]])

    @property
    def rows(self) -> int:
        """Pictures read."""
        return len(self.keys) + self.dropped.total() + self.rejected.total()

    def refuse(self, bad: BadPicture) -> None:
        """Count a picture that is not judged."""
        dropped = why_dropped(bad)
        if dropped is None:
            self.rejected[bad.reason] += 1
        else:
            self.dropped[dropped] += 1


#: Called after each batch with the scores by now.
Progress = Callable[[Sequence[ShardScores]], None]


#: Confidence, key and stored bytes.
_Candidate: TypeAlias = tuple[float, str, bytes]


@dataclass(frozen=True)
class _Row:
    """One picture, and for each classifier what it will see of it: or why not, or None for a label it lacks."""

    key: str
    label: str | None
    columns: dict[str, Any]
    data: bytes
    prepared: Sequence[Prepared | BadPicture | None]


class ShardScorer:
    """Judges the pictures of shards with one or several classifiers; each picture goes the way of `Bundle.predict`.

    Args:
        bundles: the classifiers.
        threads: pictures decoded at once; past 1 the next batch is decoded while the classifiers work.
        robust_fraction: of the pictures on which robustness is measured too.
        examples: how many confident mistakes to keep as pictures.

    Attributes:
        seconds: by stage (read, prepare, infer, robustness) of the last shard: how long each was waited for.
    """

    def __init__(
        self, bundles: Sequence[Bundle], *, threads: int = 1, robust_fraction: float = 0.0, examples: int = 0
    ) -> None:
        self._bundles = bundles
        self._ids = [{name: number for number, name in enumerate(bundle.classes)} for bundle in bundles]
        self._threads = threads
        self._robust_fraction, self._examples = robust_fraction, examples
        self.seconds: dict[str, float] = {}

    def score(self, uri: str, progress: Progress) -> list[ShardScores]:
        """Judge one shard.

        Returns:
            For each classifier what it said.

        Raises:
            StriateError: when the shard cannot be read, or a step's own code fails.
        """
        self.seconds = {}
        reader = ShardReader(uri)
        scores = [ShardScores() for _ in self._bundles]
        worst: list[list[_Candidate]] = [[] for _ in self._bundles]
        ahead = Ahead(self._threads)
        for rows in ahead((table.to_pylist() for table in batches(reader, BATCH)), self._prepare):
            truths = [
                self._judge(number, rows, score, found)
                for number, (score, found) in enumerate(zip(scores, worst, strict=True))
            ]
            for row in rows:
                if chosen(row.key, self._robust_fraction):
                    self._judge_corrupted(row, truths, scores)
            progress(scores)
        for score, found in zip(scores, worst, strict=True):
            score.examples = [_example(key, data) for _, key, data in found]
        self._spent("read", reader.waited)
        self._spent("prepare", ahead.waited)
        return scores

    def _prepare(self, record: dict[str, Any]) -> _Row:
        columns = {name: value for name, value in record.items() if name != "image"}
        key, label, data = record["key"], record["label"], record["image"]["bytes"] or b""
        seen = [
            seen_by(bundle, data, columns) if label in ids else None
            for bundle, ids in zip(self._bundles, self._ids, strict=True)
        ]
        return _Row(key, label, columns, data, seen)

    def _judge(self, number: int, rows: Sequence[_Row], score: ShardScores, worst: list[_Candidate]) -> dict[str, int]:
        """Let one classifier judge a batch; returns the class ids of the pictures it has judged, by key."""
        usable: list[tuple[_Row, int, Any]] = []
        score.image_bytes += sum(len(row.data) for row in rows)
        for row in rows:
            prepared = row.prepared[number]
            if row.label is None:
                score.dropped[NO_LABEL] += 1
            elif prepared is None:
                score.dropped[UNKNOWN_LABEL] += 1
                score.unknown[row.label] += 1
            elif isinstance(prepared, BadPicture):
                score.refuse(prepared)
            else:
                usable.append((row, self._ids[number][row.label], prepared))
        if not usable:
            return {}
        start = perf_counter()
        probabilities = self._bundles[number].probabilities([prepared for _, _, prepared in usable])
        self._spent("infer", perf_counter() - start)
        # A float picture may hold NaN, and every comparison with one is false.
        sound = np.flatnonzero(np.isfinite(probabilities).all(1)).tolist()
        if len(sound) < len(usable):
            score.rejected[NOT_FINITE] += len(usable) - len(sound)
        score.probabilities.append(probabilities[sound])
        judged: dict[str, int] = {}
        for place in sound:
            (row, truth, _), said = usable[place], probabilities[place]
            judged[row.key] = truth
            score.keys.append(row.key)
            score.truth.append(truth)
            if said.argmax() != truth:
                worst.append((float(said.max()), row.key, row.data))
        worst[:] = heapq.nsmallest(self._examples, worst, key=lambda one: (-one[0], one[1]))
        return judged

    def _judge_corrupted(self, row: _Row, truths: Sequence[dict[str, int]], scores: Sequence[ShardScores]) -> None:
        """Let those classifiers that have judged a picture judge it again under every corruption."""
        judges = [number for number, judged in enumerate(truths) if row.key in judged]
        if not judges:
            return
        start = perf_counter()
        pixels = codec.decode(row.data)
        prepared: dict[int, dict[int, Any]] = {number: {} for number in judges}
        for place, corruption in enumerate(CORRUPTIONS):
            worse = corruption(pixels, row.key)
            for number in judges:
                with contextlib.suppress(BadPicture):
                    prepared[number][place] = self._bundles[number].prepare_pixels(worse, **row.columns)
        for number, pictures in prepared.items():
            right = np.full(len(CORRUPTIONS), -1, np.int8)
            if pictures:
                said = self._bundles[number].probabilities(list(pictures.values()))
                right[list(pictures)] = said.argmax(1) == truths[number][row.key]
            scores[number].robust[row.key] = right
        self._spent("robustness", perf_counter() - start)

    def _spent(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def _example(key: str, data: bytes) -> Example:
    """Small pictures as they are, larger ones made smaller and stored as JPEG: a page with many stays light."""
    pixels = codec.decode(data)
    if max(pixels.shape[:2]) <= _EXAMPLE_PX:
        return Example(key, *codec.encode(visible(pixels), codec.Encoding("png")))
    return Example(key, *codec.encode(thumbnail(pixels, _EXAMPLE_PX), codec.Encoding("jpeg", 85)))
