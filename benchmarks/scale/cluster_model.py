"""Simulates a shard job on large clusters from measured costs: many workers and one driver.

The driver does one thing at a time: it polls for finished shards, and for each of them keeps the report and hands out
the next shard. A worker has one shard in work and one waiting. Storage and network are unlimited, and all workers run
from the beginning, so the result is the most that the driver allows.
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
        shard_s: seconds that a worker needs for a shard, one value for each measured shard.
        driver_s: seconds that the driver needs for a shard.
        poll_s: seconds of one poll for finished shards, by the number of running calls.
    """

    shard_s: Sequence[float]
    driver_s: float
    poll_s: Mapping[int, float]

    def poll(self, calls: int) -> float:
        """Returns the seconds of a poll with `calls` running calls, interpolated or (above all) in proportion."""
        known = sorted(self.poll_s.items())
        if calls <= known[0][0]:
            return known[0][1]
        for (low, at_low), (high, at_high) in itertools.pairwise(known):
            if calls <= high:
                return at_low + (at_high - at_low) * (calls - low) / (high - low)
        return known[-1][1] * calls / known[-1][0]


def simulate(workers: int, shards: int, costs: Costs) -> dict[str, Any]:
    """Simulates one job.

    Returns:
        `seconds` of the whole job; `busy`, the share of the time in which workers work; `driver_busy`,
        the share of the time in which the driver works.
    """
    times = itertools.cycle(costs.shard_s)
    queued = [0] * workers
    idle_from: list[float | None] = [0.0] * workers
    ends: list[tuple[float, int]] = []  # end and worker of each shard in work
    left, done, now, worker_busy_s, driver_busy_s = shards, 0, 0.0, 0.0, 0.0

    def begin(worker: int, at: float) -> None:
        nonlocal worker_busy_s
        shard_s = next(times)
        worker_busy_s += shard_s
        idle_from[worker] = None
        heapq.heappush(ends, (at + shard_s, worker))

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
        driver_busy_s += costs.driver_s
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
        spent = costs.poll(min(2 * workers, shards - done))
        now += spent
        driver_busy_s += spent
        for worker in finished:
            now += costs.driver_s
            driver_busy_s += costs.driver_s
            done += 1
            hand_out(worker)
    return {"seconds": now, "busy": worker_busy_s / (workers * now), "driver_busy": min(1.0, driver_busy_s / now)}
