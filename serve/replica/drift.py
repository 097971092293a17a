"""Drift: compares the pictures of recent requests with the training data; off without `--drift`.

The bundle holds histograms of the training data (`striate ingest --measure`); the live ones are counted from requests.
Memory does not grow: the live window has two halves, and the older is dropped when the newer is full. No picture is
stored.
The gauge `striate_serve_drift` has a value until half an hour after the last picture, so that an unused model raises no
alert.
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

#: Thresholds of the population stability index (Siddiqi 2006, Credit Risk Scorecards): below the first no relevant
#: change, from the second on different pictures.
SHIFTED, DRIFTED = 0.1, 0.25
_WORST_LAST: tuple[Verdict, ...] = ("too_few", "same", "shifted", "drifted")

#: With fewer pictures than this, or fewer than ten per used bin, chance alone sometimes exceeds `SHIFTED`.
MIN_PICTURES, MIN_A_BIN = 200, 10

#: Pictures in each half of the window; more for a model with many classes.
HALF = 2000

#: Largest share of a thread's time for measuring; under load some pictures are skipped.
_SHARE = 0.02

#: A picture that is expected to take longer to decode is not measured: a thread cannot be stopped while it decodes.
_SLOW_S = 0.15

#: The next picture is measured after this time at the latest, even when a call of `later` is lost.
_LOST_AFTER_S = 60.0

#: The gauge has no value this long after the last picture; the alert of k8s/monitoring waits for an hour.
FRESH_S = 1800.0


class LiveDrift:
    """Histograms of a replica's recent requests.

    Args:
        model: the name it is served under.
        record: description of the bundle, whose provenance has the training histograms.
        later: makes a call soon, outside the request, such as `BackgroundCalls.add`.
        limits: limits of a picture to decode.
        half: pictures in each half of the window.
        share: largest share of one thread's time for measuring, 0 to 1.
        clock: monotonic time in seconds.
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
        # Two windows, as not every answered picture is measured.
        self._pictures, self._answers = _Window(half), _Window(half)
        self._lock = Lock()
        self._measures_at = 0.0
        self._gauge = instruments.Gauge(
            "striate_serve_drift",
            "stability index by measure",
            ("model", "measure"),
            {"model": model},
            self.gauge_values,
        )

    def observe(
        self, pictures: Sequence[bytes] | Sequence[NDArray[np.uint8]], answers: Sequence[Answer | BadPicture]
    ) -> None:
        """Counts the best classes of one request, and lets one of its encoded pictures be measured when it is time."""
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
        except BadPicture:  # the answer does not depend on it
            pass
        finally:
            end = self._clock()
            self._measures_at = end + (end - start) * (1 / self._share - 1)

    def gauge_values(self) -> Iterator[tuple[dict[str, str], float]]:
        """Yields labels and values of the gauge, for measures with enough pictures and a recent one."""
        oldest = self._clock() - FRESH_S
        for name, distance in compare(self.reference, self.live()).items():
            window = self._answers if name == CLASS else self._pictures
            if distance.verdict != "too_few" and window.last_at > oldest:
                yield {"measure": name}, distance.psi

    def live(self) -> Histograms:
        """Returns the histograms of the last pictures: between one and two halves of the window."""
        with self._lock:
            return Histograms.total([*self._pictures.halves, *self._answers.halves])

    def report(self) -> DriftReport:
        """Returns distance and verdict by measure, and the histograms that they are computed from."""
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
        """Returns the histograms for the next picture, at the time `now`."""
        self.last_at = now
        if self._count == self._half:
            self.halves = [self.halves[1], Histograms()]
            self._count = 0
        self._count += 1
        return self.halves[1]


def training_histograms(provenance: Mapping[str, Any]) -> Histograms:
    """Returns the histograms of the training data in a bundle's provenance: classes, and pictures where measured.

    Raises:
        StriateError: when another version has written the histograms.
    """
    stored = provenance.get("histograms")
    histograms = Histograms.from_dict(stored) if stored else Histograms()
    histograms.classes = {name: int(count) for name, count in provenance.get("class_counts", {}).items()}
    return histograms


def compare(reference: Histograms, live: Histograms) -> dict[str, Distance]:
    """Returns the distance of two histograms by measure, for the measures that both have."""
    return {
        name: _compared(reference.counts(name), live.counts(name))
        for name in (*EDGES, CLASS)
        if reference.counts(name) and live.counts(name)
    }


def _compared(reference: Mapping[str, int], live: Mapping[str, int]) -> Distance:
    names = sorted(reference.keys() | live.keys())
    expected, actual = (np.array([counts.get(name, 0) for name in names], np.float64) for counts in (reference, live))
    return Distance(
        psi=round(_psi(expected, actual), 4),
        js=round(_js(expected, actual), 4),
        verdict=_verdict(expected, actual),
        reference=int(expected.sum()),
        live=int(actual.sum()),
    )


def _verdict(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> Verdict:
    if min(expected.sum(), actual.sum()) < max(MIN_PICTURES, MIN_A_BIN * len(actual)):
        return "too_few"
    psi = _psi(expected, actual)
    return "drifted" if psi >= DRIFTED else "shifted" if psi >= SHIFTED else "same"


def _psi(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> float:
    """Population stability index, less its value by chance.

    Half a picture is added to each bin, so that an empty bin does not make the index infinite. For two samples of the
    same distribution the index is about (bins - 1)(1/n + 1/m) (Yurdakul 2018); without subtracting it, few pictures
    would look like drift.
    """
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (expected, actual))
    by_chance = (len(expected) - 1) * (1 / expected.sum() + 1 / actual.sum())
    return max(0.0, float(((p - q) * np.log(p / q)).sum() - by_chance))


def _js(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> float:
    """Square root of the Jensen-Shannon divergence in bits (Endres and Schindelin 2003)."""
    p, q = expected / expected.sum(), actual / actual.sum()
    middle = (p + q) / 2
    bits = sum(float((part[part > 0] * np.log2(part[part > 0] / middle[part > 0])).sum()) for part in (p, q))
    return math.sqrt(max(0.0, bits / 2))
