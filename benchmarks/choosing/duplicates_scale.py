"""Measures time and memory of grouping near hashes, for growing numbers of them, with planted groups.

Four fifths of the hashes are random; each other one is a copy of one of these with up to 3 bits flipped. With --skewed
most bits are nearly constant, as in drawings. Each size runs in a process of its own; its memory is the peak of that
process (ru_maxrss), with NumPy, SciPy and PyArrow loaded.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.common.command_line import add_cores, at_least, make_parser, run_benchmark, run_module, say
from benchmarks.common.report import goal, print_goals, print_table
from library.choosing.duplicates.groups import near_groups
from library.choosing.duplicates.neighbours import HASH_BITS, Hashes

_GOAL_HASHES, _GOAL_S, _GOAL_GB = 1_000_000, 60, 2
_MOST_FLIPS = 3


def main() -> int:
    """Returns the exit code."""
    if len(sys.argv) == 5 and sys.argv[1] == "--one":
        json.dump(_one(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "skewed"), sys.stdout)
        return 0
    parser = make_parser(__file__, __doc__, "", "--hashes 100000 1000000 --radius 8 --out /tmp/results")
    add_cores(parser)
    sizes = [100_000, 1_000_000, 10_000_000]
    parser.add_argument(
        "--hashes", type=at_least(100), nargs="+", default=sizes, help="numbers of hashes (1e5 1e6 1e7)"
    )
    parser.add_argument("--radius", type=at_least(0), nargs="+", default=[4], help="the most different bits (4)")
    parser.add_argument("--skewed", action="store_true", help="hashes whose bits are mostly constant")
    parser.add_argument("--rounds", type=at_least(1), default=1, help="runs of each (1)")
    return run_benchmark(__file__, parser, _measure, _print)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    runs: list[dict[str, Any]] = []
    kind = "skewed" if options.skewed else "even"
    for radius in options.radius:
        for hashes in options.hashes:
            for _ in range(options.rounds):
                runs.append(run_module("benchmarks.choosing.duplicates_scale", "--one", str(hashes), str(radius), kind))
                say(str(runs[-1]))
    at_goal = [run for run in runs if run["hashes"] == _GOAL_HASHES and run["radius"] == 4]
    goals = [
        goal(f"seconds for {_GOAL_HASHES:,} hashes, radius 4", [run["s"] for run in at_goal], at_most=_GOAL_S),
        goal(f"GB for {_GOAL_HASHES:,} hashes, radius 4", [run["peak_gb"] for run in at_goal], at_most=_GOAL_GB),
    ]
    return {"parameters": {"kind": kind, "most_flips": _MOST_FLIPS}, "runs": runs, "goals": goals}


def _one(number: int, radius: int, skewed: bool) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    centres = _centres(rng, number - number // 5, skewed)
    of = rng.integers(0, len(centres), number // 5)
    copies = centres[of]
    for _ in range(min(radius, _MOST_FLIPS)):
        copies ^= np.uint64(1) << rng.integers(0, HASH_BITS, len(copies), dtype=np.uint64)
    hashes = np.concatenate([centres, copies])
    start = time.perf_counter()
    groups = near_groups(hashes, radius)
    seconds = time.perf_counter() - start
    return {
        "hashes": number,
        "radius": radius,
        "s": round(seconds, 2),
        "us_per_hash": round(1e6 * seconds / number, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
        "groups": int(groups.max()) + 1,
        "planted_missed": int((groups[of] != groups[len(centres) :]).sum()),
    }


def _centres(rng: np.random.Generator, number: int, skewed: bool) -> Hashes:
    hashes = rng.integers(0, 2**64, number, dtype=np.uint64)
    if skewed:  # every other bit is set in 1 of 16 hashes only
        rare = np.uint64(0x5555555555555555)
        for _ in range(3):
            hashes &= rng.integers(0, 2**64, number, dtype=np.uint64) | ~rare
    return hashes


def _print(result: Mapping[str, Any]) -> None:
    columns = ("hashes", "radius", "s", "us_per_hash", "peak_gb", "groups", "planted_missed")
    print_table("", columns, [[run[name] for name in columns] for run in result["runs"]])
    print_goals(result["goals"])


if __name__ == "__main__":
    sys.exit(main())
