"""One way of computing a bundle's probabilities, ready to be asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from library.bundle.bundle import Prepared

#: Prepared pictures to probabilities, N x classes; the sum of each row is 1.
Compute: TypeAlias = Callable[[Sequence[Prepared]], NDArray[np.float32]]


@dataclass(frozen=True)
class Runtime:
    """What a bundle's probabilities come from; made by `open_runtime`.

    Any thread may ask it, but no more at once than it has lanes.

    Attributes:
        name: eager, compile or onnx; for an ensemble of several kinds joined by `+`.
        device: cpu, cuda, cuda:1 ...
        threads: CPU threads that compute.
        compute: see `probabilities`.
        difference: largest difference of a probability from the bundle's own that its check saw; 0 for eager.
        passed_over: the others, each with why it was not taken.
        lanes: how many may ask at once. With more than one, each who asks computes pictures of its own beside the
            others, and batches gain nothing.
    """

    name: str
    device: str
    threads: int
    compute: Compute = field(repr=False)
    difference: float = 0.0
    passed_over: Mapping[str, str] = field(default_factory=dict[str, str])
    lanes: int = 1

    def probabilities(self, pictures: Sequence[Prepared]) -> NDArray[np.float32]:
        """Of prepared pictures (`Bundle.prepare`), N x classes, in the order of the bundle's classes."""
        return self.compute(pictures)

    def described(self) -> dict[str, Any]:
        """Plain data, for people and JSON."""
        return {
            "name": self.name,
            "device": self.device,
            "threads": self.threads,
            "difference": self.difference,
            "passed_over": dict(self.passed_over),
        }
