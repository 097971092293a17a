"""Whether a runtime gives the answers of the bundle itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from library.bundle.bundle import Bundle, Prepared
from library.errors import StriateError
from library.runtimes.runtime import Compute
from library.runtimes.samples import samples

#: Sizes of the batches of a check: kernels are chosen by them.
CHECKED_BATCHES = (1, 2, 3, 8)
#: Largest difference of a probability, in float32.
TOLERANCE = 1e-4
#: Likewise where one side or both compute in bfloat16, whose numbers have 8 bits.
BF16_TOLERANCE = 2e-2


class Disagreement(StriateError):
    """Answers are not those of the bundle."""


def tolerance(bundle: Bundle) -> float:
    """What may lie between two probabilities of one picture; an ensemble's is that of its loosest member."""
    if bundle.members:
        return max(map(tolerance, bundle.members))
    precision = bundle.record.precision
    bf16 = precision == "bf16" or (precision == "auto" and bundle.device.type == "cuda")
    return BF16_TOLERANCE if bf16 else TOLERANCE


def check(bundle: Bundle, compute: Compute, pictures: Sequence[Prepared] = ()) -> float:
    """Compare answers with the bundle's own, in batches of several sizes.

    Args:
        bundle: what is right.
        compute: what is checked.
        pictures: prepared ones to compare on; eight made-up ones by default.

    Returns:
        The largest difference of a probability.

    Raises:
        Disagreement: a probability differs by more than `tolerance`, or another class is the most probable and the two
            were not tied within it.
    """
    pictures = pictures or samples(bundle, max(CHECKED_BATCHES))
    expected = bundle.probabilities(pictures)
    most = 0.0
    for size in dict.fromkeys(min(size, len(pictures)) for size in CHECKED_BATCHES):
        most = max(most, compare(expected[:size], compute(pictures[:size]), tolerance(bundle)))
    return most


def compare(expected: NDArray[np.float32], got: NDArray[np.float32], allowed: float) -> float:
    """Largest difference between two tables of probabilities (N x classes); raises `Disagreement` as `check`."""
    if got.shape != expected.shape:
        raise Disagreement(f"its answers have the shape {got.shape}, the bundle's {expected.shape}")
    difference = float(np.abs(got - expected).max(initial=0.0))
    if not difference <= allowed:  # NaN too
        raise Disagreement(f"a probability differs by {difference:.2g} from the bundle's; {allowed:g} is allowed")
    rows = np.arange(len(expected))
    lost = expected.max(1) - expected[rows, got.argmax(1)] if len(expected) else np.zeros(0)
    if (lost > allowed).any():
        raise Disagreement(f"another class is the most probable, which the bundle puts {float(lost.max()):.2g} lower")
    return difference
