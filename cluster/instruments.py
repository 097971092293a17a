"""Counters, gauges and histograms that never make a job or a request fail; the only module that uses Ray's metrics.

Ray encodes the values of labels as ASCII and raises where it cannot, so they are escaped first. Every other error of
Ray is logged once per metric, and the value is lost.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from urllib.parse import quote

import ray
from ray.util import metrics

_log = logging.getLogger(__name__)

#: Characters of labels that are not escaped: printable ASCII except %, which begins an escape.
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_NO_LABELS: Mapping[str, str] = {}
# Ray's shortest time between two exports; by default it is ten seconds.
_REPEAT_S = 1.0


def label_value(text: str) -> str:
    """Returns text as printable ASCII, percent-encoded as in a URL: `Kätzchen` becomes `K%C3%A4tzchen`; different texts
    stay different."""
    return quote(text, safe=_PLAIN, errors="surrogatepass")


class Counter:
    """A sum that only grows.

    Args:
        name: without the `ray_` and the `_total` that Ray adds.
        description: what is counted.
        labels: names of its labels.
        fixed: values of the labels that never change.
    """

    def __init__(
        self, name: str, description: str, labels: Sequence[str], fixed: Mapping[str, str] = _NO_LABELS
    ) -> None:
        self._recorder = _Recorder(name, fixed, lambda: metrics.Counter(name, description, tuple(labels)).inc)

    def add(self, value: float, labels: Mapping[str, str] = _NO_LABELS) -> None:
        """Adds to the sum; 0, which Ray refuses, is ignored."""
        if value > 0:
            self._recorder.record(value, labels)


class Gauge:
    """A value that goes up and down, until `end` or as long as this object is kept.

    Ray exports only values set since its last export, and drops a gauge that was not set for two exports. So the values
    are recorded again every second.

    Args:
        name: as for `Counter`; so are `description`, `labels` and `fixed`.
        description: what is measured.
        labels: names of its labels.
        fixed: values of the labels that never change.
        read: returns all labels and values every second, for a gauge that is never `set`; a label that it leaves out
            ends.
    """

    def __init__(
        self,
        name: str,
        description: str,
        labels: Sequence[str],
        fixed: Mapping[str, str] = _NO_LABELS,
        read: Callable[[], Iterable[tuple[Mapping[str, str], float]]] | None = None,
    ) -> None:
        self._recorder = _Recorder(name, fixed, lambda: metrics.Gauge(name, description, tuple(labels)).set)
        self._values: dict[frozenset[tuple[str, str]], float] = {}
        self._read = read or self._values_set
        _repeater.add(self)

    def set(self, value: float, labels: Mapping[str, str] = _NO_LABELS) -> None:
        """Replaces the value."""
        self._values[frozenset(labels.items())] = value
        self._recorder.record(value, labels)

    def end(self) -> None:
        """Stops the export.

        A gauge that does not end but is still referenced, as by the traceback of an error, would later replace the
        values of a later gauge with the same name and labels.
        """
        _repeater.remove(self)

    def repeat(self) -> None:
        """Records the values again."""
        for labels, value in self._read():
            self._recorder.record(value, labels)

    def _values_set(self) -> Iterable[tuple[Mapping[str, str], float]]:
        return [(dict(labels), value) for labels, value in list(self._values.items())]


class _Repeater:
    """Repeats the values of all gauges in a thread that starts with the first gauge."""

    def __init__(self) -> None:
        self._gauges: weakref.WeakSet[Gauge] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, gauge: Gauge) -> None:
        with self._lock:
            self._gauges.add(gauge)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="gauges", daemon=True)
                self._thread.start()

    def remove(self, gauge: Gauge) -> None:
        with self._lock:
            self._gauges.discard(gauge)

    def _run(self) -> None:
        while True:
            time.sleep(_REPEAT_S)  # Ray has no call that says when it exports
            if ray.is_initialized():
                self._repeat()

    def _repeat(self) -> None:
        with self._lock:
            gauges = list(self._gauges)
        for gauge in gauges:
            try:
                gauge.repeat()
            except Exception:  # raised by its `read`; the other gauges stay
                self.remove(gauge)
                _log.exception("a gauge cannot be read and is no longer exported")


_repeater = _Repeater()


class Histogram:
    """Values counted by size: `buckets` are the upper bounds; other arguments as for `Counter`."""

    def __init__(
        self,
        name: str,
        description: str,
        labels: Sequence[str],
        buckets: Sequence[float],
        fixed: Mapping[str, str] = _NO_LABELS,
    ) -> None:
        self._recorder = _Recorder(
            name, fixed, lambda: metrics.Histogram(name, description, list(buckets), tuple(labels)).observe
        )

    def observe(self, value: float, labels: Mapping[str, str] = _NO_LABELS) -> None:
        """Counts one value."""
        self._recorder.record(value, labels)


_Record = Callable[[float, dict[str, str]], None]


class _Recorder:
    """Creates a metric of Ray and records into it; never raises."""

    def __init__(self, name: str, fixed: Mapping[str, str], make: Callable[[], _Record]) -> None:
        self._name, self._fixed = name, _escaped(fixed)
        self._warned = False
        self._record: _Record | None = None
        try:
            self._record = make()
        except Exception as error:  # a metric must not make a job fail, whatever Ray raises
            self._warn(error)

    def record(self, value: float, labels: Mapping[str, str]) -> None:
        if self._record is None:
            return
        try:
            self._record(value, {**self._fixed, **_escaped(labels)})
        except Exception as error:  # as above
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("the metric %s is not recorded: %s: %s", self._name, type(error).__name__, error)


def _escaped(labels: Mapping[str, str]) -> dict[str, str]:
    return {name: label_value(value) for name, value in labels.items()}
