"""Measures what polling costs the driver of a shard job, by the number of running calls.

    python -m benchmarks.scale.progress_cost 64 640 6400

Each worker has one shard in work and one waiting: with 3,200 workers, 6,400 calls are running. Prints as JSON the
seconds of one poll by number of calls: `poll_s` for finished shards, `progress_poll_s` for the progress display.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from typing import Any

from benchmarks.common.command_line import at_least
from cluster.connection.session import connect

_POLLS = 20


class _Blocked:
    """An actor whose calls stay pending after `block`."""

    def block(self) -> None:
        threading.Event().wait()

    def nothing(self) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calls", type=at_least(1), nargs="+", help="numbers of running calls")
    calls = sorted(parser.parse_args().calls)
    with connect("local", num_cpus=1):
        json.dump({"poll_s": _shard_polls(calls), "progress_poll_s": _progress_polls(calls)}, sys.stdout)


def _shard_polls(numbers: list[int]) -> dict[str, float]:
    import ray

    actor: Any = ray.remote(num_cpus=0)(_Blocked)
    blocked, free = actor.remote(), actor.remote()
    blocked.block.remote()
    pending: list[Any] = []
    seconds_by_number: dict[str, float] = {}
    for number in numbers:
        pending += [blocked.nothing.remote() for _ in range(number - len(pending))]
        done = [free.nothing.remote() for _ in range(_POLLS)]
        ray.get(done)
        start = time.perf_counter()
        for _ in range(_POLLS):
            ready, _ = ray.wait([*pending, *done], num_returns=len(pending) + len(done), timeout=0)
            assert len(ready) == _POLLS
        seconds_by_number[str(number)] = round((time.perf_counter() - start) / _POLLS, 6)
    ray.kill(blocked)
    return seconds_by_number


def _progress_polls(numbers: list[int]) -> dict[str, float]:
    from jobs.progress import status
    from jobs.progress.status import Count

    seconds_by_number: dict[str, float] = {}
    for number in numbers:
        for shard in range(number // 2):
            status.begin_shard("run", f"s3://bucket/edges/part-{shard:06d}")
            status.put_count("run", f"s3://bucket/edges/part-{shard:06d}", Count(pictures=shard))
        start = time.perf_counter()
        counts = status.counts_in_progress("run")
        seconds_by_number[str(number)] = round(time.perf_counter() - start, 6)
        assert len(counts) == number // 2
        status.clear("run")
    return seconds_by_number


if __name__ == "__main__":
    main()
