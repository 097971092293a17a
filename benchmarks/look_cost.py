"""What one look for finished work costs the driver, by the number of calls that are out; in a process of its own.

    python -m benchmarks.look_cost 64 640 6400

Each worker has a shard in work and one waiting, so that a cluster of 3,200 workers has 6,400 calls out.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from cluster.session import connect

_LOOKS = 20


class _Blocked:
    """An actor that does nothing, and has much to do."""

    def block(self) -> None:
        time.sleep(3600)

    def nothing(self) -> None: ...


def main() -> None:
    """Seconds of a look by number of calls, as JSON on stdout."""
    with connect("local", num_cpus=1):
        json.dump(_measured([int(number) for number in sys.argv[1:]]), sys.stdout)


def _measured(numbers: list[int]) -> dict[str, float]:
    import ray

    actor: Any = ray.remote(num_cpus=0)(_Blocked)
    blocked, free = actor.remote(), actor.remote()
    blocked.block.remote()
    out: list[Any] = []
    found: dict[str, float] = {}
    for number in sorted(numbers):
        out += [blocked.nothing.remote() for _ in range(number - len(out))]
        done = [free.nothing.remote() for _ in range(_LOOKS)]
        ray.get(done)
        start = time.perf_counter()
        for _ in range(_LOOKS):
            ready, _ = ray.wait([*out, *done], num_returns=len(out) + len(done), timeout=0)
            assert len(ready) == _LOOKS
        found[str(number)] = round((time.perf_counter() - start) / _LOOKS, 6)
    ray.kill(blocked)
    return found


if __name__ == "__main__":
    main()
