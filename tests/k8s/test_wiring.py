"""References between manifests are valid: labels, names, ports, sizes."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest
import yaml

from tests.k8s.kustomize import Resource
from tests.k8s.manifests import (
    ENVIRONMENTS,
    K8S,
    Pod,
    gateways,
    names,
    of_kind,
    pods,
    ray_clusters,
    ray_jobs,
    resources,
    walk,
)

pytestmark = pytest.mark.parametrize("environment", ENVIRONMENTS)

#: The port of Ray's agent, which answers health probes in every pod; no container port names it.
_AGENT_PORT = 52365
#: Kubernetes creates it in every namespace.
_BY_KUBERNETES = {"kube-root-ca.crt"}
_SUFFIXES = {"m": Decimal("0.001"), "": Decimal(1), "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def _quantity(text: str | int) -> Decimal:
    digits = re.match(r"[0-9.]+", str(text))
    assert digits, text
    return Decimal(digits[0]) * _SUFFIXES[str(text)[digits.end() :]]


def _selected(environment: str, selector: dict[str, Any]) -> list[Pod]:
    """The pods that a label selector matches."""
    assert set(selector) <= {"matchLabels"}, selector
    labels = selector.get("matchLabels", {}).items()
    return [pod for pod in [*pods(environment), *gateways(environment)] if labels <= pod.labels.items()]


def _selectors(resource: Resource) -> list[dict[str, Any]]:
    """All selectors of pods in Striate's namespace that a resource contains."""
    if resource["kind"] == "Service":
        return [{"matchLabels": resource["spec"]["selector"]}]
    selectors = [
        value for path, value in walk(resource) if re.search(r"(^|/)(selector|podSelector|labelSelector)$", path)
    ]
    return [selector for selector in selectors if isinstance(selector, dict)]


def test_every_selector_matches_a_pod(environment: str) -> None:
    for resource in resources(environment):
        for selector in _selectors(resource):
            assert _selected(environment, selector), (resource["kind"], resource["metadata"]["name"], selector)


def test_a_set_selects_its_own_pods_and_no_others(environment: str) -> None:
    for resource in of_kind(environment, "StatefulSet"):
        owner = f"StatefulSet {resource['metadata']['name']}"
        assert [pod.owner for pod in _selected(environment, resource["spec"]["selector"])] == [owner]
        assert resource["spec"]["serviceName"] in names(environment, "Service")


def test_the_readme_says_how_to_create_every_secret(environment: str) -> None:
    readme = (K8S / "README.md").read_text().replace("\\\n", " ")
    documented: dict[str, set[str]] = {}
    for name, options in re.findall(r"create secret generic (\S+)(.*)", readme):
        documented[name] = set(re.findall(r"--from-(?:literal|file)=([A-Za-z_.-]+)=", options))
    documented |= {name: {"tls.crt", "tls.key"} for name in re.findall(r"create secret tls (\S+)", readme)}
    for resource in resources(environment):
        for path, value in walk(resource):
            if path.endswith(("secretKeyRef", "secretRef")):
                assert value["name"] in documented, path
                assert value.get("key") is None or value["key"] in documented[value["name"]], path
            if path.endswith("secretName"):
                assert value in documented, path


def test_the_token_has_the_key_that_kuberay_reads(environment: str) -> None:
    readme = (K8S / "README.md").read_text()
    for owner, cluster in ray_clusters(environment).items():
        assert f"generic {cluster['authOptions']['secretName']} --from-literal=auth_token=" in readme, owner


def test_config_maps_accounts_and_priorities_exist(environment: str) -> None:
    for pod in pods(environment):
        for path, value in walk(pod.spec):
            if path.endswith(("configMapRef", "configMapKeyRef", "configMap")):
                assert value["name"] in names(environment, "ConfigMap") | _BY_KUBERNETES, (pod.owner, path)
        assert pod.spec.get("serviceAccountName", "default") in names(environment, "ServiceAccount") | {"default"}
        if "priorityClassName" in pod.spec:
            assert pod.spec["priorityClassName"] in names(environment, "PriorityClass")


def test_jobs_without_their_own_cluster_select_an_existing_one(environment: str) -> None:
    for name, job in ray_jobs(environment).items():
        assert ("rayClusterSpec" in job) != ("clusterSelector" in job), name
        if "clusterSelector" in job:
            assert job["clusterSelector"]["ray.io/cluster"] in names(environment, "RayCluster"), name


def test_deletion_rules_are_valid_for_kuberay(environment: str) -> None:
    order = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
    for name, job in ray_jobs(environment).items():
        assert not job.get("shutdownAfterJobFinishes"), name
        by_status: dict[str, list[tuple[int, int]]] = {}
        for rule in job["deletionStrategy"]["deletionRules"]:
            assert "clusterSelector" not in job or rule["policy"] == "DeleteSelf", name
            entry = (order.index(rule["policy"]), rule["condition"]["ttlSeconds"])
            by_status.setdefault(rule["condition"]["jobStatus"], []).append(entry)
        assert set(by_status) == {"SUCCEEDED", "FAILED"}, name
        for entries in by_status.values():
            assert entries == sorted(set(entries)), name
            assert [ttl for _, ttl in entries] == sorted(ttl for _, ttl in entries), name


def test_a_training_is_retried_and_every_job_has_a_deadline(environment: str) -> None:
    jobs = ray_jobs(environment)
    assert jobs["train"]["backoffLimit"] > 0
    assert all(job["activeDeadlineSeconds"] > 0 for job in jobs.values())
    # A job on a shared cluster is created again by hand: a retry by KubeRay deletes the cluster.
    assert not [name for name, job in jobs.items() if "clusterSelector" in job and job.get("backoffLimit")]


def test_a_submitter_is_not_retried(environment: str) -> None:
    # A second submitter pod only follows the log of the job that the first one submitted, and exits with 0.
    assert {job["submitterConfig"]["backoffLimit"] for job in ray_jobs(environment).values()} == {0}


def test_a_service_is_upgraded_in_steps_that_kuberay_accepts(environment: str) -> None:
    # ray-operator/controllers/ray/utils/validation.go, ValidateClusterUpgradeOptions
    for service in of_kind(environment, "RayService"):
        strategy = service["spec"]["upgradeStrategy"]
        assert (strategy["type"] == "NewClusterWithIncrementalUpgrade") == (environment == "canary")
        if options := strategy.get("clusterUpgradeOptions"):
            assert service["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"] is True
            assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100
            assert options["intervalSeconds"] > 0


def test_names_are_short_enough_for_kuberays_suffixes(environment: str) -> None:
    # ray-operator/controllers/ray/utils/constant.go: 63 less the longest suffix.
    for resource in of_kind(environment, "RayCluster", "RayJob", "RayService", "RayCronJob"):
        assert re.fullmatch(r"[a-z][-a-z0-9]{0,40}", resource["metadata"]["name"])


def test_clusters_services_and_jobs_have_different_names(environment: str) -> None:
    # KubeRay creates a service NAME-head-svc for each.
    listed = [r["metadata"]["name"] for r in of_kind(environment, "RayCluster", "RayJob", "RayService", "RayCronJob")]
    assert len(listed) == len(set(listed))


def test_every_volume_is_mounted_and_every_mount_has_its_volume(environment: str) -> None:
    for pod in pods(environment):
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
        mounts = [mount["name"] for container in pod.all_containers for mount in container.get("volumeMounts", [])]
        if pod.owner.startswith("StatefulSet"):
            volumes.add("data")
        assert volumes == set(mounts), pod.owner


def test_requests_and_limits_are_set_and_consistent(environment: str) -> None:
    for pod in pods(environment):
        for container in pod.all_containers:
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert {"cpu", "memory"} <= set(requests) <= set(limits), (pod.owner, container["name"])
            for name, request in requests.items():
                assert _quantity(request) <= _quantity(limits[name]), (pod.owner, container["name"], name)
            assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu"), pod.owner


def test_shared_memory_is_large_enough_for_rays_object_store(environment: str) -> None:
    for pod in pods(environment):
        if "ray.io/cluster" in pod.labels:
            (shm,) = [volume["emptyDir"] for volume in pod.spec["volumes"] if volume["name"] == "shm"]
            memory = _quantity(pod.containers[0]["resources"]["limits"]["memory"])
            # Ray takes 0.3 of the memory, and uses the disk if /dev/shm is smaller.
            assert shm["medium"] == "Memory"
            assert Decimal("0.3") * memory <= _quantity(shm["sizeLimit"]) <= memory / 2, pod.owner


def test_gpu_pods_ask_for_gpu_nodes_and_tolerate_their_taint(environment: str) -> None:
    for pod in pods(environment):
        gpus = any("nvidia.com/gpu" in container["resources"]["limits"] for container in pod.containers)
        tolerated = any(t["key"] == "nvidia.com/gpu" for t in pod.spec.get("tolerations", []))
        assert gpus == tolerated == any("nvidia.com" in key for key in pod.spec.get("nodeSelector", {})), pod.owner
        assert gpus == any(container["image"].endswith("-gpu") for container in pod.containers), pod.owner


def test_gpu_pools_exist_in_production_and_not_on_a_laptop(environment: str) -> None:
    cluster = ray_clusters(environment)["RayCluster striate"]
    gpus = [group["groupName"] for group in cluster["workerGroupSpecs"] if "gpu" in group["groupName"]]
    assert gpus == ([] if environment == "dev" else ["gpu", "gpu-8"])


def test_the_replicas_of_a_group_are_within_its_bounds(environment: str) -> None:
    for owner, cluster in ray_clusters(environment).items():
        for group in cluster["workerGroupSpecs"]:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"], owner


def test_heads_give_no_cpu_to_tasks(environment: str) -> None:
    for owner, cluster in ray_clusters(environment).items():
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", owner


def test_ray_pods_are_probed_at_ports_that_are_open(environment: str) -> None:
    for pod in pods(environment):
        for container in pod.spec["containers"]:
            for probe in ("livenessProbe", "readinessProbe"):
                if probe not in container:
                    assert "submitter" in pod.owner, pod.owner
                    continue
                check = container[probe].get("httpGet") or container[probe].get("tcpSocket") or {"port": _AGENT_PORT}
                assert check["port"] == _AGENT_PORT or check["port"] in pod.ports, (pod.owner, probe)


def test_a_service_leads_to_a_port_of_its_pods(environment: str) -> None:
    for service in of_kind(environment, "Service"):
        for pod in _selected(environment, {"matchLabels": service["spec"]["selector"]}):
            for port in service["spec"]["ports"]:
                assert pod.ports[port["targetPort"]] == port["port"], service["metadata"]["name"]


def test_a_network_policy_opens_ports_that_its_pods_listen_on(environment: str) -> None:
    for policy in of_kind(environment, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            listened = {p for pod in _selected(environment, policy["spec"]["podSelector"]) for p in pod.ports.values()}
            assert {port["port"] for port in rule.get("ports", [])} <= listened, policy["metadata"]["name"]


def test_every_egress_rule_has_a_matching_ingress_rule(environment: str) -> None:
    """Both ends are closed by default: each egress rule to one of these pods needs an ingress rule."""
    opened = {
        (pod.owner, port.get("port"))
        for policy in of_kind(environment, "NetworkPolicy")
        for rule in policy["spec"].get("ingress", [])
        for pod in _selected(environment, policy["spec"]["podSelector"])
        for port in rule.get("ports", [{}])
    }
    for policy in of_kind(environment, "NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            for peer in [peer for peer in rule["to"] if set(peer) == {"podSelector"}]:
                for pod in _selected(environment, peer["podSelector"]):
                    for port in rule.get("ports", [{}]):
                        assert (pod.owner, port.get("port")) in opened, (policy["metadata"]["name"], pod.owner)


def test_addresses_in_our_namespace_name_existing_services(environment: str) -> None:
    services = {
        f"{service['metadata']['name']}.striate.svc.cluster.local:{port['port']}"
        for service in of_kind(environment, "Service")
        for port in service["spec"]["ports"]
    }
    written = [
        match
        for resource in resources(environment)
        for _, value in walk(resource)
        if isinstance(value, str)
        for match in re.findall(r"[\w.-]+\.svc\.cluster\.local:\d+", value)
    ]
    assert written
    assert set(written) <= services


def test_the_ingress_ends_tls_for_its_host_and_leads_to_the_classifiers(environment: str) -> None:
    # During an upgrade in steps the service of a RayService loses its pods for a while; its Gateway does not.
    backends = [
        {"name": f"{service['metadata']['name']}-gateway-{options['gatewayClassName']}", "port": {"number": 80}}
        if (options := service["spec"]["upgradeStrategy"].get("clusterUpgradeOptions"))
        else {"name": f"{service['metadata']['name']}-serve-svc", "port": {"name": "serve"}}
        for service in of_kind(environment, "RayService")
    ]
    for ingress in of_kind(environment, "Ingress"):
        hosts = {rule["host"] for rule in ingress["spec"]["rules"]}
        assert hosts == {host for tls in ingress["spec"]["tls"] for host in tls["hosts"]}
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                assert path["backend"]["service"] in backends


def test_the_port_of_serve_is_the_one_that_pods_name(environment: str) -> None:
    for service in of_kind(environment, "RayService"):
        written = yaml.safe_load(service["spec"]["serveConfigV2"])
        listening = [pod for pod in pods(environment) if pod.owner.startswith("RayService")]
        assert {pod.ports["serve"] for pod in listening} == {written["http_options"]["port"]}


def test_files_that_serve_reads_are_mounted_on_every_node(environment: str) -> None:
    for service in of_kind(environment, "RayService"):
        files = re.findall(r"(/etc/\S+)/[^/\s]+", service["spec"]["serveConfigV2"])
        for pod in [pod for pod in pods(environment) if pod.owner.startswith("RayService")]:
            mounted = {mount["mountPath"] for mount in pod.containers[0]["volumeMounts"]}
            assert set(files) <= mounted, pod.owner


def test_a_disruption_budget_for_ray_sets_min_available(environment: str) -> None:
    # maxUnavailable and percentages need a scale, which a RayCluster does not have.
    for budget in of_kind(environment, "PodDisruptionBudget"):
        component = budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]
        if component != "redis":
            assert "maxUnavailable" not in budget["spec"]
            assert isinstance(budget["spec"]["minAvailable"], int)
