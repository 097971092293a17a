"""Validates every resource against its kind's schema: Kubernetes', and KubeRay's if its CRDs are on this machine."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from tests.k8s.manifests import ENVIRONMENTS, ROOT, of_kind, pods, resources

#: The oldest Kubernetes that cloud providers still maintain.
_KUBERNETES = "1.33"
_CRDS = ROOT.parent / "shared" / "kuberay-crds"
_RAY_KINDS = ("RayCluster", "RayJob", "RayService", "RayCronJob")
#: Kinds of the Prometheus operator, which have no schema here; test_monitoring.py checks them.
_OTHER_KINDS = ("PodMonitor", "PrometheusRule")


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_kubernetes_own_kinds_follow_their_schemas(environment: str) -> None:
    for resource in resources(environment):
        if resource["kind"] not in (*_RAY_KINDS, *_OTHER_KINDS):
            kubernetes_validate.validate(resource, _KUBERNETES, strict=True)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_pod_that_kuberay_creates_follows_the_schema_of_a_pod(environment: str) -> None:
    for pod in pods(environment):
        metadata = {"name": "any", "labels": pod.labels}
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod.spec}, _KUBERNETES, strict=True
        )


@pytest.mark.skipif(not _CRDS.is_dir(), reason=f"{_CRDS} is not on this machine")
@pytest.mark.parametrize("kind", _RAY_KINDS)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_ray_kinds_follow_the_schemas_of_kuberay(environment: str, kind: str) -> None:
    listed = of_kind(environment, kind)
    assert listed
    for resource in listed:
        errors = [f"{error.json_path}: {error.message}" for error in _validator(kind).iter_errors(resource)]
        assert not errors


@pytest.mark.skipif(not _CRDS.is_dir(), reason=f"{_CRDS} is not on this machine")
def test_a_field_that_kuberay_does_not_know_is_detected() -> None:
    (cluster,) = of_kind("dev", "RayCluster")
    wrong = {**cluster, "spec": {**cluster["spec"], "autoscaling": True}}
    assert [error.message for error in _validator("RayCluster").iter_errors(wrong)]


@cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(_strict(json.loads((_CRDS / f"{kind}.v1.json").read_text())))


def _strict(schema: Any) -> Any:
    """The CRD's schema, changed to refuse unknown fields; the API server only drops them."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    strict = {key: _strict(value) for key, value in schema.items()}
    properties = schema.get("properties")
    if isinstance(properties, dict) and "type" in schema:
        if isinstance(metadata := strict["properties"].get("metadata"), dict):
            # The API server has its own schema for metadata.
            strict["properties"]["metadata"] = {"type": metadata.get("type", "object")}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict.setdefault("additionalProperties", False)
    return strict
