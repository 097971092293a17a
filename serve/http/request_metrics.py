"""What a replica tells Prometheus, through Ray's own metrics on every node; k8s/monitoring/metrics.yaml lists them.

A record costs 2 to 3 microseconds of the calling thread, so it is taken at once and not gathered first. Ray passes
histograms on by their buckets: `_count` is exact and `_sum` is not, so that no mean should be drawn from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from cluster import instruments

#: Classes with a series of their own: the first of the bundle. A thousand would cost Prometheus more than they tell.
MAX_CLASSES = 100
OTHER = "(other)"

_SECONDS = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
_SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]
_SHARES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]


class RequestMetrics:
    """Answered requests of any model in this process; any thread may call."""

    def __init__(self) -> None:
        self._requests = instruments.Counter(
            "striate_serve_requests", "answered requests by HTTP status", ("model", "status")
        )
        self._seconds = _histogram(
            "striate_serve_request_seconds", "from the request's arrival to its answer", _SECONDS, {}
        )

    def answered(self, model: str, status: int, seconds: float) -> None:
        """One request to `model` was answered with this HTTP status, so long after it came."""
        self._requests.add(1, {"model": model, "status": str(status)})
        self._seconds.observe(seconds, {"model": model})


class ServeMetrics:
    """The counts of one model in this process; any thread may call.

    Args:
        model: the name it is served under.
        classes: of its bundle, in order.
    """

    def __init__(self, model: str, classes: Sequence[str] = ()) -> None:
        self._named = frozenset(classes[:MAX_CLASSES])
        fixed = {"model": model}
        self._model, self._requests = model, RequestMetrics()
        self._predictions = instruments.Counter(
            "striate_serve_predictions", "predictions by class", ("model", "class"), fixed
        )
        self._waiting = instruments.Gauge("striate_serve_waiting", "pictures that wait for a batch", ("model",), fixed)
        self._queue_seconds = _histogram("striate_serve_queue_seconds", "waiting for a batch", _SECONDS, fixed)
        self._decode_seconds = _histogram(
            "striate_serve_decode_seconds", "decoding and input pipeline of a picture", _SECONDS, fixed
        )
        self._infer_seconds = _histogram("striate_serve_infer_seconds", "the model's time for a batch", _SECONDS, fixed)
        self._batch_size = _histogram("striate_serve_batch_size", "pictures in a batch", _SIZES, fixed)
        self._confidence = _histogram("striate_serve_confidence", "probability of the first class", _SHARES, fixed)

    def request(self, status: int, seconds: float) -> None:
        """One request was answered with this HTTP status, so long after it came."""
        self._requests.answered(self._model, status, seconds)

    def decoded(self, seconds: float) -> None:
        """One picture went through decoding and the input pipeline."""
        self._decode_seconds.observe(seconds)

    def queued(self, seconds: float) -> None:
        """One picture waited so long for its batch to begin."""
        self._queue_seconds.observe(seconds)

    def waiting(self, pictures: int) -> None:
        """So many pictures wait for a batch now."""
        self._waiting.set(pictures)

    def batch(self, size: int, seconds: float) -> None:
        """One batch went through the model."""
        self._batch_size.observe(size)
        self._infer_seconds.observe(seconds)

    def predicted(self, firsts: Iterable[tuple[str, float]]) -> None:
        """The first class of each of some pictures, with its probability."""
        names: Counter[str] = Counter()
        for name, probability in firsts:
            names[name if name in self._named else OTHER] += 1
            self._confidence.observe(probability)
        for name, count in names.items():
            self._predictions.add(count, {"class": name})


def _histogram(
    name: str, description: str, buckets: Sequence[float], fixed: Mapping[str, str]
) -> instruments.Histogram:
    return instruments.Histogram(name, description, ("model",), buckets, fixed)
