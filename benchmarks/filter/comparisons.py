"""The comparisons of filter_throughput.py: their goals, and the tables of its result."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.common.measuring import RATE, STEADY
from benchmarks.common.report import goal, median_of, print_goals, print_table
from benchmarks.filter.contestant import Results

_LIMIT = ("limit_memory", RATE)
_MAX_WORKER_MB = 500
_MAX_MEMORY_GROWTH = 1.1
_MAX_FIRST_SHARD_S = 3.0

# What is compared, numerator and denominator (contestant and figure), and the goal: the least ratio.
_COMPARISONS: tuple[tuple[str, tuple[str, str], tuple[str, str], float | None], ...] = (
    ("blur, steady state / ray.util.ActorPool's", ("striate", STEADY), ("actor_pool", STEADY), 0.97),
    ("blur, steady state / limit in memory", ("striate", STEADY), _LIMIT, 0.86),
    ("blur, whole call / limit in memory", ("striate", RATE), _LIMIT, 0.70),
    ("blur, whole call / Pillow pool", ("striate", RATE), ("pillow", RATE), 2),
    ("blur, whole call / documented Ray Data", ("striate", RATE), ("ray_data", RATE), 2),
    ("selectors, steady state / limit in memory", ("striate_select", STEADY), _LIMIT, 5),
    ("selectors, whole call / limit in memory", ("striate_select", RATE), _LIMIT, 5),
    ("blur, steady state / limit, files", ("striate", STEADY), ("limit_files", RATE), None),
    ("blur, whole call / limit, files", ("striate", RATE), ("limit_files", RATE), None),
    ("blur, command line / limit in memory", ("command", RATE), _LIMIT, None),
    ("blur, whole call / ImageMagick, one process per core", ("striate", RATE), ("mogrify", RATE), None),
    ("blur, whole call / ImageMagick, its threads", ("striate", RATE), ("mogrify_threads", RATE), None),
    ("resize, whole call / Daft", ("striate_resize", RATE), ("daft_resize", RATE), None),
)


def goals(results: Results) -> list[dict[str, Any]]:
    """Returns all comparisons with their goals: rates by the median over the rounds, memory by its largest value.

    Memory is the kernel's high-water mark of the worst worker.
    """
    first_shard_s = list(_by_round(results, "striate", "first_shard_s").values())
    whole_mb = list(_by_round(results, "striate", "worker_peak_mb").values())
    third_mb = _by_round(results, "third", "worker_peak_mb").get(0)
    growth = [value / third_mb for value in whole_mb] if third_mb else []
    return [
        *(
            goal(title, _ratios(results, numerator, denominator), at_least=least)
            for title, numerator, denominator, least in _COMPARISONS
        ),
        goal("first shard, Ray is up (s)", first_shard_s, at_most=_MAX_FIRST_SHARD_S),
        goal("memory of a worker, all photos / a third", growth, at_most=_MAX_MEMORY_GROWTH, judged_by=max),
        goal("memory of a worker in MB (10^6 bytes)", whole_mb, at_most=_MAX_WORKER_MB, judged_by=max),
    ]


def _ratios(results: Results, numerator: tuple[str, str], denominator: tuple[str, str]) -> list[float]:
    """Returns the ratio of two contestants' figures for each round in which both were measured."""
    above, below = _by_round(results, *numerator), _by_round(results, *denominator)
    return [above[number] / below[number] for number in sorted(above.keys() & below.keys())]


def _by_round(results: Results, contestant: str, figure: str) -> dict[int, float]:
    """Returns one figure by round; empty if it was not measured."""
    rounds = results.get(contestant, ())
    if isinstance(rounds, str):
        return {}
    return {number: figures[figure] for number, figures in enumerate(rounds) if figures.get(figure) is not None}


def print_result(result: Mapping[str, Any]) -> None:
    """Prints rates, memory and comparisons."""
    photos, described = result["parameters"]["photos"], result["machine"]
    print(
        f"\n{photos['photos']:,} photos ({photos['distinct']} different, mean {photos['mean_pixels']:,} pixels and "
        f"{photos['mean_bytes'] / 1e3:.0f} kB), {described['cores_used']} cores of {described['cpu']}"
    )
    columns = (
        "contestant",
        "pictures",
        "whole s",
        "pictures/s",
        "min to max",
        "steady/s",
        "first shard s",
        "worker MB",
    )
    run = [summaries for summaries in result["contestants"].values() if "not_run" not in summaries]
    print_table("", columns, [_row(summaries) for summaries in run])
    for summaries in result["contestants"].values():
        if "not_run" in summaries:
            print(f"{summaries['what']}: not run: {summaries['not_run']}")
    print_goals(result["goals"])
    if photos["photos"] < 12_000:
        print("The goals are meant for 12,000 photos: with fewer, start-up weighs more.")


def _row(summaries: Mapping[str, Any]) -> tuple[str, ...]:
    rounds, rate = summaries["rounds"], summaries[RATE]
    return (
        summaries["what"],
        f"{rounds[0]['pictures']:,}",
        f"{statistics.median(figures['seconds'] for figures in rounds):.2f}",
        f"{rate['median']:,.0f}",
        f"{rate['min']:,.0f} to {rate['max']:,.0f}" if len(rounds) > 1 else "",
        f"{summaries[STEADY]['median']:,.0f}" if STEADY in summaries else "",
        median_of(rounds, "first_shard_s", 2),
        median_of(rounds, "worker_peak_mb", 0),
    )
