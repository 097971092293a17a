"""The folders of k8s/ build the same with our kustomize as with kubectl."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.k8s.kustomize import LOADER, Resource, build, patch_json
from tests.k8s.manifests import ENVIRONMENTS, FOLDERS, K8S, resources


def _by_name(listed: list[Resource]) -> dict[tuple[str, ...], Resource]:
    return {(r["apiVersion"], r["kind"], r["metadata"].get("namespace", ""), r["metadata"]["name"]): r for r in listed}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on this machine")
@pytest.mark.parametrize("folder", FOLDERS)
def test_our_build_equals_that_of_kubectl(folder: str) -> None:
    command = ["kubectl", "kustomize", str(K8S / folder)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert _by_name(build(K8S / folder)) == _by_name(list(yaml.load_all(printed, LOADER)))


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_no_resource_is_applied_to_a_cluster_twice(environment: str) -> None:
    listed = resources(environment)
    assert len(_by_name(list(listed))) == len(listed)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_resource_with_a_namespace_is_in_ours(environment: str) -> None:
    for resource in resources(environment):
        if resource["kind"] not in ("Namespace", "PriorityClass"):
            assert resource["metadata"]["namespace"] == "striate", resource["metadata"]


def test_every_manifest_is_built_somewhere() -> None:
    built = {path.relative_to(K8S).as_posix() for folder in FOLDERS for path in _files_of(folder)}
    files = {path.relative_to(K8S).as_posix() for path in K8S.rglob("*.yaml")}
    # The list of Striate's metrics is for readers and tests only.
    assert files - built == {"monitoring/metrics.yaml"}


def _files_of(folder: str) -> list[Any]:
    kustomization = yaml.safe_load((K8S / folder / "kustomization.yaml").read_text())
    patches = [patch["path"] for patch in kustomization.get("patches", [])]
    listed = [K8S / folder / name for name in [*kustomization["resources"], *patches, "kustomization.yaml"]]
    return [path for path in listed if path.is_file()]


def test_a_patch_of_one_group_does_not_change_one_with_the_same_anchor() -> None:
    (train,) = [r for r in build(K8S / "overlays/gpu/jobs") if r["metadata"]["name"] == "train"]
    cluster = train["spec"]["rayClusterSpec"]
    sizes = [
        group["template"]["spec"]["volumes"][0]["emptyDir"]["sizeLimit"]
        for group in (cluster["headGroupSpec"], cluster["workerGroupSpecs"][0])
    ]
    assert sizes == ["9Gi", "400Gi"]


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ({"op": "add", "path": "/a/-", "value": 3}, {"a": [1, 2, 3], "b/c": 0}),
        ({"op": "add", "path": "/a/0", "value": 3}, {"a": [3, 1, 2], "b/c": 0}),
        ({"op": "replace", "path": "/b~1c", "value": 3}, {"a": [1, 2], "b/c": 3}),
        ({"op": "remove", "path": "/a/1"}, {"a": [1], "b/c": 0}),
    ],
)
def test_a_json_patch_follows_its_standard(operation: dict[str, Any], expected: dict[str, Any]) -> None:
    document: dict[str, Any] = {"a": [1, 2], "b/c": 0}
    patch_json(document, [operation])
    assert document == expected


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/a", "value": 2},
        {"op": "replace", "path": "/b", "value": 2},
        {"op": "remove", "path": "/b"},
        {"op": "move", "path": "/a", "from": "/b"},
    ],
)
def test_a_json_patch_that_does_not_fit_is_an_error(operation: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=operation["op"]):
        patch_json({"a": 1}, [operation])
