"""What the nodes of a cluster have, those among them that an autoscaler has still to bring."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from library.errors import UsageError

#: What the autoscaler may bring at most, as JSON: a list of kinds of nodes, each with `count` and the resources of one.
#: Ray's autoscaler keeps it to itself (ray 2.60); k8s/ and cluster/aws.yaml say it here.
VARIABLE = "STRIATE_AUTOSCALED_NODES"


def present() -> list[Mapping[str, float]]:
    """Resources (CPU, GPU, memory in bytes, ...) of each node that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def reachable() -> list[Mapping[str, float]]:
    """As `present`, with all nodes that the autoscaler may bring; the same where there is none.

    Raises:
        UsageError: when STRIATE_AUTOSCALED_NODES cannot be read.
    """
    alive = present()
    # A node does not say whether the autoscaler brought it: all but the head are taken for such.
    grown = [node for node in alive if "node:__internal_head__" in node] + autoscaled()
    return grown if any(_total(grown, name) > _total(alive, name) for name in ("CPU", "GPU")) else alive


def autoscaled() -> list[Mapping[str, float]]:
    """Resources of each node that the autoscaler may bring."""
    text = os.environ.get(VARIABLE)
    if not text:
        return []
    try:
        kinds: list[dict[str, Any]] = json.loads(text)
        return [
            {name: float(amount) for name, amount in kind.items() if name != "count"}
            for kind in kinds
            for _ in range(int(kind["count"]))
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UsageError(
            f"{VARIABLE} is not as it should be: '{text}'; an example: "
            '[{"count": 10, "CPU": 7, "memory": 27917287424}, {"count": 8, "CPU": 7, "GPU": 1}]'
        ) from None


def _total(nodes: list[Mapping[str, float]], name: str) -> float:
    return sum(node.get(name, 0) for node in nodes)
