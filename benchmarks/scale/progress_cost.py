"""What one look costs the driver, by the number of calls that are out; in a process of its own.

    python -m benchmarks.scale.progress_cost 64 640 6400

Each worker has a shard in work and one waiting: a cluster of 3,200 workers has 6,400 calls out, 3,200 shards in work.
`look_s` is a look for finished shards, `board_s` one at the live status for the progress display.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from cluster.connection.session import connect

_LOOKS = 20


class _Blocked:
    """An actor whose calls stay pending."""

    def block(self) -> None:
        threading.Event().wait()

    def nothing(self) -> None: ...


def main() -> None:
    """Seconds of a look by number of calls, as JSON on stdout."""
    numbers = sorted(int(number) for number in sys.argv[1:])
    with connect("local", num_cpus=1):
        json.dump({"look_s": _looks(numbers), "board_s": _looks_at_the_board(numbers)}, sys.stdout)


def _looks(numbers: list[int]) -> dict[str, float]:
    import ray

    actor: Any = ray.remote(num_cpus=0)(_Blocked)
    blocked, free = actor.remote(), actor.remote()
    blocked.block.remote()
    out: list[Any] = []
    seconds_by_number: dict[str, float] = {}
    for number in numbers:
        out += [blocked.nothing.remote() for _ in range(number - len(out))]
        done = [free.nothing.remote() for _ in range(_LOOKS)]
        ray.get(done)
        start = time.perf_counter()
        for _ in range(_LOOKS):
            ready, _ = ray.wait([*out, *done], num_returns=len(out) + len(done), timeout=0)
            assert len(ready) == _LOOKS
        seconds_by_number[str(number)] = round((time.perf_counter() - start) / _LOOKS, 6)
    ray.kill(blocked)
    return seconds_by_number


def _looks_at_the_board(numbers: list[int]) -> dict[str, float]:
    from jobs.progress import status
    from jobs.progress.status import Count

    seconds_by_number: dict[str, float] = {}
    for number in numbers:
        for shard in range(number // 2):
            status.begin_shard("run", f"s3://bucket/made/part-{shard:06d}")
            status.put_count("run", f"s3://bucket/made/part-{shard:06d}", Count(pictures=shard))
        start = time.perf_counter()
        counts = status.counts_in_progress("run")
        seconds_by_number[str(number)] = round(time.perf_counter() - start, 6)
        assert len(counts) == number // 2
        status.clear("run")
    return seconds_by_number


if __name__ == "__main__":
    main()
