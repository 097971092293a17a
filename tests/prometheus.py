"""What a node of the running Ray tells Prometheus."""

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

#: Every metric of ours, as the rules and dashboards know it.
LISTED: list[dict[str, Any]] = yaml.safe_load((ROOT / "k8s/monitoring/metrics.yaml").read_text())
#: What Ray puts after the name of each type.
SUFFIX = {"counter": "_total", "gauge": "", "histogram": "_count"}

#: Values by name and labels of ours, summed over processes.
Exported = dict[tuple[str, frozenset[tuple[str, str]]], float]

_LABELS = {"le"}.union(*(metric["tags"] for metric in LISTED))
# Ray gathers every few seconds; a busy machine takes its time.
_TIMEOUT_S = 120


def exported_once(labels: Mapping[str, str], whole: Callable[[Exported], bool]) -> Exported:
    """The series that have these labels, as soon as `whole` says that they are all there."""
    port = ray.nodes()[0]["MetricsExportPort"]
    found: Exported = {}

    def are_there() -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            found.clear()
            found.update(_series(answer.read().decode(), labels))
        return whole(found)

    # Each look costs the node's agent a tenth of a second.
    until(are_there, _TIMEOUT_S, every_s=0.5)
    return found


def total(exported: Exported, name: str, **labels: str) -> float:
    """The sum of a metric's series that have these labels."""
    return sum(
        value for (found, held), value in exported.items() if found == name and labels.items() <= dict(held).items()
    )


def labels_by_metric(exported: Exported) -> dict[str, set[str]]:
    """The labels of ours that each metric has."""
    return {name: {label for label, _ in labels} for name, labels in exported}


def _series(text: str, wanted: Mapping[str, str]) -> Exported:
    found: Exported = defaultdict(float)
    for line in text.splitlines():
        match = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line)
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2])) if match else {}
        if match and wanted.items() <= labels.items():
            ours = frozenset((name, value) for name, value in labels.items() if name in _LABELS)
            found[match[1], ours] += float(match[3])
    return dict(found)
