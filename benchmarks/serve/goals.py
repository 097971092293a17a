"""The goals of serving, whether they were reached, and the tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common.measuring import spread

_OURS = "striate"
_PEERS = ("fastapi", "litserve", "bentoml")

# Model, who is below the line, the least ratio that is a goal, at which concurrencies.
_COMPARISONS: tuple[tuple[str, str, float | None, tuple[str, ...]], ...] = (
    ("resnet50", "limit", 0.85, ("16", "64")),
    *(("resnet50", peer, 1.0, ("16", "64")) for peer in _PEERS),
    *(("lenet5", peer, 1.0, ("1", "16", "64")) for peer in ("litserve", "bentoml")),
    ("lenet5", "fastapi", None, ("1", "16", "64")),
    ("lenet5", "limit", None, ("64",)),
    ("resnet50", "fastapi_plain", None, ("16", "64")),
    ("lenet5", "fastapi_plain", None, ("16", "64")),
)

# What of an open loop, at most or at least how much.
_OPEN: tuple[tuple[str, str, float, Callable[[Mapping[str, Any]], float | None]], ...] = (
    ("p99 / p50 at 80% load", "at_most", 3.0, lambda run: _ratio(run["at_80_percent"]["good"])),
    ("refusal at 3x load, p99 in ms", "at_most", 100.0, lambda run: run["at_300_percent"]["refused"]["p99_ms"]),
    ("memory, peak at 3x load / before", "at_most", 1.25, lambda run: run["memory_peak_mb"] / run["memory_before_mb"]),
    ("requests/s after 3x load / before", "at_least", 0.9, lambda run: run["afterwards_per_s"] / run["bears_per_s"]),
    ("at 3x load: broken and other answers", "at_most", 0.0, lambda run: sum(run["at_300_percent"]["other"].values())),
)


def goals(models: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every comparison by the ratios of the rounds, and what of the open loop was wanted.

    `reached` is judged by the median over the rounds; None where there is no goal or no measurement.
    """
    goals: list[dict[str, Any]] = []
    for model, other, least, concurrencies in _COMPARISONS:
        for connections in concurrencies:
            values = _ratios(models.get(model, {}), other, connections)
            title = f"{model}, {connections} connections: striate / {other}"
            goals.append(_judged(title, "at_least", least, values))
    for model, contestants in models.items():
        rounds = contestants.get(_OURS, [])
        runs = [figures["open"] for figures in rounds if "open" in figures] if not isinstance(rounds, str) else []
        for title, bound, value, figure in _OPEN:
            values = [number for run in runs if (number := figure(run)) is not None]
            goals.append(_judged(f"{model}, {title}", bound, value, values))
    return goals


def _judged(title: str, bound: str, value: float | None, values: Sequence[float]) -> dict[str, Any]:
    reached = None
    if values and value is not None:
        middle = statistics.median(values)
        reached = middle >= value if bound == "at_least" else middle <= value
    return {"what": title, bound: value, "ratio": spread(values) if values else None, "reached": reached}


def _ratios(contestants: Mapping[str, Any], other: str, connections: str) -> list[float]:
    our_rounds, peer_rounds = contestants.get(_OURS, []), contestants.get(other, [])
    if isinstance(our_rounds, str) or isinstance(peer_rounds, str):
        return []
    return [
        above / below
        for our_round, peer_round in zip(our_rounds, peer_rounds, strict=False)
        if (above := _rate(our_round, connections)) is not None
        and (below := _rate(peer_round, connections)) is not None
    ]


def _rate(figures: Mapping[str, Any], connections: str) -> float | None:
    """Requests a second; the limit has one for any number of connections."""
    if "closed" not in figures:
        return figures["requests_per_s"]
    run = figures["closed"].get(connections)
    return None if run is None else run["requests_per_s"]


def _ratio(latencies: Mapping[str, float | None]) -> float | None:
    middle, slow = latencies["p50_ms"], latencies["p99_ms"]
    return slow / middle if middle and slow else None


def print_result(result: Mapping[str, Any]) -> None:
    """On stdout: rates and latencies by model, then goals; medians over the rounds."""
    console = Console(width=140, highlight=False, markup=False)
    for model, contestants in result["models"].items():
        console.print(_rates(model, contestants))
        for name, rounds in contestants.items():
            if isinstance(rounds, str):
                console.print(f"{name}: not run: {rounds}")
    table = Table(box=None, pad_edge=False, title="\ngoals, by round", title_justify="left")
    table.add_column("")
    for title in ("min", "median", "max", "goal", "reached"):
        table.add_column(title, justify="right")
    for goal in result["goals"]:
        if goal["ratio"] is None:
            continue
        bound = f">= {goal['at_least']:g}" if goal.get("at_least") is not None else ""
        bound = f"<= {goal['at_most']:g}" if goal.get("at_most") is not None else bound
        reached = {True: "yes", False: "NO", None: ""}[goal["reached"]]
        table.add_row(goal["what"], *(f"{goal['ratio'][n]:.2f}" for n in ("min", "median", "max")), bound, reached)
    console.print(table)


def _rates(model: str, contestants: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, title=f"\n{model}", title_justify="left")
    table.add_column("contestant")
    for title in ("connections", "requests/s", "p50 ms", "p95 ms", "p99 ms", "refused", "broken", "memory MB"):
        table.add_column(title, justify="right")
    for name, rounds in contestants.items():
        if isinstance(rounds, str):
            continue
        if "closed" not in rounds[0]:
            table.add_row(name, "", f"{statistics.median(figures['requests_per_s'] for figures in rounds):,.1f}")
            continue
        for connections in rounds[0]["closed"]:
            runs = [figures["closed"][connections] for figures in rounds]
            rate, *latencies = (
                statistics.median(run[figure] for run in runs)
                for figure in ("requests_per_s", "p50_ms", "p95_ms", "p99_ms")
            )
            counts = [f"{sum(run[figure] for run in runs):,}" for figure in ("refused", "broken")]
            memory = f"{statistics.median(figures['memory_after_mb'] for figures in rounds):,.0f}"
            table.add_row(name, connections, f"{rate:,.1f}", *(f"{ms:,.1f}" for ms in latencies), *counts, memory)
    return table
