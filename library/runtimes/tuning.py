"""How many pictures a batch should have on this machine: measured, not guessed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from library.bundle import Bundle, Prepared
from library.runtimes.runtime import Runtime

_SIZES = (1, 2, 4, 8, 16, 32, 64)
#: A smaller batch is taken where it reaches this share of the best rate: it answers sooner.
_GOOD_ENOUGH = 0.95
_MOST_WAIT_MS = 10.0
_REPEATS = 20


@dataclass(frozen=True)
class Tuning:
    """What a short probe found.

    Attributes:
        batch_size: the smallest that comes within 5% of the best rate.
        batch_wait_ms: how long an idle model may wait for a batch to fill: what one picture saves by being computed in
            such a batch and not alone, latency(1) - latency(batch_size) / batch_size. To wait longer would cost each
            picture more than the batch gives it back. At most 10 ms.
        latency_ms: of a batch, by its size.
        pictures_per_s: likewise.
    """

    batch_size: int
    batch_wait_ms: float
    latency_ms: Mapping[int, float]
    pictures_per_s: Mapping[int, float]

    def described(self) -> dict[str, Any]:
        """Plain data; JSON makes the sizes text."""
        return dataclasses.asdict(self)


def tune(runtime: Runtime, bundle: Bundle, *, sizes: Sequence[int] = _SIZES, probe_s: float = 5.0) -> Tuning:
    """Measure batches of each size, smallest first, until the time is used up.

    Args:
        runtime: what computes.
        bundle: whose pictures they are.
        sizes: pictures in a batch, ascending.
        probe_s: how long it may take in all, in seconds; one batch of the smallest size is always measured.
    """
    end = perf_counter() + probe_s
    latency_ms: dict[int, float] = {}
    for size in sizes:
        batch = [noise(bundle, number) for number in range(size)]
        share = (end - perf_counter()) / (len(sizes) - len(latency_ms))
        expected_s = 0.0 if not latency_ms else list(latency_ms.values())[-1] / 1000 * 2
        if latency_ms and expected_s > end - perf_counter():
            break
        latency_ms[size] = 1000 * _shortest(runtime, batch, min(share, end - perf_counter()))
    rates = {size: 1000 * size / latency for size, latency in latency_ms.items()}
    best = max(rates.values())
    size = next(size for size, rate in rates.items() if rate >= _GOOD_ENOUGH * best)
    saved_ms = latency_ms[sizes[0]] / sizes[0] - latency_ms[size] / size
    return Tuning(size, min(max(saved_ms, 0.0), _MOST_WAIT_MS), latency_ms, rates)


def _shortest(runtime: Runtime, batch: Sequence[Prepared], seconds: float) -> float:
    """Of a few runs: what others do on the machine only ever makes a run longer."""
    end = perf_counter() + seconds
    spent: list[float] = []
    while len(spent) < 2 or (len(spent) < _REPEATS and perf_counter() < end):
        began = perf_counter()
        runtime.probabilities(batch)
        spent.append(perf_counter() - began)
        if spent[-1] > seconds:
            break
    return min(spent)


def noise(bundle: Bundle, seed: int) -> Prepared:
    """A prepared picture of random pixels; for an ensemble one a member."""
    members: Sequence[Bundle] = getattr(bundle.network, "_members", ())
    if members:
        return tuple(noise(member, seed) for member in members)
    height, width = bundle.record.input_size
    return np.random.default_rng(seed).integers(0, 256, (height, width, bundle.record.channels), np.uint8)
