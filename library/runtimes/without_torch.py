"""A single network of a bundle in ONNX Runtime, for a process that does not import torch.

graph = exported_graph(uri, record.id)          # once: from the cache, or by torch
classifier = GraphClassifier(uri, record, graph, threads=1)
classifier.probabilities([classifier.prepare(data)])
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from library.bundle.description import BundleRecord, Prediction, ranked
from library.errors import StriateError
from library.imaging import codec
from library.imaging.picture import Pixels
from library.pipeline.inputs import InputPipeline, Prepared
from library.runtimes.kept_graphs import kept
from library.runtimes.onnx_session import open_graph
from library.runtimes.parity import check_exported


class _Network(Protocol):
    def probabilities(self, pictures: Sequence[Prepared], /) -> NDArray[np.float32]: ...

    def features(self, pictures: Sequence[Prepared], /) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...


class GraphClassifier:
    """What `library.bundle.bundle.Bundle` does to classify pictures, by its exported graph, on the CPU.

    Pictures of uint16 and float32 and `features` need the network itself, and torch with it: both are loaded then.

    Args:
        uri: the bundle's folder, normalized.
        record: the bundle's record, of a single network.
        graph: what `exported_graph` returns.
        threads: CPU threads that compute; the same batches give the same bytes with the same number of threads.

    Attributes:
        record: the bundle's record.
        inputs: makes the network's input of a picture.
        difference: largest difference from the bundle's own probabilities in the check.

    Raises:
        StriateError: ONNX Runtime cannot run the graph, or it gives other answers than the bundle.
    """

    def __init__(self, uri: str, record: BundleRecord, graph: bytes, *, threads: int) -> None:
        self._uri, self.record, self._threads, self._id = uri, record, threads, record.id
        self.inputs = InputPipeline.parse(record.steps, record.fit, record.input_size, record.channels)
        opened = open_graph(graph, len(record.classes), self._by_network, threads)
        self._compute = opened.compute
        try:
            self.difference = check_exported(record, opened.compute, opened.facts)
        except StriateError as error:
            raise StriateError(f"runtime 'onnx': {error}; the runtime eager takes every bundle") from error

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the probabilities."""
        return self.record.classes

    def prepare(self, data: bytes, limits: codec.Limits = codec.DEFAULT_LIMITS, /, **columns: Any) -> Pixels:
        """Decodes a picture and makes the model's input of it; see `Bundle.prepare`."""
        return self.inputs.prepare(data, limits, **columns)

    def prepare_pixels(self, pixels: Pixels, /, **columns: Any) -> Pixels:
        """Like `prepare`, from a decoded picture (height x width x channels)."""
        return self.inputs.prepare_pixels(pixels, **columns)

    def probabilities(self, pictures: Sequence[Prepared]) -> NDArray[np.float32]:
        """Probabilities of prepared pictures, N x classes; each row sums to 1."""
        return self._compute(pictures)

    def features(self, pictures: Sequence[Prepared]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The head's inputs for prepared pictures (N x features), and the network's own probabilities."""
        return self._network.features(pictures)

    def ranked(self, probabilities: NDArray[np.float32], top_k: int = 5) -> list[Prediction]:
        """Predictions from rows of finite probabilities (N x classes)."""
        return ranked(self.record, self._id, probabilities, top_k)

    def _by_network(self, pictures: Sequence[Prepared]) -> NDArray[np.float32]:
        return self._network.probabilities(pictures)

    @cached_property
    def _network(self) -> _Network:
        import torch

        from library.bundle.bundle import Bundle

        torch.set_num_threads(self._threads)
        return Bundle.load(self._uri, "cpu", self._id)


def exported_graph(uri: str, bundle_id: str) -> bytes:
    """Returns a single network of a bundle as ONNX, from the cache or, with torch, from its weights.

    Args:
        uri: the bundle's folder, normalized.
        bundle_id: the bundle's id.

    Raises:
        UsageError: there is no bundle at `uri`.
        StriateError: the bundle was replaced, or cannot be written as ONNX.
    """

    def export() -> bytes:
        from library.bundle.bundle import Bundle
        from library.runtimes.graph import onnx_graph

        try:
            return onnx_graph(Bundle.load(uri, "cpu", bundle_id))
        except StriateError as error:
            raise StriateError(f"runtime 'onnx': {error}; the runtime eager takes every bundle") from error

    return kept(bundle_id, export)
