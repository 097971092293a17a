"""Whether a replica is asked about pictures like those its model has learned from.

Off unless asked for. Memory does not grow with what is asked: histograms of the last pictures, in two halves, of which
the older is forgotten when the newer is full. No picture is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock
from time import perf_counter
from typing import Any

from library import codec
from library.bundle_record import BundleRecord
from library.drift import CLASS, DRIFTED, EDGES, MIN_A_BIN, SHIFTED, Histograms, compare, measures, training_histograms
from library.errors import BadPicture

#: Pictures in each half of the window; more where so many would not tell classes apart.
HALF = 2000

#: Of a thread's time at most this share goes into measuring; under load not every picture is looked at.
_SHARE = 0.02

#: A gauge need not be newer; Prometheus asks every 15 s.
_TELLS_EVERY_S = 10.0


class LiveDrift:
    """What a replica has been asked lately; any thread may call.

    Args:
        record: of the bundle: what training saw is in its provenance.
        limits: of a picture to be decoded.
        half: pictures in each half of the window.
        share: of one thread's time for measuring, 0 to 1.
        told: given `psi` every now and then, while something is asked: `ServeMetrics.drift`.
    """

    def __init__(
        self,
        record: BundleRecord,
        limits: codec.Limits = codec.DEFAULT_LIMITS,
        half: int = HALF,
        share: float = _SHARE,
        told: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        self.reference = training_histograms(record.provenance)
        self._limits, self._share = limits, share
        half = max(half, MIN_A_BIN * len(record.classes))
        # Not every picture that is answered is measured: each fills a window of its own.
        self._pictures, self._answers = _Window(half), _Window(half)
        self._lock = Lock()
        self._rests_until = 0.0
        self._told, self._tells_at = told, 0.0

    def picture(self, data: bytes) -> None:
        """Measure an encoded picture, unless measuring has had its share of the time; a damaged one is passed by."""
        start = perf_counter()
        with self._lock:
            if start < self._rests_until:
                return
            # Nobody else measures meanwhile.
            self._rests_until = float("inf")
        found: dict[str, float] | None = None
        try:
            found = measures(codec.decode(data, self._limits))
        except BadPicture:
            pass
        finally:
            end = perf_counter()
            with self._lock:
                self._rests_until = end + (end - start) * (1 / self._share - 1)
                if found is not None:
                    self._pictures.next().add(found)

    def answered(self, firsts: Iterable[str]) -> None:
        """Count the first class of each of some pictures."""
        with self._lock:
            for name in firsts:
                self._answers.next().add_class(name)
        now = perf_counter()
        if self._told is not None and now >= self._tells_at:
            self._tells_at = now + _TELLS_EVERY_S
            self._told(self.psi())

    def live(self) -> Histograms:
        """Of the last pictures, between one half of the window and both."""
        with self._lock:
            return Histograms.total([*self._pictures.halves, *self._answers.halves])

    def psi(self) -> dict[str, float]:
        """The stability index by measure; nothing where there are too few pictures to tell."""
        found = compare(self.reference, self.live())
        return {name: told["psi"] for name, told in found.items() if told["verdict"] != "too_few"}

    def described(self) -> dict[str, Any]:
        """For GET /models/NAME/drift: distance and verdict by measure, and the histograms they are drawn from.

        Its `live` histograms can be added to those of other replicas.
        """
        live = self.live()
        measured = compare(self.reference, live)
        known = {name for name in (*EDGES, CLASS) if self.reference.counts(name)}
        verdicts = {told["verdict"] for told in measured.values()}
        return {
            "verdict": next((v for v in ("drifted", "shifted", "same") if v in verdicts), "too_few"),
            "thresholds": {"shifted": SHIFTED, "drifted": DRIFTED},
            "measures": measured,
            "no_reference": [name for name in (*EDGES, CLASS) if name not in known],
            "edges": {name: list(edges) for name, edges in EDGES.items()},
            "reference": self.reference.to_dict(),
            "live": live.to_dict(),
        }


class _Window:
    """Histograms of the last pictures, the newer half last."""

    def __init__(self, half: int) -> None:
        self._half, self._count = half, 0
        self.halves = [Histograms(), Histograms()]

    def next(self) -> Histograms:
        """Where the next picture is to be counted."""
        if self._count == self._half:
            self.halves = [self.halves[1], Histograms()]
            self._count = 0
        self._count += 1
        return self.halves[1]
