"""What a cluster lacks, by its numbers alone; the rest is tested on real ones (tests/ray, tests/e2e)."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.connection.session import Session
from serve.launch.deploy import MODEL_PATH
from serve.launch.on_cluster import at_head, shortages
from serve.launch.request import Replicas, ServePlan

CLUSTER = Session("10.0.0.1:6379", cpus=6, nodes=2, gpus=1, node_cpus=(2.0, 4.0))


def plan(**deployment: Any) -> ServePlan:
    made = {"name": "pets", "import_path": MODEL_PATH, "args": {}, "deployments": [{"name": "Model", **deployment}]}
    return ServePlan([made], {}, {}, "0.0.0.0", 8000)


def takes(cpus: float, gpus: float = 0) -> dict[str, float]:
    return {"num_cpus": cpus, "num_gpus": gpus}


def test_replicas_are_those_of_the_config_file() -> None:
    assert plan().replicas == [Replicas("pets", 1, 1, 1, 0)]
    fixed = plan(num_replicas=3, ray_actor_options=takes(0.5, 1), autoscaling_config=None)
    assert fixed.replicas == [Replicas("pets", 3, 3, 0.5, 1)]
    scaled = plan(autoscaling_config={"min_replicas": "2", "max_replicas": 5})
    assert scaled.replicas == [Replicas("pets", 2, 5, 1, 0)]


@pytest.mark.parametrize(
    ("deployment", "why"),
    [
        ({"ray_actor_options": takes(5)}, "needs 5 CPUs, and the largest machine of the cluster has 4"),
        ({"num_replicas": 3, "ray_actor_options": takes(2.5)}, "need 7.5 CPUs, and the cluster has 6"),
        ({"num_replicas": 2, "ray_actor_options": takes(1, 1)}, "need 2 GPUs, and the cluster has 1"),
    ],
)
def test_what_replicas_wait_for_is_said(deployment: dict[str, Any], why: str) -> None:
    assert why in " ".join(shortages(plan(**deployment), CLUSTER))


@pytest.mark.parametrize(
    "deployment",
    [
        {"num_replicas": 30, "ray_actor_options": takes(0.2)},
        {"autoscaling_config": {"min_replicas": 6, "max_replicas": 60}},
        {"ray_actor_options": takes(4, 1)},
    ],
)
def test_replicas_that_fit_wait_for_nothing(deployment: dict[str, Any]) -> None:
    assert not shortages(plan(**deployment), CLUSTER)


@pytest.mark.parametrize(
    ("host", "address", "asked"),
    [
        ("10.0.0.7", "10.0.0.1:6379", "10.0.0.7"),
        ("0.0.0.0", "10.0.0.1:6379", "10.0.0.1"),
        ("0.0.0.0", "ray://head.example:10001", "head.example"),
        ("::", "[fd00::1]:6379", "fd00::1"),
    ],
)
def test_a_cluster_is_asked_at_its_head_where_it_listens_everywhere(host: str, address: str, asked: str) -> None:
    assert at_head(host, address) == asked
