"""How many pictures a batch should have on this machine: measured, not guessed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from library.bundle.bundle import Bundle, Prepared
from library.runtimes.runtime import Runtime
from library.runtimes.samples import noise

_SIZES = (1, 2, 4, 8, 16, 32, 64)
#: A smaller batch is taken where it reaches this share of the best rate: it answers sooner.
_GOOD_ENOUGH = 0.95
#: So many sizes in a row that gain nothing end the probe: larger ones would only take memory.
_WITHOUT_GAIN = 2
_MOST_WAIT_MS = 10.0
_REPEATS = 20


@dataclass(frozen=True)
class Tuning:
    """What a short probe found.

    Attributes:
        batch_size: the smallest that comes within 5% of the best rate.
        batch_wait_ms: how long an idle model may wait for a batch to fill: what one picture saves by being computed in
            such a batch and not alone, latency(1) - latency(batch_size) / batch_size. To wait longer would cost each
            picture more than the batch gives it back. At most 10 ms; 0 where batches gain nothing.
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
    """Measure batches of each size, smallest first.

    It ends when the time is used up, when two larger sizes in a row gain nothing, or when a GPU's memory is full. A
    runtime of several lanes is measured with the smallest only.

    Args:
        runtime: what computes.
        bundle: whose pictures they are.
        sizes: pictures in a batch, ascending.
        probe_s: how long it may take in all, in seconds; the smallest size is always measured.
    """
    end = perf_counter() + probe_s
    latency_ms: dict[int, float] = {}
    best, without_gain = 0.0, 0
    for size in sizes if runtime.lanes == 1 else sizes[:1]:
        # The first call of a size may compile or plan for it, hence twice the time of the size before.
        if latency_ms and perf_counter() + 4 * max(latency_ms.values()) / 1000 > end:
            break
        pictures = [noise(bundle, number) for number in range(size)]
        try:
            latency_ms[size] = 1000 * _shortest(runtime, pictures, (end - perf_counter()) / len(sizes))
        except torch.OutOfMemoryError:
            if not latency_ms:
                raise
            break
        rate = size / latency_ms[size]
        without_gain = 0 if rate > best / _GOOD_ENOUGH else without_gain + 1
        best = max(best, rate)
        if without_gain == _WITHOUT_GAIN:
            break
    return _chosen(latency_ms)


def _chosen(latency_ms: Mapping[int, float]) -> Tuning:
    rates = {size: 1000 * size / latency for size, latency in latency_ms.items()}
    best, first = max(rates.values()), min(rates)
    chosen = next(size for size in sorted(rates) if rates[size] >= _GOOD_ENOUGH * best)
    saved_ms = latency_ms[first] / first - latency_ms[chosen] / chosen
    return Tuning(chosen, min(max(saved_ms, 0.0), _MOST_WAIT_MS), latency_ms, rates)


def _shortest(runtime: Runtime, pictures: Sequence[Prepared], seconds: float) -> float:
    """Of several runs: what others do on the machine only ever makes a run longer."""
    end = perf_counter() + seconds
    spent: list[float] = []
    while len(spent) < 2 or (len(spent) < _REPEATS and perf_counter() < end):
        began = perf_counter()
        runtime.probabilities(pictures)
        spent.append(perf_counter() - began)
    return min(spent)
