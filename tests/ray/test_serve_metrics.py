"""What a replica counts appears where Prometheus asks for it: at the metrics port of a real node."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from serve.metrics import MAX_CLASSES, ServeMetrics

_LISTED: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).resolve().parents[2] / "k8s/monitoring/metrics.yaml").read_text()
)
_SUFFIX = {"counter": "_total", "gauge": "", "histogram": "_count"}
#: Ray gathers every few seconds; a busy machine takes its time.
_TIMEOUT_S = 120


@ray.remote(num_cpus=0)
class _Replica:
    """A process of its own that counts, as a replica does."""

    def count(self) -> None:
        classes = [f"class {number}" for number in range(MAX_CLASSES + 20)]
        told = ServeMetrics("tested", classes)
        for status, seconds in ((200, 0.004), (200, 0.004), (503, 0.0001)):
            told.request(status, seconds)
        told.decoded(0.003)
        told.queued(0.001)
        told.waiting(7)
        told.batch(3, 0.02)
        told.predicted([("class 0", 0.97), ("class 0", 0.55), (classes[-1], 0.31), ("never heard of", 0.2)])
        told.drift({"brightness": 0.31, "class": 0.02})


@pytest.fixture(scope="module")
def exported() -> Iterator[dict[tuple[str, frozenset[tuple[str, str]]], float]]:
    replica = _Replica.remote()
    ray.get(replica.count.remote())
    yield _wait_for("striate_serve_drift")
    ray.kill(replica)


def _wait_for(name: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Series of the model `tested`, by name and labels, once `name` is among them."""
    port = ray.nodes()[0]["MetricsExportPort"]
    end = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < end:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            lines = [line for line in answer.read().decode().splitlines() if 'model="tested"' in line]
        if any(name in line for line in lines):
            return dict(map(_series, lines))
    raise AssertionError(f"no {name} after {_TIMEOUT_S} s")


def _series(line: str) -> tuple[tuple[str, frozenset[tuple[str, str]]], float]:
    name, labels, value = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line).groups()  # type: ignore[union-attr]
    ours = {"model", "status", "class", "measure", "le"}
    return (name, frozenset(pair for pair in re.findall(r'(\w+)="([^"]*)"', labels) if pair[0] in ours)), float(value)


def _value(exported: Any, name: str, **labels: str) -> float | None:
    return exported.get((name, frozenset({"model": "tested", **labels}.items())))


def test_every_metric_of_serving_that_is_listed_is_exported_with_its_labels(exported: Any) -> None:
    listed = [metric for metric in _LISTED if metric["name"].startswith("striate_serve_")]
    assert len(listed) == 10
    found = {name: {label for label, _ in labels} for name, labels in exported}
    for metric in listed:
        assert found[f"ray_{metric['name']}{_SUFFIX[metric['type']]}"] == set(metric["tags"]), metric["name"]


def test_requests_are_counted_by_status_and_timed(exported: Any) -> None:
    assert _value(exported, "ray_striate_serve_requests_total", status="200") == 2
    assert _value(exported, "ray_striate_serve_requests_total", status="503") == 1
    assert _value(exported, "ray_striate_serve_request_seconds_count") == 3
    assert _value(exported, "ray_striate_serve_request_seconds_bucket", le="0.0005") == 1
    assert _value(exported, "ray_striate_serve_request_seconds_bucket", le="0.005") == 3


def test_batches_and_predictions_are_counted(exported: Any) -> None:
    assert _value(exported, "ray_striate_serve_batch_size_bucket", le="2.0") == 0
    assert _value(exported, "ray_striate_serve_batch_size_bucket", le="4.0") == 1
    assert _value(exported, "ray_striate_serve_waiting") == 7
    assert _value(exported, "ray_striate_serve_confidence_bucket", le="0.5") == 2
    assert _value(exported, "ray_striate_serve_drift", measure="brightness") == 0.31


def test_classes_past_the_first_hundred_share_one_series(exported: Any) -> None:
    assert _value(exported, "ray_striate_serve_predictions_total", **{"class": "class 0"}) == 2
    assert _value(exported, "ray_striate_serve_predictions_total", **{"class": "(other)"}) == 2
