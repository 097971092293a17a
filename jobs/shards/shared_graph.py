"""The exported graph of a classifier, made once for all workers of a job and handed to them by Ray's object store.

Without it every worker would import PyTorch and export the same graph, which takes longer than to predict thousands of
small pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from library.errors import StriateError
from library.runtimes.kept_graphs import found
from library.runtimes.without_torch import exported_graph
from library.steps.plugins import Plugin, install


@dataclass(frozen=True)
class SharedGraph:
    """The graph of a single network, or the promise of it; calling it waits for the graph and returns it.

    Attributes:
        uri: the bundle's folder, normalized.
        bundle_id: the bundle's id.
        reference: Ray's reference to the graph, or to the message of the error that prevented it.
    """

    uri: str
    bundle_id: str
    reference: Any

    def __call__(self) -> bytes:
        """Returns the graph; raises StriateError if the network cannot be exported."""
        try:
            outcome: bytes | str = ray.get(self.reference)
        except RayError:  # the node that held the graph is lost
            return exported_graph(self.uri, self.bundle_id)
        if isinstance(outcome, str):
            raise StriateError(outcome)
        return outcome


def share_graph(uri: str, bundle_id: str, plugins: Sequence[Plugin]) -> SharedGraph:
    """Puts a bundle's graph into the object store: the kept one, or else a task exports it while workers start.

    Args:
        uri: the bundle's folder, normalized.
        bundle_id: the bundle's id.
        plugins: the plugins that the bundle's input pipeline needs.
    """
    graph = found(bundle_id)
    if graph is not None:
        return SharedGraph(uri, bundle_id, ray.put(graph))
    # No CPU is reserved: the workers may have taken all of them, and wait for this task.
    task: Any = ray.remote(num_cpus=0)(_exported)
    return SharedGraph(uri, bundle_id, task.options(name="striate_export").remote(uri, bundle_id, list(plugins)))


def _exported(uri: str, bundle_id: str, plugins: Sequence[Plugin]) -> bytes | str:
    try:
        install(plugins)
        return exported_graph(uri, bundle_id)
    except StriateError as error:
        return str(error)
