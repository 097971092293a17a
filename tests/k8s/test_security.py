"""Pods have few rights and few peers, and no file contains a secret."""

from __future__ import annotations

import re

import pytest

from tests.k8s.manifests import ENVIRONMENTS, K8S, ROOT, of_kind, pods, ray_clusters, resources, walk

_SECRET_NAME = re.compile(r"SECRET|PASSWORD|TOKEN|_KEY|KEYS|CREDENTIAL", re.IGNORECASE)
#: `$(NAME)` is replaced by a variable's value; a value of references and separators alone contains no secret.
_REFERENCES = re.compile(r"""(\$\([A-Z_]+\)|[",:])+""")


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_no_pod_is_root_or_may_become_it(environment: str) -> None:
    for pod in pods(environment):
        assert pod.spec["securityContext"]["runAsNonRoot"] is True, pod.owner
        assert pod.spec["securityContext"]["runAsUser"] > 0, pod.owner
        assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, pod.owner
        for container in pod.all_containers:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, pod.owner


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_no_pod_uses_resources_of_its_host(environment: str) -> None:
    host = {"privileged", "hostNetwork", "hostPID", "hostIPC", "hostPath", "hostPort"}
    for resource in resources(environment):
        for path, _ in walk(resource):
            assert path.rpartition("/")[2] not in host, path


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_kubernetes_enforces_the_restricted_pod_standard(environment: str) -> None:
    for namespace in of_kind(environment, "Namespace"):
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_only_the_autoscalers_container_has_a_token_for_kubernetes(environment: str) -> None:
    for pod in pods(environment):
        assert pod.spec["automountServiceAccountToken"] is False, pod.owner
        mounts = [mount["name"] for container in pod.containers for mount in container.get("volumeMounts", [])]
        assert "kubernetes-token" not in mounts, pod.owner
    for account in of_kind(environment, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    assert not of_kind(environment, "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_ray_cluster_requires_a_token(environment: str) -> None:
    for owner, cluster in ray_clusters(environment).items():
        assert cluster["authOptions"]["mode"] == "token", owner


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_all_traffic_is_denied_by_default(environment: str) -> None:
    closed = [
        policy["spec"]
        for policy in of_kind(environment, "NetworkPolicy")
        if policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ]
    assert len(closed) == 1


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_no_network_policy_admits_all_peers(environment: str) -> None:
    for policy in of_kind(environment, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            assert rule["from"], policy["metadata"]["name"]
            for peer in rule["from"]:
                assert "ipBlock" not in peer, policy["metadata"]["name"]
                assert all(selector.get("matchLabels") for selector in peer.values()), policy["metadata"]["name"]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_pods_cannot_reach_the_metadata_service_of_a_node(environment: str) -> None:
    blocks = [
        peer["ipBlock"]
        for policy in of_kind(environment, "NetworkPolicy")
        for rule in policy["spec"].get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert blocks
    assert all("169.254.0.0/16" in block["except"] for block in blocks)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_no_manifest_contains_the_value_of_a_secret(environment: str) -> None:
    assert not of_kind(environment, "Secret")
    for resource in resources(environment):
        for path, value in walk(resource):
            if isinstance(value, dict) and _SECRET_NAME.search(str(value.get("name", ""))) and "value" in value:
                assert _REFERENCES.fullmatch(value["value"]), path
        if resource["kind"] == "ConfigMap":
            assert not [name for name in resource["data"] if _SECRET_NAME.search(name)]


def test_no_file_contains_text_that_looks_like_a_key() -> None:
    looks = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN|(?<![0-9a-f])[0-9a-f]{40,}(?![0-9a-f])")
    for path in [*K8S.rglob("*.*"), ROOT / "Dockerfile"]:
        assert not looks.search(path.read_text()), path


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_only_the_operator_and_submitters_can_reach_the_dashboard(environment: str) -> None:
    """Ray's nodes reach each other on every port; besides them, only these two peers."""
    peers = [
        peer
        for policy in of_kind(environment, "NetworkPolicy")
        for rule in policy["spec"].get("ingress", [])
        if 8265 in [port["port"] for port in rule.get("ports", [])]
        for peer in rule["from"]
    ]
    assert peers == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-system"}}},
        {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "submitter"}}},
    ]
