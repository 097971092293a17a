"""The result: which goals were reached, on which machine, as tables and as JSON."""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import REPOSITORY
from benchmarks.common.measuring import Results, ratios, spread, values_of

_RATE, _STEADY = "pictures_per_s", "steady_pictures_per_s"
_LIMIT = ("limit_memory", _RATE)
_MB_A_WORKER = 500
_FIRST_SHARD_S = 3.0

_PACKAGES = (
    *("striate", "ray", "simplejpeg", "opencv-python-headless", "pillow", "numpy", "pyarrow"),
    *("torch", "torchvision", "timm"),
)

# What is compared, ours, theirs, and the least ratio that is a goal.
_COMPARISONS: tuple[tuple[str, tuple[str, str], tuple[str, str], float | None], ...] = (
    ("blur, steady state / ray.util.ActorPool's", ("striate", _STEADY), ("actor_pool", _STEADY), 0.97),
    ("blur, steady state / limit in memory", ("striate", _STEADY), _LIMIT, 0.86),
    ("blur, whole call / limit in memory", ("striate", _RATE), _LIMIT, 0.70),
    ("blur, whole call / Pillow pool", ("striate", _RATE), ("pillow", _RATE), 2),
    ("blur, whole call / documented Ray Data", ("striate", _RATE), ("ray_data", _RATE), 2),
    ("selectors, steady state / limit in memory", ("striate_select", _STEADY), _LIMIT, 5),
    ("selectors, whole call / limit in memory", ("striate_select", _RATE), _LIMIT, 5),
    ("blur, steady state / limit, files", ("striate", _STEADY), ("limit_files", _RATE), None),
    ("blur, whole call / limit, files", ("striate", _RATE), ("limit_files", _RATE), None),
    ("blur, command line / limit in memory", ("command", _RATE), _LIMIT, None),
    ("blur, whole call / ImageMagick, a process a core", ("striate", _RATE), ("mogrify", _RATE), None),
    ("blur, whole call / ImageMagick, its threads", ("striate", _RATE), ("mogrify_threads", _RATE), None),
    ("resize, whole call / Daft", ("striate_resize", _RATE), ("daft_resize", _RATE), None),
)


def summary(what: str, rounds: Sequence[Mapping[str, Any]] | str) -> dict[str, Any]:
    """One contestant: its rates over the rounds, and each round as measured."""
    if isinstance(rounds, str):
        return {"what": what, "not_run": rounds}
    summaries = {"what": what, _RATE: spread([figures[_RATE] for figures in rounds])}
    steady = [figures[_STEADY] for figures in rounds if figures.get(_STEADY)]
    return {
        **summaries,
        **({_STEADY: spread(steady)} if steady else {}),
        "rounds": [dict(figures) for figures in rounds],
    }


def goals(results: Results) -> list[dict[str, Any]]:
    """Every comparison and what the goal for it is; `reached` is None where there is no goal or no measurement.

    Judged by the median over the rounds.
    """
    summaries: list[dict[str, Any]] = []
    for title, numerator, denominator, least in _COMPARISONS:
        values = ratios(results, numerator, denominator)
        reached = statistics.median(values) >= least if values and least is not None else None
        summaries.append(
            {"what": title, "at_least": least, "ratio": spread(values) if values else None, "reached": reached}
        )
    return [*summaries, *_other_goals(results)]


def _other_goals(results: Results) -> list[dict[str, Any]]:
    """The first shard by the median over the rounds, memory by the kernel's high-water mark of the worst worker."""
    whole = list(values_of(results, "striate", "worker_peak_mb").values())
    third = list(values_of(results, "third", "worker_peak_mb").values())
    growth = [value / third[0] for value in whole] if third else []
    first = list(values_of(results, "striate", "first_shard_s").values())
    return [
        {
            "what": "first shard, Ray is up (s)",
            "at_most": _FIRST_SHARD_S,
            "ratio": spread(first) if first else None,
            "reached": statistics.median(first) <= _FIRST_SHARD_S if first else None,
        },
        {
            "what": "memory of a worker, all photos / a third",
            "at_most": 1.1,
            "ratio": spread(growth) if growth else None,
            "reached": max(growth) <= 1.1 if growth else None,
        },
        {
            "what": "memory of a worker in MB (10^6 bytes)",
            "at_most": _MB_A_WORKER,
            "ratio": spread(whole) if whole else None,
            "reached": max(whole) < _MB_A_WORKER if whole else None,
        },
    ]


def machine(cores: int) -> dict[str, Any]:
    """What it ran on."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    status = _git("status", "--porcelain")
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "cores_used": cores,
        "memory_gb": round(memory / 1e9, 1),
        "os": platform.freedesktop_os_release().get("PRETTY_NAME", platform.platform()),
        "kernel": platform.release(),
        "load_1min_before": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if status is None else bool(status),
        "code_digest": code_digest(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "imagemagick": _imagemagick(),
    }


def code_digest() -> str:
    """SHA-256 over what is measured, and over what measures; tells two states apart that have one commit."""
    digest = hashlib.sha256()
    for folder in ("library", "cluster", "jobs", "serve", "benchmarks"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _imagemagick() -> str | None:
    try:
        return subprocess.run(["mogrify", "-version"], capture_output=True, text=True).stdout.splitlines()[0]
    except (FileNotFoundError, IndexError):
        return None


def save(result: Mapping[str, Any], folder: Path) -> Path:
    """Write `BENCHMARK-DATE-COMMIT.json`; a second result of that day and commit gets a number."""
    described = result["machine"]
    stem = f"{result['benchmark']}-{described['date'][:10]}-{(described['commit'] or 'nocommit')[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    path = next(path for name in names if not (path := folder / f"{name}.json").exists())
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def print_tables(result: Mapping[str, Any]) -> None:
    """On stdout: rates, then goals, then memory and latency."""
    console = Console(width=140, highlight=False, markup=False)
    photos, described = result["parameters"]["photos"], result["machine"]
    console.print(
        f"\n{photos['photos']:,} photos ({photos['distinct']} different, mean {photos['mean_pixels']:,} pixels and "
        f"{photos['mean_bytes'] / 1e3:.0f} kB), {described['cores_used']} cores of {described['cpu']}\n"
    )
    console.print(_rates(result["contestants"]))
    for summaries in result["contestants"].values():
        if "not_run" in summaries:
            console.print(f"{summaries['what']}: not run: {summaries['not_run']}")
    if any(goal["ratio"] is not None for goal in result["goals"]):
        console.print(_goals(result["goals"]))
    if photos["photos"] < 12_000:
        console.print("The goals are meant for 12,000 photos: with fewer, starting up weighs more.")


def _rates(contestants: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("contestant")
    for title in ("pictures", "whole s", "pictures/s", "min to max", "steady/s", "first shard s", "worker MB"):
        table.add_column(title, justify="right")
    for summaries in contestants.values():
        if "not_run" in summaries:
            continue
        rounds, rate = summaries["rounds"], summaries[_RATE]
        table.add_row(
            summaries["what"],
            f"{rounds[0]['pictures']:,}",
            f"{statistics.median(figures['seconds'] for figures in rounds):.2f}",
            f"{rate['median']:,.0f}",
            f"{rate['min']:,.0f} to {rate['max']:,.0f}" if len(rounds) > 1 else "",
            f"{summaries[_STEADY]['median']:,.0f}" if _STEADY in summaries else "",
            _median(rounds, "first_shard_s", 2),
            _median(rounds, "worker_peak_mb", 0),
        )
    return table


def _median(rounds: Sequence[Mapping[str, Any]], figure: str, digits: int) -> str:
    values = [figures[figure] for figures in rounds if figures.get(figure) is not None]
    return f"{statistics.median(values):,.{digits}f}" if values else ""


def _goals(summaries: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, title="\ncomparisons, by round", title_justify="left")
    table.add_column("")
    for title in ("min", "median", "max", "goal", "reached"):
        table.add_column(title, justify="right")
    for goal in summaries:
        ratio = goal["ratio"]
        if ratio is None:
            continue
        bound = (
            f">= {goal['at_least']:g}"
            if goal.get("at_least")
            else f"<= {goal['at_most']:g}"
            if "at_most" in goal
            else ""
        )
        reached = {True: "yes", False: "NO", None: ""}[goal["reached"]]
        table.add_row(goal["what"], *(f"{ratio[name]:.2f}" for name in ("min", "median", "max")), bound, reached)
    return table
