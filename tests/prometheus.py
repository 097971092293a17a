"""The metrics that a node of the running Ray exports to Prometheus."""

from __future__ import annotations

import re
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import ray
import yaml

from tests import ROOT
from tests.waiting import until

#: Every metric of Striate, as rules and dashboards use it.
LISTED: list[dict[str, Any]] = yaml.safe_load((ROOT / "k8s/monitoring/metrics.yaml").read_text())
#: The suffix that Ray adds to a name, by type.
SUFFIX = {"counter": "_total", "gauge": "", "histogram": "_count"}

#: Values by metric name and Striate's labels, summed over processes.
Exported = dict[tuple[str, frozenset[tuple[str, str]]], float]

_LABELS = {"le"}.union(*(metric["tags"] for metric in LISTED))
# Ray collects metrics every few seconds, more slowly on a busy machine.
_TIMEOUT_S = 120


def exported_once(labels: Mapping[str, str], whole: Callable[[Exported], bool]) -> Exported:
    """The series with these labels, once `whole` accepts them."""
    port = ray.nodes()[0]["MetricsExportPort"]
    series: Exported = {}

    def complete() -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            series.clear()
            series.update(_series(answer.read().decode(), labels))
        return whole(series)

    # Each request costs the node's agent a tenth of a second.
    until(complete, _TIMEOUT_S, every_s=0.5)
    return series


def total(exported: Exported, name: str, **labels: str) -> float:
    """The sum of a metric's series with these labels."""
    return sum(
        value for (series, held), value in exported.items() if series == name and labels.items() <= dict(held).items()
    )


def labels_by_metric(exported: Exported) -> dict[str, set[str]]:
    """Striate's labels of each metric."""
    return {name: {label for label, _ in labels} for name, labels in exported}


def _series(text: str, labels_of_ours: Mapping[str, str]) -> Exported:
    series: Exported = defaultdict(float)
    for line in text.splitlines():
        match = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line)
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2])) if match else {}
        if match and labels_of_ours.items() <= labels.items():
            our_labels = frozenset((name, value) for name, value in labels.items() if name in _LABELS)
            series[match[1], our_labels] += float(match[3])
    return dict(series)
