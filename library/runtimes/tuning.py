"""Measures which batch size serves a bundle best on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from library.bundle.bundle import Bundle
from library.pipeline.inputs import Prepared
from library.runtimes.onnx_session import LARGEST, padded_size
from library.runtimes.parity import noise
from library.runtimes.runtime import Runtime

_SIZES = (1, 2, 4, 8, 16, 32, 64)
#: The smallest batch that reaches this share of the best rate is chosen: it answers sooner.
_GOOD_ENOUGH = 0.95
#: This many sizes in a row without a gain end the probe: larger ones would only take memory.
_MAX_WITHOUT_GAIN = 2
_MAX_WAIT_MS = 10.0
_REPEATS = 20


@dataclass(frozen=True)
class Tuning:
    """The batch size and waiting time to serve with, and the measurements behind them.

    Attributes:
        batch_size: the smallest within 5% of the best rate.
        batch_wait_ms: how long an idle model may wait for a batch to fill: the time that one picture saves in such a
            batch, latency(1) - latency(batch_size) / batch_size. Waiting longer costs each picture more than it saves.
            At most 10 ms; 0 where batches save nothing.
        latency_ms: milliseconds per batch, by batch size.
        pictures_per_s: pictures per second, by batch size.
    """

    batch_size: int
    batch_wait_ms: float
    latency_ms: Mapping[int, float]
    pictures_per_s: Mapping[int, float]

    def described(self) -> dict[str, Any]:
        """The tuning as plain data."""
        return dataclasses.asdict(self)


def tune(runtime: Runtime, bundle: Bundle, *, sizes: Sequence[int] = _SIZES, probe_s: float = 5.0) -> Tuning:
    """Measures batches of each size, smallest first.

    Stops when the time is used up, when two sizes in a row gain nothing, or when a GPU's memory is full. A runtime with
    several lanes is measured with the smallest size only.

    Args:
        runtime: the runtime to measure.
        bundle: decides the size of the pictures.
        sizes: batch sizes to try, ascending.
        probe_s: time limit in seconds; the smallest size is always measured.
    """
    end = perf_counter() + probe_s
    latency_ms: dict[int, float] = {}
    best, without_gain = 0.0, 0
    for size in sizes if runtime.lanes == 1 else sizes[:1]:
        # The first call of a size may compile or plan for it, hence twice the time that the previous size predicts.
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
        if without_gain == _MAX_WITHOUT_GAIN:
            break
    return _chosen(latency_ms)


def warm_up(runtime: Runtime, bundle: Bundle, batch_size: int) -> None:
    """Computes a batch of each size that is served: the first of a size takes many times as long as the second.

    Args:
        runtime: on a GPU it computes in batches of 1, 2, 4 ... pictures, elsewhere in batches of any size.
        bundle: decides the size of the pictures.
        batch_size: most pictures in a batch.
    """
    smaller = range(1, min(batch_size, LARGEST + 1)) if runtime.device != "cpu" else ()
    for size in sorted({*map(padded_size, smaller), batch_size}):
        runtime.probabilities([noise(bundle, number) for number in range(size)])


def _chosen(latency_ms: Mapping[int, float]) -> Tuning:
    rates = {size: 1000 * size / latency for size, latency in latency_ms.items()}
    best, first = max(rates.values()), min(rates)
    chosen = next(size for size in sorted(rates) if rates[size] >= _GOOD_ENOUGH * best)
    saved_ms = latency_ms[first] / first - latency_ms[chosen] / chosen
    return Tuning(chosen, min(max(saved_ms, 0.0), _MAX_WAIT_MS), latency_ms, rates)


def _shortest(runtime: Runtime, pictures: Sequence[Prepared], seconds: float) -> float:
    """Seconds of the shortest of several runs: other work on the machine can only make a run longer."""
    end = perf_counter() + seconds
    durations: list[float] = []
    while len(durations) < 2 or (len(durations) < _REPEATS and perf_counter() < end):
        began = perf_counter()
        runtime.probabilities(pictures)
        durations.append(perf_counter() - began)
    return min(durations)
