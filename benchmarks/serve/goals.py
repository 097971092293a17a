"""The comparisons of serve_throughput.py: their goals, and the tables of its result."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common.report import goal, print_goals, print_table

_PEERS = ("fastapi", "litserve", "bentoml")

# Model, contestant in the denominator, the goal (the least ratio), and the numbers of connections.
_COMPARISONS: tuple[tuple[str, str, float | None, tuple[str, ...]], ...] = (
    ("resnet50", "limit", 0.85, ("16", "64")),
    *(("resnet50", peer, 1.0, ("16", "64")) for peer in _PEERS),
    *(("lenet5", peer, 1.0, ("1", "16", "64")) for peer in ("litserve", "bentoml")),
    ("lenet5", "fastapi", None, ("1", "16", "64")),
    ("lenet5", "limit", None, ("64",)),
    ("resnet50", "fastapi_plain", None, ("16", "64")),
    ("lenet5", "fastapi_plain", None, ("16", "64")),
)

# Goals of the open loop: what is measured, the least value, the greatest value, and the value of a run.
_OPEN: tuple[tuple[str, float | None, float | None, Callable[[Mapping[str, Any]], float | None]], ...] = (
    ("p99 / p50 at 80% load", None, 3.0, lambda run: _ratio(run["at_80_percent"]["good"])),
    ("refusal at 3x load, p99 in ms", None, 100.0, lambda run: run["at_300_percent"]["refused"]["p99_ms"]),
    (
        "memory, peak at 3x load / before",
        None,
        1.25,
        lambda run: run["memory_peak_mb"] / run["memory_before_mb"],
    ),
    ("requests/s after 3x load / before", 0.9, None, lambda run: run["afterwards_per_s"] / run["highest_per_s"]),
    (
        "at 3x load: broken and other answers",
        None,
        0.0,
        lambda run: sum(run["at_300_percent"]["other"].values()),
    ),
)


def goals(models: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns all comparisons, by the ratios of the rounds, and the goals of the open loop."""
    goals: list[dict[str, Any]] = []
    for model, other, least, concurrencies in _COMPARISONS:
        for connections in concurrencies:
            values = _ratios(models.get(model, {}), other, connections)
            goals.append(goal(f"{model}, {connections} connections: striate / {other}", values, at_least=least))
    for model, contestants in models.items():
        runs = [figures["open"] for figures in contestants.get("striate", []) if "open" in figures]
        for title, least, most, figure in _OPEN:
            values = [value for run in runs if (value := figure(run)) is not None]
            goals.append(goal(f"{model}, {title}", values, at_least=least, at_most=most))
    return goals


def _ratios(contestants: Mapping[str, Any], other: str, connections: str) -> list[float]:
    striate_rounds, other_rounds = contestants.get("striate", []), contestants.get(other, [])
    if isinstance(other_rounds, str):
        return []
    return [
        above / below
        for striate_round, other_round in zip(striate_rounds, other_rounds, strict=False)
        if (above := _rate(striate_round, connections)) is not None
        and (below := _rate(other_round, connections)) is not None
    ]


def _rate(figures: Mapping[str, Any], connections: str) -> float | None:
    """Returns requests per second; the limit has one rate for all numbers of connections."""
    if "closed" not in figures:
        return figures["requests_per_s"]
    run = figures["closed"].get(connections)
    return None if run is None else run["requests_per_s"]


def _ratio(latencies: Mapping[str, float | None]) -> float | None:
    middle, slow = latencies["p50_ms"], latencies["p99_ms"]
    return slow / middle if middle and slow else None


def print_result(result: Mapping[str, Any]) -> None:
    """Prints rates, latencies and memory of each model, medians over the rounds, and then the goals."""
    columns = (
        "contestant",
        "connections",
        "requests/s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "refused",
        "broken",
        "memory MB",
    )
    for model, contestants in result["models"].items():
        run = {name: rounds for name, rounds in contestants.items() if not isinstance(rounds, str)}
        print_table(model, columns, [row for name, rounds in run.items() for row in _rows(name, rounds)])
        for name, reason in contestants.items():
            if isinstance(reason, str):
                print(f"{name}: not run: {reason}")
    print_goals(result["goals"])


def _rows(name: str, rounds: Sequence[Mapping[str, Any]]) -> list[Sequence[str]]:
    if "closed" not in rounds[0]:
        rate = statistics.median(figures["requests_per_s"] for figures in rounds)
        return [(name, "", f"{rate:,.1f}", *[""] * 6)]
    memory = f"{statistics.median(figures['memory_after_mb'] for figures in rounds):,.0f}"
    rows: list[Sequence[str]] = []
    for connections in rounds[0]["closed"]:
        runs = [figures["closed"][connections] for figures in rounds]
        medians = (
            f"{statistics.median(run[figure] for run in runs):,.1f}"
            for figure in ("requests_per_s", "p50_ms", "p95_ms", "p99_ms")
        )
        counts = (f"{sum(run[figure] for run in runs):,}" for figure in ("refused", "broken"))
        rows.append((name, connections, *medians, *counts, memory))
    return rows
