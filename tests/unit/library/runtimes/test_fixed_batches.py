"""Batches of a few fixed sizes give the network's own probabilities; on the CPU, where the same code runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from library.bundle.bundle import Bundle
from library.errors import StriateError
from library.runtimes import onnx_session
from library.runtimes.compiled import fixed_batches, in_fixed_batches
from library.runtimes.graph import onnx_graph
from library.runtimes.onnx_session import LARGEST, open_on_gpu, padded_size
from library.runtimes.parity import TOLERANCE, check, samples
from tests.bundles import PROBABILITY_TOLERANCE, make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    uri = make_bundle(tmp_path_factory.mktemp("bundle"), model="resnet9(width=4)", size=32)
    return Bundle.load(uri, "cpu")


class Recorder:
    """A network that records the shapes of its batches."""

    def __init__(self, bundle: Bundle) -> None:
        self._network: Any = bundle.model
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(batch.shape))
        return self._network(batch)


def test_the_size_of_a_batch_is_the_next_power_of_two() -> None:
    assert [padded_size(pictures) for pictures in (1, 2, 3, 4, 5, 33, 64)] == [1, 2, 4, 4, 8, 64, 64]
    assert all(pictures <= padded_size(pictures) < 2 * pictures for pictures in range(1, LARGEST + 1))


def test_every_number_of_pictures_gives_the_networks_probabilities(bundle: Bundle) -> None:
    network = Recorder(bundle)
    compute = fixed_batches(bundle, network)
    pictures = samples(bundle, 2 * LARGEST + 5)
    expected = bundle.probabilities(pictures)
    # Large batches first: their remains fill the smaller ones, and must not reach the answers.
    for count in (len(pictures), LARGEST, 33, 7, 5, 3, 2, 1, 0):
        rows = compute(pictures[:count])
        np.testing.assert_allclose(rows, expected[:count], rtol=0, atol=PROBABILITY_TOLERANCE)
    assert {shape[0] for shape in network.shapes} == {1, 2, 4, 8, 64}
    assert {shape[1:] for shape in network.shapes} == {(3, 32, 32)}


def test_later_batches_leave_earlier_answers_alone(bundle: Bundle) -> None:
    compute = fixed_batches(bundle, bundle.model)
    pictures = samples(bundle, 8)
    first = compute(pictures[:4])
    before = first.copy()
    compute(pictures[4:])
    np.testing.assert_array_equal(first, before)


def test_bf16_in_fixed_batches_is_within_its_tolerance(bundle: Bundle) -> None:
    record = bundle.record.model_copy(update={"precision": "bf16"})
    half = Bundle.of_model(record, bundle.model, "cpu")
    difference = check(half, in_fixed_batches(half))
    assert difference <= PROBABILITY_TOLERANCE
    assert np.abs(in_fixed_batches(half)(samples(half, 4)) - bundle.probabilities(samples(bundle, 4))).max() > 0


def test_other_dtypes_go_to_the_bundle_and_errors_name_the_cause(bundle: Bundle) -> None:
    wide = [np.asarray(picture).astype(np.uint16) * 257 for picture in samples(bundle, 3)]
    np.testing.assert_array_equal(in_fixed_batches(bundle)(wide), bundle.probabilities(wide))
    with pytest.raises(StriateError, match="the network fails: ValueError"):
        in_fixed_batches(bundle)([np.zeros((5, 5, 3), np.uint8)])


def test_onnx_runtime_for_the_cpu_alone_says_what_a_gpu_needs() -> None:
    with pytest.raises(StriateError, match="a GPU needs the package onnxruntime-gpu"):
        open_on_gpu(b"", 3, lambda pictures: np.zeros((len(pictures), 3), np.float32), 0)


def test_onnx_runtimes_padded_batches_give_the_same_rows(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The CPU's own provider stands in for a GPU's: the padding is the same.
    monkeypatch.setattr(onnx_session, "_GPU_PROVIDERS", ("CPU",))
    monkeypatch.setattr(onnx_session, "LARGEST", 8)
    session: Any = onnx_session._Session  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(onnx_session, "_Session", lambda graph, threads, _: session(graph, threads))
    opened = open_on_gpu(onnx_graph(bundle), 3, bundle.probabilities, 0)
    assert (opened.provider, opened.lanes) == ("CPU", 1)
    pictures = samples(bundle, 21)
    for count in (21, 8, 5, 1):
        expected = bundle.probabilities(pictures[:count])
        np.testing.assert_allclose(opened.compute(pictures[:count]), expected, rtol=0, atol=TOLERANCE)
