"""Counters, gauges and histograms of Ray that can fail no job and no request: the only place that uses Ray's own.

Ray encodes the values of labels as ASCII and raises where it cannot, so they are escaped first. Whatever else Ray
raises is logged once for each metric, and the value is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import quote

from ray.util import metrics

_log = logging.getLogger(__name__)

#: What stays as it is in a label: printable ASCII, but for the sign that escapes the rest.
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_NO_LABELS: Mapping[str, str] = {}


def label_value(text: str) -> str:
    """Text as printable ASCII, percent-encoded as in a URL: `Kätzchen` is `K%C3%A4tzchen`, two texts are never one."""
    return quote(text, safe=_PLAIN, errors="surrogatepass")


class Counter:
    """A sum that only grows.

    Args:
        name: without the `ray_` and the `_total` that Ray adds.
        description: what is counted.
        labels: names of its labels.
        fixed: values of the labels that never change here.
    """

    def __init__(
        self, name: str, description: str, labels: Sequence[str], fixed: Mapping[str, str] = _NO_LABELS
    ) -> None:
        self._recorder = _Recorder(name, fixed, lambda: metrics.Counter(name, description, tuple(labels)).inc)

    def add(self, value: float, labels: Mapping[str, str] = _NO_LABELS) -> None:
        """Add to the sum. Ray refuses to add 0, so that is left out."""
        if value > 0:
            self._recorder.record(value, labels)


class Gauge:
    """A value that goes up and down, and ends with its process; arguments as for `Counter`."""

    def __init__(
        self, name: str, description: str, labels: Sequence[str], fixed: Mapping[str, str] = _NO_LABELS
    ) -> None:
        self._recorder = _Recorder(name, fixed, lambda: metrics.Gauge(name, description, tuple(labels)).set)

    def set(self, value: float, labels: Mapping[str, str] = _NO_LABELS) -> None:
        """Replace the value."""
        self._recorder.record(value, labels)


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
        """Count one value."""
        self._recorder.record(value, labels)


_Record = Callable[[float, dict[str, str]], None]


class _Recorder:
    """Makes a metric of Ray, records into it, and raises nothing."""

    def __init__(self, name: str, fixed: Mapping[str, str], make: Callable[[], _Record]) -> None:
        self._name, self._fixed = name, _escaped(fixed)
        self._warned = False
        self._record: _Record | None = None
        try:
            self._record = make()
        except Exception as error:  # a metric is never worth a job, whatever Ray raises
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
