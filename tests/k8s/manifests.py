"""Reads the manifests of k8s/: the resources that are applied together, and every pod in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests import ROOT
from tests.k8s.kustomize import Resource, build

K8S = ROOT / "k8s"

#: Every folder that can be built.
FOLDERS = sorted(path.parent.relative_to(K8S).as_posix() for path in K8S.rglob("kustomization.yaml"))
#: Folders that are applied to one cluster, by environment.
ENVIRONMENTS = {
    "dev": ("overlays/dev", "overlays/dev/service", "jobs"),
    "gpu": ("overlays/gpu", "overlays/gpu/jobs"),
    "canary": ("overlays/canary", "overlays/gpu/jobs"),
}


@dataclass(frozen=True)
class Pod:
    """A pod template, or the pod that KubeRay creates from one.

    Attributes:
        owner: kind, name and group, for messages.
        labels: including those that KubeRay adds.
        spec: of the pod, as in the manifest.
        autoscaler: options of the container that KubeRay adds to a head, or None.
    """

    owner: str
    labels: dict[str, str]
    spec: dict[str, Any]
    autoscaler: dict[str, Any] | None = None

    @property
    def containers(self) -> list[dict[str, Any]]:
        """All containers of the manifest, init containers too."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def all_containers(self) -> list[dict[str, Any]]:
        """All containers, including the autoscaler's."""
        return [*self.containers, *([{"name": "autoscaler", **self.autoscaler}] if self.autoscaler else [])]

    @property
    def ports(self) -> dict[str, int]:
        """Named ports of all containers."""
        ports = [port for container in self.containers for port in container.get("ports", [])]
        return {port["name"]: port["containerPort"] for port in ports}


@cache
def resources(environment: str) -> tuple[Resource, ...]:
    """All resources of one environment."""
    return tuple(resource for folder in ENVIRONMENTS[environment] for resource in build(K8S / folder))


def of_kind(environment: str, *kinds: str) -> list[Resource]:
    """The resources of these kinds."""
    return [resource for resource in resources(environment) if resource["kind"] in kinds]


def names(environment: str, kind: str) -> set[str]:
    """The names of the resources of one kind."""
    return {resource["metadata"]["name"] for resource in of_kind(environment, kind)}


def ray_jobs(environment: str) -> dict[str, dict[str, Any]]:
    """The specs of jobs by name, including jobs that a schedule starts."""
    jobs = {job["metadata"]["name"]: job["spec"] for job in of_kind(environment, "RayJob")}
    return jobs | {job["metadata"]["name"]: job["spec"]["jobTemplate"] for job in of_kind(environment, "RayCronJob")}


def ray_clusters(environment: str) -> dict[str, dict[str, Any]]:
    """The specs of Ray clusters by the kind and name of their resource."""
    clusters = {f"RayCluster {c['metadata']['name']}": c["spec"] for c in of_kind(environment, "RayCluster")}
    clusters |= {
        f"RayService {s['metadata']['name']}": s["spec"]["rayClusterConfig"] for s in of_kind(environment, "RayService")
    }
    clusters |= {
        f"RayJob {name}": spec["rayClusterSpec"]
        for name, spec in ray_jobs(environment).items()
        if "rayClusterSpec" in spec
    }
    return clusters


def pods(environment: str) -> list[Pod]:
    """Every pod of an environment."""
    return [
        *(
            _pod(f"StatefulSet {s['metadata']['name']}", s["spec"]["template"])
            for s in of_kind(environment, "StatefulSet")
        ),
        *(pod for owner, cluster in ray_clusters(environment).items() for pod in _ray_pods(owner, cluster)),
        *(
            _pod(f"RayJob {name} submitter", spec["submitterPodTemplate"])
            for name, spec in ray_jobs(environment).items()
        ),
    ]


def gateways(environment: str) -> list[Pod]:
    """The pods of the Gateway that KubeRay creates for a RayService with upgrades in steps; their spec is a stub."""
    return [
        Pod(
            f"Gateway {service['metadata']['name']}",
            {"gateway.networking.k8s.io/gateway-name": f"{service['metadata']['name']}-gateway"},
            {"containers": [{"name": "gateway", "ports": [{"name": "http", "containerPort": 80}]}]},
        )
        for service in of_kind(environment, "RayService")
        if "clusterUpgradeOptions" in service["spec"]["upgradeStrategy"]
    ]


def walk(place: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every value of a manifest with its path, as `spec/containers/0/image`."""
    yield path, place
    items = place.items() if isinstance(place, dict) else enumerate(place) if isinstance(place, list) else ()
    for key, value in items:
        yield from walk(value, f"{path}/{key}" if path else str(key))


def _ray_pods(owner: str, cluster: dict[str, Any]) -> Iterator[Pod]:
    name = owner.split()[1]
    options = cluster["autoscalerOptions"] if cluster.get("enableInTreeAutoscaling") else None
    yield _pod(f"{owner} head", cluster["headGroupSpec"]["template"], _added(name, "head", "headgroup"), options)
    for group in cluster["workerGroupSpecs"]:
        yield _pod(f"{owner} {group['groupName']}", group["template"], _added(name, "worker", group["groupName"]))


def _added(cluster: str, node_type: str, group: str) -> dict[str, str]:
    """The labels that KubeRay adds to a pod; names of jobs' and services' clusters are derived from theirs."""
    return {
        "ray.io/is-ray-node": "yes",
        "ray.io/cluster": cluster,
        "ray.io/node-type": node_type,
        "ray.io/group": group,
    }


def _pod(
    owner: str,
    template: dict[str, Any],
    labels: dict[str, str] | None = None,
    autoscaler: dict[str, Any] | None = None,
) -> Pod:
    return Pod(owner, {**template["metadata"]["labels"], **(labels or {})}, template["spec"], autoscaler)
