"""Measures what a shard job costs as it grows in workers, shards and nodes.

On this machine: a filter job with one worker and with more; a job of empty shards, for the cost of the driver; polls
for finished shards; a listing; and requests to S3. Clusters of 10, 100 and 1,000 nodes are simulated from these costs.
benchmarks/README.md defines the figures, and docs/scale.md draws conclusions.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import striate_runs
from benchmarks.common.command_line import (
    add_photos,
    at_least,
    make_parser,
    run_benchmark,
    run_module,
    say,
    work_folder,
)
from benchmarks.common.measuring import fresh_folder
from benchmarks.common.photo_files import PhotoSet, make_photos
from benchmarks.common.report import print_table
from benchmarks.scale.cluster_model import Costs, simulate
from benchmarks.scale.empty_shards import make_source
from jobs.filter import filter_dataset, plan_filter

_WORKERS = (1, 2, 4)
_NODES = (10, 100, 1000)
# Sizes of the simulated shards, in multiples of the measured one.
_SHARD_TIMES = (1, 4, 16)
_PICTURES = 1_000_000_000
_MAX_DRIVER_MB, _MAX_DRIVER_MS, _GOAL_SHARDS = 1000, 10, 100_000


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(
        __file__, __doc__, "", "--photos 300 --shard-mb 4 --listed 1000 --shards 300 --out /tmp/results"
    )
    add_photos(parser, disk_gb=5)
    parser.add_argument("--photos", type=at_least(1), default=12_000, help="photos of the filter job (12000)")
    parser.add_argument("--shard-mb", type=float, default=128, help="its shard size in MiB (128)")
    parser.add_argument(
        "--shards",
        type=at_least(1),
        nargs="+",
        default=[10_000, 100_000],
        help="numbers of empty shards (10000 100000)",
    )
    parser.add_argument("--listed", type=at_least(1), default=300_000, help="files of the listing (300000)")
    parser.add_argument("--workers-a-node", type=at_least(1), default=8, help="workers of a simulated node (8)")
    return run_benchmark(__file__, parser, _measure, _print)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    with work_folder(options.work) as work:
        photos = make_photos(options.tar, work / "photos", options.photos)
        striate_runs.make_dataset(photos.folder, work / "dataset", cores, options.shard_mb)
        here: dict[str, Any] = {}
        for workers in [number for number in _WORKERS if number <= cores]:
            here[str(workers)] = _measure_filter(work, workers)
            say(f"{workers} workers: {here[str(workers)]['pictures_per_s']:,.0f} pictures/s")
        s3 = run_module("benchmarks.scale.s3_requests", "--shard-mb", str(options.shard_mb))
        listing = run_module("benchmarks.scale.listing_cost", str(options.listed))
        calls = [2 * options.workers_a_node * nodes for nodes in _NODES]
        polls = run_module("benchmarks.scale.progress_cost", *map(str, calls))
        empty: dict[str, Any] = {}
        for shards in sorted(options.shards):
            empty[str(shards)] = _measure_empty(work, shards)
            say(f"{shards:,} empty shards: {empty[str(shards)]['first']['driver_ms_a_shard']} ms of the driver each")
    return {
        "parameters": {
            "photos": photos.facts | {"source": photos.source},
            "steps": striate_runs.BLUR,
            "encode": striate_runs.ENCODE,
            "shard_mb": options.shard_mb,
            "workers_a_node": options.workers_a_node,
        },
        "workers_here": here,
        "s3_requests": s3,
        "listing": listing,
        **polls,
        "empty_shards": empty,
        "simulated": _simulate(options, photos, here, polls["poll_s"], empty),
        "goals": _goals(empty),
    }


def _measure_filter(work: Path, workers: int) -> dict[str, Any]:
    """Measures the filter job with this number of workers, and the seconds of work on each shard."""
    with striate_runs.connected(workers), fresh_folder(work / "blurred") as out:
        start = time.perf_counter()
        plan = plan_filter(str(work / "dataset"), str(out), striate_runs.BLUR, encode=striate_runs.ENCODE)
        manifest = filter_dataset(plan, workers=str(workers))
        seconds = time.perf_counter() - start
        commits = striate_runs.commits_of(out, manifest)
    steady = striate_runs.steady_rate(commits, workers)
    return {
        "pictures": manifest.rows,
        "seconds": round(seconds, 3),
        "pictures_per_s": round(manifest.rows / seconds, 1),
        "steady_pictures_per_s": steady and round(steady, 1),
        "stage_s": manifest.run["seconds"],
        "shard_s": [round(commit.busy_s, 4) for commit in commits],
        "shard_pictures": [commit.pictures for commit in commits],
    }


def _measure_empty(work: Path, shards: int) -> dict[str, Any]:
    """Measures a job of empty shards, and then the same job again, which finds that nothing is left to do."""
    with fresh_folder(work / "empty") as folder:
        (folder / "from").mkdir()
        make_source(folder / "from", shards)
        datasets = str(folder / "from"), str(folder / "to")
        return {name: run_module("benchmarks.scale.empty_shards", *datasets) for name in ("first", "again")}


def _simulate(
    options: argparse.Namespace,
    photos: PhotoSet,
    here: Mapping[str, Any],
    polls: Mapping[str, float],
    empty: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Simulates a billion pictures on each cluster, from the costs with the most workers and the most empty shards."""
    busiest, largest = here[max(here, key=int)], empty[max(empty, key=int)]["first"]
    poll_s = {int(calls): seconds for calls, seconds in polls.items()}
    rows: list[dict[str, Any]] = []
    for times in _SHARD_TIMES:
        pictures = max(1, round(times * options.shard_mb * 2**20 / photos.facts["mean_bytes"]))
        # The last shard of a small dataset is short, so the time of each shard is scaled by its pictures.
        measured_shards = zip(busiest["shard_s"], busiest["shard_pictures"], strict=True)
        costs = Costs(
            [seconds / number * pictures for seconds, number in measured_shards],
            largest["driver_ms_a_shard"] / 1e3,
            poll_s,
        )
        shards = -(-_PICTURES // pictures)
        for nodes in _NODES:
            workers = nodes * options.workers_a_node
            simulation = simulate(workers, shards, costs)
            rows.append(
                {
                    "nodes": nodes,
                    "workers": workers,
                    "shard_mb": times * options.shard_mb,
                    "shards": shards,
                    "hours": round(simulation["seconds"] / 3600, 3),
                    "hours_at_best": round(statistics.mean(costs.shard_s) * shards / workers / 3600, 3),
                    "workers_busy": round(simulation["busy"], 3),
                    "driver_busy": round(simulation["driver_busy"], 3),
                }
            )
    return rows


def _goals(empty: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the goals for the job of 100,000 shards; `reached` is None if it was not measured."""
    job = empty.get(str(_GOAL_SHARDS), {}).get("first")
    return [
        {
            "what": f"{what}, {_GOAL_SHARDS:,} shards",
            "at_most": most,
            "value": job and job[name],
            "reached": job[name] < most if job else None,
        }
        for what, name, most in (
            ("driver memory in MB (10^6 bytes)", "driver_peak_mb", _MAX_DRIVER_MB),
            ("driver ms a shard", "driver_ms_a_shard", _MAX_DRIVER_MS),
        )
    ]


def _print(result: Mapping[str, Any]) -> None:
    print_table(
        "filter job on this machine",
        ("workers", "pictures/s", "steady/s", "shard s, median"),
        [
            (workers, job["pictures_per_s"], job["steady_pictures_per_s"], statistics.median(job["shard_s"]))
            for workers, job in result["workers_here"].items()
        ],
    )
    figures = ("driver_peak_mb", "driver_ms_a_shard", "driver_cpu_s", "shards_per_s", "whole_s", "manifest_mb")
    print_table(
        "empty shards",
        ("shards", "job", "driver MB", "driver ms/shard", "driver CPU s", "shards/s", "whole s", "manifest MB"),
        [
            (shards, name, *(jobs[name][figure] for figure in figures))
            for shards, jobs in result["empty_shards"].items()
            for name in ("first", "again")
        ],
        left=2,
    )
    print_table("listing", tuple(result["listing"]), [tuple(result["listing"].values())], left=0)
    polls = [(calls, seconds, result["progress_poll_s"][calls]) for calls, seconds in result["poll_s"].items()]
    print_table("one poll", ("running calls", "for finished shards, s", "for the progress display, s"), polls)
    print_table(
        "simulated: a billion pictures",
        ("nodes", "workers", "shard MiB", "shards", "hours", "at best", "workers busy", "driver busy"),
        [tuple(row.values()) for row in result["simulated"]],
        left=0,
    )
    for goal in result["goals"]:
        reached = {True: "reached", False: "NOT reached", None: "not measured"}[goal["reached"]]
        print(f"{goal['what']}: {goal['value']} (goal: under {goal['at_most']}, {reached})")


if __name__ == "__main__":
    sys.exit(main())
