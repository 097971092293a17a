"""Rules and dashboards query existing metrics, by labels that these metrics have."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.kustomize import build
from tests.k8s.manifests import K8S, ROOT, Pod, pods, walk

_DASHBOARDS = sorted((K8S / "monitoring" / "dashboards").glob("*.json"))
_EXPORTED = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
#: Labels that Prometheus, the PodMonitor and histograms add.
_LABELS = {"namespace", "pod", "le", "ray_io_cluster", "ray_io_node_type", "ray_io_group"}
_OURS: list[dict[str, Any]] = yaml.safe_load((K8S / "monitoring" / "metrics.yaml").read_text())


@cache
def _metrics() -> dict[str, set[str] | None]:
    """Every metric by its exported name, with its labels; None if they are unknown."""
    metrics: dict[str, set[str] | None] = dict.fromkeys(_rays_own())
    for metric in _OURS:
        for suffix in _EXPORTED[metric["type"]]:
            metrics[f"ray_{metric['name']}{suffix}"] = set(metric["tags"])
    return metrics


def _rays_own() -> Iterator[str]:
    """The metric names in Ray's own dashboards, and those of its autoscaler."""
    # Located without an import, which takes a second.
    spec = importlib.util.find_spec("ray")
    assert spec
    assert spec.origin
    for path in (Path(spec.origin).parent / "dashboard/modules/metrics/dashboards").glob("*.py"):
        yield from re.findall(r"\b(?:ray|autoscaler)_\w+", path.read_text())
    yield "up"


def _rules() -> list[dict[str, Any]]:
    (rules,) = [r for r in build(K8S / "monitoring") if r["kind"] == "PrometheusRule"]
    return [rule for group in rules["spec"]["groups"] for rule in group["rules"]]


def _expressions() -> dict[str, str]:
    expressions = {rule["alert"]: rule["expr"] for rule in _rules()}
    for path in _DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                expressions[f"{path.stem}: {panel['title']} {target['refId']}"] = target["expr"]
    return expressions


def _queried(expression: str) -> tuple[set[str], set[str]]:
    """The metrics and the labels that an expression names."""
    labels = {
        label.strip()
        for listed in re.findall(r"(?:by|ignoring) \(([^)]*)\)", expression)
        for label in listed.split(",")
    }
    labels |= {
        label for inside in re.findall(r"\{([^}]*)\}", expression) for label in re.findall(r"(\w+)\s*[=!]", inside)
    }
    bare = re.sub(r"(?:by|ignoring) \([^)]*\)|\{[^}]*\}", " ", expression)
    return set(re.findall(r"\b(?:ray_|autoscaler_|striate_)\w+|\bup\b", bare)), labels


@pytest.mark.parametrize("where", _expressions())
def test_an_expression_queries_existing_metrics_and_labels(where: str) -> None:
    metrics, labels = _queried(_expressions()[where])
    assert metrics
    assert metrics <= set(_metrics())
    known = [_metrics()[name] for name in metrics]
    if None not in known:
        assert labels <= _LABELS.union(*(tags for tags in known if tags is not None))


@pytest.mark.parametrize("where", _expressions())
def test_the_brackets_of_an_expression_match(where: str) -> None:
    open_ones: list[str] = []
    for sign in _expressions()[where]:
        if sign in "([{":
            open_ones.append(sign)
        elif sign in ")]}":
            assert open_ones.pop() + sign in ("()", "[]", "{}")
    assert not open_ones


def test_every_metric_of_ours_is_shown_somewhere() -> None:
    queried = {name for expression in _expressions().values() for name in _queried(expression)[0]}
    shown = {
        metric["name"]
        for metric in _OURS
        for suffix in _EXPORTED[metric["type"]]
        if f"ray_{metric['name']}{suffix}" in queried
    }
    assert shown == {metric["name"] for metric in _OURS}


def test_metrics_in_our_code_are_those_of_the_list() -> None:
    sources = [path.read_text() for folder in ("jobs", "serve") for path in (ROOT / folder).rglob("*.py")]
    exporting = [text for text in sources if "from cluster import instruments" in text]
    named = {name for text in exporting for name in re.findall(r"""["'](striate_[a-z0-9_]+)["']""", text)}
    assert named == {metric["name"] for metric in _OURS}


def test_rays_metrics_are_imported_in_one_file() -> None:
    sources = [path for folder in ("cluster", "jobs", "library", "serve") for path in (ROOT / folder).rglob("*.py")]
    users = [path for path in sources if re.search(r"ray\.util(\.| import )metrics", path.read_text())]
    assert users == [ROOT / "cluster" / "instruments.py"]


def test_an_alert_has_a_severity_and_advice() -> None:
    for rule in _rules():
        assert rule["labels"]["severity"] in ("info", "warning", "critical"), rule["alert"]
        assert rule["for"], rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]
        assert rule["annotations"]["description"], rule["alert"]


@pytest.mark.parametrize("path", _DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_has_distinct_panels_with_descriptions(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert dashboard["uid"] == f"striate-{path.stem}"
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    assert all(panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in panels)
    # The data source is chosen on the page, not by an id that only one Grafana has.
    assert {value["uid"] for at, value in walk(dashboard) if at.endswith("datasource")} == {"${datasource}"}
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", path.read_text())) - {"__range"}
    assert used == variables


def test_prometheus_scrapes_ports_that_ray_pods_name() -> None:
    (monitor,) = [r for r in build(K8S / "monitoring") if r["kind"] == "PodMonitor"]
    ray_pods = [pod for pod in pods("gpu") if monitor["spec"]["selector"]["matchLabels"].items() <= pod.labels.items()]
    scraped = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    assert scraped <= {port for pod in ray_pods for port in pod.ports}
    assert all("metrics" in pod.ports for pod in ray_pods)
    assert all(_names_the_autoscaler(pod) for pod in ray_pods if pod.autoscaler)


def _names_the_autoscaler(pod: Pod) -> bool:
    return {"dash-metrics", "as-metrics"} <= set(pod.ports)
