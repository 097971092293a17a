"""Finds what a cluster lacks from its numbers alone; tests/ray and tests/e2e test real clusters."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.connection.session import Session
from serve.launch.arguments import Replicas, ServePlan
from serve.launch.deploy import Application, Deployment, ModelArgs
from serve.launch.on_cluster import head_host, shortages

CLUSTER = Session("10.0.0.1:6379", cpus=6, nodes=2, gpus=1, node_cpus=(2.0, 4.0))


def plan(**deployment: Any) -> ServePlan:
    model = ModelArgs(name="pets", bundle="/m/pets")
    pets = Application("pets", "/models/pets", model, Deployment.model_validate({"name": "Model", **deployment}))
    return ServePlan([pets], {}, {}, "0.0.0.0", 8000)


def resources(cpus: float, gpus: float = 0) -> dict[str, float]:
    return {"num_cpus": cpus, "num_gpus": gpus}


def test_replicas_are_those_of_the_config_file() -> None:
    assert plan().replicas == [Replicas("pets", 1, 1, 1, 0)]
    fixed = plan(num_replicas=3, ray_actor_options=resources(0.5, 1), autoscaling_config=None)
    assert fixed.replicas == [Replicas("pets", 3, 3, 0.5, 1)]
    scaled = plan(autoscaling_config={"min_replicas": "2", "max_replicas": 5})
    assert scaled.replicas == [Replicas("pets", 2, 5, 1, 0)]


@pytest.mark.parametrize(
    ("deployment", "sentence"),
    [
        ({"ray_actor_options": resources(5)}, "needs 5 CPUs, and the largest machine of the cluster has 4"),
        ({"num_replicas": 3, "ray_actor_options": resources(2.5)}, "need 7.5 CPUs, and the cluster has 6"),
        ({"num_replicas": 2, "ray_actor_options": resources(1, 1)}, "need 2 GPUs, and the cluster has 1"),
    ],
)
def test_the_resources_that_replicas_lack_are_reported(deployment: dict[str, Any], sentence: str) -> None:
    assert sentence in " ".join(shortages(plan(**deployment), CLUSTER))


@pytest.mark.parametrize(
    "deployment",
    [
        {"num_replicas": 30, "ray_actor_options": resources(0.2)},
        {"autoscaling_config": {"min_replicas": 6, "max_replicas": 60}},
        {"ray_actor_options": resources(4, 1)},
    ],
)
def test_replicas_that_fit_lack_nothing(deployment: dict[str, Any]) -> None:
    assert not shortages(plan(**deployment), CLUSTER)


@pytest.mark.parametrize(
    ("host", "address", "head"),
    [
        ("10.0.0.7", "10.0.0.1:6379", "10.0.0.7"),
        ("0.0.0.0", "10.0.0.1:6379", "10.0.0.1"),
        ("0.0.0.0", "ray://head.example:10001", "head.example"),
        ("::", "[fd00::1]:6379", "fd00::1"),
    ],
)
def test_clients_use_the_head_where_every_machine_listens(host: str, address: str, head: str) -> None:
    assert head_host(host, address) == head
