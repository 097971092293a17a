"""Drift: whether a model is asked about pictures like those it has learned from, off unless asked for (`--drift`).

What training saw comes with the bundle, as the histograms of `striate ingest --measure`; what is asked comes from the
request path. Memory does not grow with what is asked: histograms of the last pictures, in two halves, of which the
older is forgotten when the newer is full. No picture is kept. The gauge `striate_serve_drift` has a value only while
pictures come: half an hour after the last one it ends, so a model that is not used any more raises no alert.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster import instruments
from library.bundle.description import BundleRecord
from library.dataset.histograms import CLASS, EDGES, Histograms, measures
from library.errors import BadPicture
from library.imaging import codec
from serve.http.schemas import Distance, DriftReport, PictureCounts, Verdict
from serve.http.service import Answer

#: Of the population stability index (Siddiqi 2006, Credit Risk Scorecards): below the first nothing has changed that
#: anybody need look at, from the second on the pictures are others.
SHIFTED, DRIFTED = 0.1, 0.25
_WORST_LAST: tuple[Verdict, ...] = ("too_few", "same", "shifted", "drifted")

#: With fewer pictures than this, or than ten a bin that is in use, chance alone goes past `SHIFTED` now and then.
MIN_PICTURES, MIN_A_BIN = 200, 10

#: Pictures in each half of the window; more where so many would not tell classes apart.
HALF = 2000

#: Of a thread's time at most this share goes into measuring; under load not every picture is looked at.
_SHARE = 0.02

#: A picture that is expected to take longer to decode is not measured: no thread can be stopped while it decodes.
_SLOW_S = 0.15

#: The next picture is measured after this time at the latest, also when a call of `later` is lost.
_LOST_AFTER_S = 60.0

#: A gauge ends this long after the last picture: before the alert of k8s/monitoring, which waits for an hour.
FRESH_S = 1800.0


class LiveDrift:
    """What a replica has been asked lately.

    Args:
        model: the name it is served under.
        record: of the bundle: what training saw is in its provenance.
        later: makes a call soon and outside the request path, such as `BackgroundCalls.add`.
        limits: of a picture to be decoded.
        half: pictures in each half of the window.
        share: of one thread's time for measuring, 0 to 1.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        model: str,
        record: BundleRecord,
        later: Callable[..., None],
        limits: codec.Limits = codec.DEFAULT_LIMITS,
        half: int = HALF,
        share: float = _SHARE,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.reference = training_histograms(record.provenance)
        self._later, self._limits, self._share, self._clock = later, limits, share, clock
        half = max(half, MIN_A_BIN * len(record.classes))
        # Not every picture that is answered is measured: each fills a window of its own.
        self._pictures, self._answers = _Window(half), _Window(half)
        self._lock = Lock()
        self._measures_at = 0.0
        self._gauge = instruments.Gauge(
            "striate_serve_drift", "stability index by measure", ("model", "measure"), {"model": model}, self.gauged
        )

    def seen(
        self, pictures: Sequence[bytes] | Sequence[NDArray[np.uint8]], answers: Sequence[Answer | BadPicture]
    ) -> None:
        """Counts the best classes of one request, and has one of its encoded pictures measured when that is due."""
        good = [(picture, answer) for picture, answer in zip(pictures, answers, strict=True) if type(answer) is Answer]
        now = self._clock()
        with self._lock:
            for _, answer in good:
                self._answers.next(now).add_class(answer.classes[0][0])
        encoded = next((picture for picture, _ in good if isinstance(picture, bytes)), None)
        if encoded is not None and now >= self._measures_at:
            self._measures_at = now + _LOST_AFTER_S
            self._later(self._measure, encoded)

    def _measure(self, data: bytes) -> None:
        start = self._clock()
        try:
            header = codec.probe(data, self._limits)
            if header.expected_s <= _SLOW_S:
                values = measures(codec.decode(data, self._limits, header=header))
                with self._lock:
                    self._pictures.next(start).add(values)
        except BadPicture:  # it was answered all the same
            pass
        finally:
            end = self._clock()
            self._measures_at = end + (end - start) * (1 / self._share - 1)

    def gauged(self) -> Iterator[tuple[dict[str, str], float]]:
        """Labels and values of the gauge now: of measures with enough pictures, the last of them not long ago."""
        oldest = self._clock() - FRESH_S
        for name, distance in compare(self.reference, self.live()).items():
            window = self._answers if name == CLASS else self._pictures
            if distance.verdict != "too_few" and window.last_at > oldest:
                yield {"measure": name}, distance.psi

    def live(self) -> Histograms:
        """Of the last pictures, between one half of the window and both."""
        with self._lock:
            return Histograms.total([*self._pictures.halves, *self._answers.halves])

    def report(self) -> DriftReport:
        """Distance and verdict by measure, and the histograms that they are computed from."""
        live = self.live()
        measured = compare(self.reference, live)
        known = {name for name in (*EDGES, CLASS) if self.reference.counts(name)}
        worst = max((_WORST_LAST.index(distance.verdict) for distance in measured.values()), default=0)
        return DriftReport(
            verdict=_WORST_LAST[worst],
            thresholds={"shifted": SHIFTED, "drifted": DRIFTED},
            measures=measured,
            no_reference=[name for name in (*EDGES, CLASS) if name not in known],
            edges={name: list(edges) for name, edges in EDGES.items()},
            reference=PictureCounts.model_validate(self.reference.to_dict()),
            live=PictureCounts.model_validate(live.to_dict()),
        )


class _Window:
    """Histograms of the last pictures, the newer half last."""

    def __init__(self, half: int) -> None:
        self._half, self._count = half, 0
        #: When the last picture was counted.
        self.last_at = -math.inf
        self.halves = [Histograms(), Histograms()]

    def next(self, now: float) -> Histograms:
        """Where the next picture is to be counted, at the time `now`."""
        self.last_at = now
        if self._count == self._half:
            self.halves = [self.halves[1], Histograms()]
            self._count = 0
        self._count += 1
        return self.halves[1]


def training_histograms(provenance: Mapping[str, Any]) -> Histograms:
    """What training saw, as far as a bundle's provenance says: its classes, and its pictures where they were measured.

    Raises:
        StriateError: when the histograms were made by another version.
    """
    kept = provenance.get("histograms")
    seen = Histograms.from_dict(kept) if kept else Histograms()
    seen.classes = {name: int(count) for name, count in provenance.get("class_counts", {}).items()}
    return seen


def compare(reference: Histograms, live: Histograms) -> dict[str, Distance]:
    """How far apart two histograms lie, by measure; those that both have counted."""
    return {
        name: _compared(reference.counts(name), live.counts(name))
        for name in (*EDGES, CLASS)
        if reference.counts(name) and live.counts(name)
    }


def _compared(reference: Mapping[str, int], live: Mapping[str, int]) -> Distance:
    names = sorted(reference.keys() | live.keys())
    known, seen = (np.array([counts.get(name, 0) for name in names], np.float64) for counts in (reference, live))
    return Distance(
        psi=round(_psi(known, seen), 4),
        js=round(_js(known, seen), 4),
        verdict=_verdict(known, seen),
        reference=int(known.sum()),
        live=int(seen.sum()),
    )


def _verdict(known: Any, seen: Any) -> Verdict:
    if min(known.sum(), seen.sum()) < max(MIN_PICTURES, MIN_A_BIN * len(seen)):
        return "too_few"
    psi = _psi(known, seen)
    return "drifted" if psi >= DRIFTED else "shifted" if psi >= SHIFTED else "same"


def _psi(known: Any, seen: Any) -> float:
    """Half a picture is added to each bin, so that an empty one gives no infinity.

    Of two samples of one kind the index is about (bins - 1)(1/n + 1/m) (Yurdakul 2018), which is taken away: otherwise
    few pictures look like drift.
    """
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (known, seen))
    by_chance = (len(known) - 1) * (1 / known.sum() + 1 / seen.sum())
    return max(0.0, float(((p - q) * np.log(p / q)).sum() - by_chance))


def _js(known: Any, seen: Any) -> float:
    """Square root of the Jensen-Shannon divergence in bits (Endres and Schindelin 2003)."""
    p, q = known / known.sum(), seen / seen.sum()
    middle = (p + q) / 2
    bits = sum(float((part[part > 0] * np.log2(part[part > 0] / middle[part > 0])).sum()) for part in (p, q))
    return math.sqrt(max(0.0, bits / 2))
