"""Simulates a shard job on large clusters by arithmetic: workers that take a measured time, and one driver.

The driver does one thing after another: it looks for what is done, and for each finished shard it keeps the report and
hands out the next. A worker has one shard in work and one waiting. Storage and network have no limit here, and all
workers are up at the beginning: what comes out is the most that the driver allows.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Costs:
    """The costs measured on this machine.

    Attributes:
        shard_s: seconds of a worker for a shard, one figure a shard seen.
        driver_s: seconds of the driver for a shard.
        look_s: seconds of one look for finished shards, by the number of calls that are out.
    """

    shard_s: Sequence[float]
    driver_s: float
    look_s: Mapping[int, float]

    def look(self, out: int) -> float:
        """Between two measured numbers on the straight line; past the last one in proportion."""
        known = sorted(self.look_s.items())
        if out <= known[0][0]:
            return known[0][1]
        for (low, at_low), (high, at_high) in itertools.pairwise(known):
            if out <= high:
                return at_low + (at_high - at_low) * (out - low) / (high - low)
        return known[-1][1] * out / known[-1][0]


def simulate(workers: int, shards: int, costs: Costs) -> dict[str, Any]:
    """Simulates one job.

    Returns:
        `seconds` in all; `busy`, the share of the workers' time in which they worked; `driver_busy`, the driver's.
    """
    times = itertools.cycle(costs.shard_s)
    queued = [0] * workers
    idle_from: list[float | None] = [0.0] * workers
    ends: list[tuple[float, int]] = []  # of shards in work
    left, done, now, worked, drove = shards, 0, 0.0, 0.0, 0.0

    def begin(worker: int, at: float) -> None:
        nonlocal worked
        took = next(times)
        worked += took
        idle_from[worker] = None
        heapq.heappush(ends, (at + took, worker))

    def hand_out(worker: int) -> None:
        nonlocal left
        if not left:
            return
        left -= 1
        if idle_from[worker] is None:
            queued[worker] += 1
        else:
            begin(worker, now)

    for worker in itertools.chain(range(workers), range(workers)):
        now += costs.driver_s
        drove += costs.driver_s
        hand_out(worker)
    while done < shards:
        now = max(now, ends[0][0])
        finished: list[int] = []
        while ends and ends[0][0] <= now:
            end, worker = heapq.heappop(ends)
            finished.append(worker)
            if queued[worker]:
                queued[worker] -= 1
                begin(worker, end)
            else:
                idle_from[worker] = end
        spent = costs.look(min(2 * workers, shards - done))
        now += spent
        drove += spent
        for worker in finished:
            now += costs.driver_s
            drove += costs.driver_s
            done += 1
            hand_out(worker)
    return {"seconds": now, "busy": worked / (workers * now), "driver_busy": min(1.0, drove / now)}
