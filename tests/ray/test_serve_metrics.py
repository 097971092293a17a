"""The metrics of a replica at the metrics port of a real node, where Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray

from library.bundle.description import BundleRecord
from serve.http.request_metrics import MAX_CLASSES, BackgroundCalls, ServeMetrics
from serve.http.service import Answer
from serve.replica.drift import FRESH_S, LiveDrift
from tests.prometheus import LISTED, SUFFIX, Exported, exported_once, labels_by_metric


@ray.remote(num_cpus=0)
class _Replica:
    """A separate process with metrics, like a replica."""

    def count(self) -> None:
        classes = ["Kätzchen", "K%C3%A4tzchen", "犬", *(f"class {number}" for number in range(MAX_CLASSES + 20))]
        metrics = ServeMetrics("tested", classes)
        for status, seconds in ((200, 0.004), (200, 0.004), (503, 0.0001)):
            metrics.request(status, seconds)
        metrics.decoded(0.003)
        metrics.queued(0.001)
        metrics.waiting(7)
        metrics.batch(3, 0.02)
        metrics.predicted([("class 0", 0.97), ("class 0", 0.55), (classes[-1], 0.31), ("unknown", 0.2)])
        metrics.predicted([("Kätzchen", 0.6), ("Kätzchen", 0.6), ("K%C3%A4tzchen", 0.6), ("犬", 0.6)])
        trained = BundleRecord(classes=("a", "b"), provenance={"class_counts": {"a": 900}})
        self._now = 0.0
        live = self._live = LiveDrift("tested", trained, BackgroundCalls().add, clock=lambda: self._now)
        answer = Answer((("b", 0.9),), 1, 1, np.ones(2, np.float32))
        live.observe([b""] * 500, [answer] * 500)

    def wait(self, seconds: float) -> None:
        """Advances the replica's clock."""
        self._now += seconds


@pytest.fixture(scope="module")
def replica() -> Iterator[Any]:
    replica = _Replica.remote()
    ray.get(replica.count.remote())
    yield replica
    ray.kill(replica)


@pytest.fixture(scope="module")
def exported(replica: Any) -> Exported:
    return exported_once({"model": "tested"}, _has_drift)


def _has_drift(exported: Exported) -> bool:
    return any(name == "ray_striate_serve_drift" for name, _ in exported)


def _value(exported: Any, name: str, **labels: str) -> float | None:
    return exported.get((name, frozenset({"model": "tested", **labels}.items())))


def test_every_listed_metric_of_serving_is_exported_with_its_labels(exported: Any) -> None:
    listed = [metric for metric in LISTED if metric["name"].startswith("striate_serve_")]
    assert len(listed) == 10
    labels = labels_by_metric(exported)
    for metric in listed:
        assert labels[f"ray_{metric['name']}{SUFFIX[metric['type']]}"] == set(metric["tags"]), metric["name"]


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
    assert _value(exported, "ray_striate_serve_confidence_bucket", le="0.7") == 7
    assert (_value(exported, "ray_striate_serve_drift", measure="class") or 0) > 0.25


def test_classes_past_the_first_hundred_share_one_series(exported: Any) -> None:
    assert _value(exported, "ray_striate_serve_predictions_total", **{"class": "class 0"}) == 2
    assert _value(exported, "ray_striate_serve_predictions_total", **{"class": "(other)"}) == 2


def test_classes_of_any_letters_have_a_series_each(exported: Any) -> None:
    values = {
        dict(labels)["class"]: value
        for (name, labels), value in exported.items()
        if name == "ray_striate_serve_predictions_total"
    }
    assert (values["K%C3%A4tzchen"], values["K%25C3%25A4tzchen"], values["%E7%8A%AC"]) == (2, 1, 1)


@pytest.mark.faults  # Ray forgets a gauge after two exports, 20 s
def test_an_idle_models_drift_is_no_longer_exported(replica: Any, exported: Exported) -> None:
    assert _has_drift(exported)
    ray.get(replica.wait.remote(FRESH_S))
    exported_once({"model": "tested"}, lambda samples: not _has_drift(samples))
