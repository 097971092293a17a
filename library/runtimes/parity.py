"""Checks that a runtime gives the same answers as the bundle itself, on generated pictures.

Importing this module does not import torch: an exported graph carries the answers that it is checked with.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from library.bundle.description import BundleRecord
from library.errors import StriateError
from library.imaging.picture import Pixels
from library.pipeline.inputs import Prepared
from library.runtimes.onnx_session import Compute

#: Keys of an exported graph's metadata: the bundle's id, and the bundle's probabilities of `samples`.
_BUNDLE_ID, _EXPECTED = "striate.bundle_id", "striate.expected"

#: Batch sizes of a check; kernels are chosen by batch size.
CHECKED_BATCHES = (1, 2, 3, 8)
#: Largest allowed difference of a probability, in float32.
TOLERANCE = 1e-4
#: The same where either side computes in bfloat16, which has a precision of 8 bits.
BF16_TOLERANCE = 2e-2


class Disagreement(StriateError):
    """A runtime's answers differ from the bundle's."""


class _Device(Protocol):
    @property
    def type(self) -> str: ...


class Checked(Protocol):
    """The part of `library.bundle.bundle.Bundle` that a check needs."""

    @property
    def record(self) -> BundleRecord: ...

    @property
    def members(self) -> Sequence[Checked]: ...

    @property
    def device(self) -> _Device: ...

    def probabilities(self, pictures: Sequence[Prepared], /) -> NDArray[np.float32]: ...


def tolerance(bundle: Checked) -> float:
    """Largest allowed difference between two probabilities of one picture; an ensemble has its loosest member's."""
    if bundle.members:
        return max(map(tolerance, bundle.members))
    return _tolerance(bundle.record, bundle.device.type)


def _tolerance(record: BundleRecord, device: str) -> float:
    bf16 = record.precision == "bf16" or (record.precision == "auto" and device == "cuda")
    return BF16_TOLERANCE if bf16 else TOLERANCE


def check(bundle: Checked, compute: Compute, pictures: Sequence[Prepared] = ()) -> float:
    """Compares a runtime with the bundle, in batches of several sizes.

    Args:
        bundle: gives the expected probabilities.
        compute: the runtime to check.
        pictures: prepared pictures to compare on; eight `samples` by default.

    Returns:
        The largest difference of a probability.

    Raises:
        Disagreement: a probability differs by more than `tolerance`, or another class is the most probable and the two
            were not tied within it.
    """
    pictures = pictures or samples(bundle, max(CHECKED_BATCHES))
    return _largest(bundle.probabilities(pictures), compute, pictures, tolerance(bundle))


def expected_facts(bundle: Checked) -> Mapping[str, str]:
    """Returns the metadata with which `check_exported` checks the exported graph of a single network."""
    rows = bundle.probabilities(samples(bundle, max(CHECKED_BATCHES))).astype("<f4")
    return {_BUNDLE_ID: bundle.record.id, _EXPECTED: base64.b64encode(rows.tobytes()).decode()}


def check_exported(record: BundleRecord, compute: Compute, facts: Mapping[str, str]) -> float:
    """Compares an exported graph with the answers that its bundle gave when it was exported.

    Args:
        record: the bundle's record.
        compute: runs the graph on this processor.
        facts: the graph's metadata.

    Returns:
        The largest difference of a probability.

    Raises:
        Disagreement: the graph belongs to another bundle, or gives other answers.
    """
    if facts.get(_BUNDLE_ID) != record.id:
        raise Disagreement("the exported graph belongs to another bundle")
    rows = np.frombuffer(base64.b64decode(facts.get(_EXPECTED, "")), "<f4").reshape(-1, len(record.classes))
    pictures = _samples(record, max(CHECKED_BATCHES))
    if len(rows) != len(pictures):
        raise Disagreement(f"the exported graph has the answers for {len(rows)} pictures, not {len(pictures)}")
    return _largest(rows, compute, pictures, _tolerance(record, "cpu"))


def _largest(expected: NDArray[np.float32], compute: Compute, pictures: Sequence[Prepared], allowed: float) -> float:
    sizes = dict.fromkeys(min(size, len(pictures)) for size in CHECKED_BATCHES)
    return max(compare(expected[:size], compute(pictures[:size]), allowed) for size in sizes)


def compare(expected: NDArray[np.float32], got: NDArray[np.float32], allowed: float) -> float:
    """Largest difference between two tables of probabilities (N x classes); raises `Disagreement` like `check`."""
    if got.shape != expected.shape:
        raise Disagreement(f"its answers have the shape {got.shape}, the bundle's {expected.shape}")
    difference = float(np.abs(got - expected).max(initial=0.0))
    if not difference <= allowed:  # NaN too
        raise Disagreement(f"a probability differs by {difference:.2g} from the bundle's; {allowed:g} is allowed")
    rows = np.arange(len(expected))
    margins = expected.max(1) - expected[rows, got.argmax(1)] if len(expected) else np.zeros(0)
    if (margins > allowed).any():
        raise Disagreement(f"the most probable class is one that the bundle puts {float(margins.max()):.2g} lower")
    return difference


def noise(bundle: Checked, seed: int) -> Prepared:
    """A prepared picture of random pixels, uint8, height x width x channels; for an ensemble one per member."""
    if bundle.members:
        return tuple(noise(member, seed) for member in bundle.members)
    height, width = bundle.record.input_size
    return np.random.default_rng(seed).integers(0, 256, (height, width, bundle.record.channels), np.uint8)


def samples(bundle: Checked, count: int) -> list[Prepared]:
    """Prepared pictures, uint8: shapes as pictures have them, and noise, which reaches every weight.

    They depend only on `count` and the bundle's input size; for an ensemble each has one input per member.
    """
    if bundle.members:
        return list(zip(*(samples(member, count) for member in bundle.members), strict=True))
    return _samples(bundle.record, count)


def _samples(record: BundleRecord, count: int) -> list[Prepared]:
    height, width = record.input_size
    return [_sample(number, height, width, record.channels) for number in range(count)]


def _sample(number: int, height: int, width: int, channels: int) -> Pixels:
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    shapes = (
        rng.random((height, width)),
        (x + y) / 2,
        np.hypot(x - 0.5, y - 0.4) < 0.3,
        np.sin(2 * np.pi * (3 * x + 5 * y)) / 2 + 0.5,
        (np.floor(8 * x) + np.floor(8 * y)) % 2,
        np.exp(-8 * np.hypot(x - 0.3, y - 0.6)),
        np.ones_like(x),
        np.zeros_like(x),
    )
    shape: NDArray[np.float64] = np.asarray(shapes[number % len(shapes)], np.float64)
    low, high = rng.integers(0, 256, (2, channels)) * np.array([[0.4], [1.0]])
    grain = 6 * rng.standard_normal((height, width, channels))
    return np.clip(low + (high - low) * shape[:, :, None] + grain, 0, 255).astype(np.uint8)
