"""Metrics of a replica for Prometheus, through Ray's own metrics on every node; k8s/monitoring/metrics.yaml lists them.

A record costs 2 to 3 microseconds of the calling thread, so each is passed on directly and not collected first. Ray
exports histograms by their buckets: `_count` is exact and `_sum` is not, so no mean should be computed from it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster import instruments
from serve.http.middleware import CLIENT_LEFT

_log = logging.getLogger("striate.serve")

#: Classes with a time series of their own: the first of the bundle. A thousand would cost Prometheus too much.
MAX_CLASSES = 100
OTHER = "(other)"

_SECONDS = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
_SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]
_SHARES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]

_FLUSH_S = 0.2
#: A thread that cannot keep up loses the oldest calls, rather than filling the memory.
_MAX_CALLS = 100_000


class RequestMetrics:
    """Metrics of answered requests, of any model; thread-safe."""

    def __init__(self) -> None:
        self._requests = instruments.Counter(
            "striate_serve_requests", "answered requests by HTTP status", ("model", "status")
        )
        self._seconds = _histogram(
            "striate_serve_request_seconds", "from the request's arrival to its answer", _SECONDS, {}
        )

    def answered(self, model: str, status: int, seconds: float) -> None:
        """Records a request to `model`: the HTTP status of its answer, and the seconds until then."""
        self._requests.add(1, {"model": model, "status": str(status)})
        self._seconds.observe(seconds, {"model": model})


class ServeMetrics:
    """Metrics of one model in this process; thread-safe.

    Args:
        model: the name it is served under.
        classes: class names of its bundle, in order.
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
        """Records a request: the HTTP status of its answer, and the seconds until then."""
        self._requests.answered(self._model, status, seconds)

    def decoded(self, seconds: float) -> None:
        """Records how long decoding and the input pipeline took for one picture."""
        self._decode_seconds.observe(seconds)

    def queued(self, seconds: float) -> None:
        """Records how long one picture waited for its batch."""
        self._queue_seconds.observe(seconds)

    def waiting(self, pictures: int) -> None:
        """Records how many pictures wait for a batch now."""
        self._waiting.set(pictures)

    def batch(self, size: int, seconds: float) -> None:
        """Records the size of a batch, and how long the model took for it."""
        self._batch_size.observe(size)
        self._infer_seconds.observe(seconds)

    def predicted(self, best_classes: Iterable[tuple[str, float]]) -> None:
        """Records the best class of each picture, with its probability."""
        names: Counter[str] = Counter()
        for name, probability in best_classes:
            names[name if name in self._named else OTHER] += 1
            self._confidence.observe(probability)
        for name, count in names.items():
            self._predictions.add(count, {"class": name})


class CountRequests:
    """Middleware that reports each answer, outside everything else that an application does.

    Args:
        app: the application.
        report: called after each answer with the path, the HTTP status and the seconds since the request arrived.
    """

    def __init__(self, app: ASGIApp, report: Callable[[str, int, float], None]) -> None:
        self._app, self._report = app, report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = perf_counter(), CLIENT_LEFT

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            self._report(scope["path"], status, perf_counter() - began)


class BackgroundCalls:
    """A thread that makes calls a few times a second, outside the requests.

    Each record of Ray's metrics lets another thread run: within a request that costs many times the record itself.
    """

    def __init__(self) -> None:
        self._calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque(maxlen=_MAX_CALLS)
        threading.Thread(target=self._run, name="metrics", daemon=True).start()

    def add(self, call: Callable[..., None], *arguments: Any) -> None:
        """Makes `call(*arguments)` soon, in the thread."""
        self._calls.append((call, arguments))

    def _run(self) -> None:
        while True:
            while self._calls:
                call, arguments = self._calls.popleft()
                try:
                    call(*arguments)
                except Exception:  # one failure must not stop the other records
                    _log.exception("a metric could not be recorded")
            time.sleep(_FLUSH_S)  # waking the thread for each call would cost the event loop a system call a request


def _histogram(
    name: str, description: str, buckets: Sequence[float], fixed: Mapping[str, str]
) -> instruments.Histogram:
    return instruments.Histogram(name, description, ("model",), buckets, fixed)
