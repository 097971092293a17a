"""What a shard job costs as it grows: workers on this machine, shards by the hundred thousand, nodes that are not here.

One worker and more on the cores that there are; a job whose shards hold nothing, for what the driver itself needs; a
look for finished work; a listing; requests to S3. From these costs clusters of 10, 100 and 1,000 nodes are played
through by arithmetic. benchmarks/README.md says how the figures are defined, docs/scale.md what follows from them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import REPOSITORY
from benchmarks.common import striate_runs
from benchmarks.common.measuring import fresh_folder
from benchmarks.common.photo_files import PhotoSet, make_photos
from benchmarks.common.result_file import code_digest, machine, save
from benchmarks.scale.cluster_model import Costs, simulate
from benchmarks.scale.empty_shards import make_source
from jobs.filter import filter_dataset, plan_filter
from library.errors import StriateError, UsageError

_WORKERS = (1, 2, 4)
_NODES = (10, 100, 1000)
# A shard of the measured size, and larger ones: the larger, the fewer there are for the driver to hand out.
_SHARD_TIMES = (1, 4, 16)
_PICTURES = 1_000_000_000
_MOST_MB, _MOST_MS, _GOAL_SHARDS = 1000, 10, 100_000
_QUIET_LOAD = 0.5

_EXAMPLES = """examples:
  .venv/bin/python benchmarks/scale/scale.py
  .venv/bin/python benchmarks/scale/scale.py --photos 300 --shard-mb 4 --listed 1000 --shards 300 --out /tmp/results
"""


def main() -> int:
    """Exit code 0, 1 for a failure, 2 for misuse; a goal that is missed is no failure."""
    options = _parser().parse_args()
    try:
        if min(options.photos, options.listed, options.workers_a_node, *options.shards) < 1:
            raise UsageError("--photos, --listed, --shards and --workers-a-node: at least 1")
        result = _measure(options)
        _print(result)
        print(f"\n{save(result, options.out)}")
    except StriateError as error:
        print(f"scale: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=12_000, help="how many photos the real job has (12000)")
    parser.add_argument("--shard-mb", type=float, default=128, help="their shard size in MiB (128)")
    parser.add_argument(
        "--shards", type=int, nargs="+", default=[10_000, 100_000], help="sizes of the empty jobs (10000 100000)"
    )
    parser.add_argument("--listed", type=int, default=300_000, help="files of the listing (300000)")
    parser.add_argument("--workers-a-node", type=int, default=8, help="of the clusters that are simulated (8)")
    parser.add_argument(
        "--tar", type=Path, help="photos, repeated as needed (../shared/data/photos-500.tar, else synthetic)"
    )
    parser.add_argument("--work", type=Path, help="folder for some 5 GB of temporary data, removed at the end")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results", help="folder of the result")
    return parser


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    described = machine(cores)
    if described["load_1min_before"] > _QUIET_LOAD:
        _say(f"this machine is busy (load {described['load_1min_before']}); the result will say so, and mean little")
    with tempfile.TemporaryDirectory(prefix="striate-bench-", dir=options.work) as folder:
        work = Path(folder)
        photos = make_photos(options.tar, work / "photos", options.photos)
        striate_runs.make_dataset(photos.folder, work / "dataset", cores, options.shard_mb)
        here: dict[str, Any] = {}
        for workers in [number for number in _WORKERS if number <= cores]:
            here[str(workers)] = _filtered(work, workers)
            _say(f"{workers} workers: {here[str(workers)]['pictures_per_s']:,.0f} pictures/s")
        s3 = _separately("benchmarks.scale.s3_requests", "--shard-mb", str(options.shard_mb))
        listing = _separately("benchmarks.scale.listing_cost", str(options.listed))
        calls = [2 * options.workers_a_node * nodes for nodes in _NODES]
        looks = _separately("benchmarks.scale.progress_cost", *map(str, calls))
        empty: dict[str, Any] = {}
        for shards in sorted(options.shards):
            empty[str(shards)] = _empty(work, shards)
            _say(f"{shards:,} empty shards: {empty[str(shards)]['first']['driver_ms_a_shard']} ms of the driver each")
    return {
        "benchmark": "scale",
        "machine": described,
        "code_changed_meanwhile": code_digest() != described["code_digest"],
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
        **looks,
        "empty_shards": empty,
        "simulated": _simulated(options, photos, here, looks["look_s"], empty),
        "goals": _goals(empty),
    }


def _filtered(work: Path, workers: int) -> dict[str, Any]:
    """The real job with some workers: how fast, and how long each shard kept one of them."""
    with striate_runs.connected(workers), fresh_folder(work / "made") as out:
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


def _empty(work: Path, shards: int) -> dict[str, Any]:
    """A job of empty shards, then the same again, which finds that there is nothing to do."""
    with fresh_folder(work / "empty") as folder:
        (folder / "from").mkdir()
        make_source(folder / "from", shards)
        where = str(folder / "from"), str(folder / "to")
        return {name: _separately("benchmarks.scale.empty_shards", *where) for name in ("first", "again")}


def _separately(module: str, *arguments: str) -> dict[str, Any]:
    """What a program of ours measures in a process of its own, whose memory nothing before it has used."""
    # Not a cluster that happens to run on this machine.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise StriateError(f"python -m {module} {' '.join(arguments)} ended with exit code {done.returncode}")
    return json.loads(done.stdout)


def _simulated(
    options: argparse.Namespace,
    photos: PhotoSet,
    here: Mapping[str, Any],
    looks: Mapping[str, float],
    empty: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """A thousand million such pictures on each cluster, by the costs of the most workers and the most shards seen."""
    busiest, largest = here[max(here, key=int)], empty[max(empty, key=int)]["first"]
    look_s = {int(calls): seconds for calls, seconds in looks.items()}
    rows: list[dict[str, Any]] = []
    for times in _SHARD_TIMES:
        pictures = max(1, round(times * options.shard_mb * 2**20 / photos.facts["mean_bytes"]))
        # The last shard of a small dataset is short: each counts by its pictures.
        shards_seen = zip(busiest["shard_s"], busiest["shard_pictures"], strict=True)
        costs = Costs(
            [seconds / number * pictures for seconds, number in shards_seen], largest["driver_ms_a_shard"] / 1e3, look_s
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
    """Of the job of a hundred thousand shards; not measured is not reached."""
    simulation = empty.get(str(_GOAL_SHARDS), {}).get("first")
    return [
        {
            "what": f"{what}, {_GOAL_SHARDS:,} shards",
            "at_most": most,
            "value": simulation and simulation[name],
            "reached": simulation[name] < most if simulation else None,
        }
        for what, name, most in (
            ("driver memory in MB (10^6 bytes)", "driver_peak_mb", _MOST_MB),
            ("driver ms a shard", "driver_ms_a_shard", _MOST_MS),
        )
    ]


def _print(result: Mapping[str, Any]) -> None:
    console = Console(width=120, highlight=False, markup=False)
    here = result["workers_here"]
    console.print(
        _table(
            "real shards on this machine",
            ("workers", "pictures/s", "steady/s", "shard s, median"),
            [
                (workers, rows["pictures_per_s"], rows["steady_pictures_per_s"], statistics.median(rows["shard_s"]))
                for workers, rows in here.items()
            ],
        )
    )
    figures = ("driver_peak_mb", "driver_ms_a_shard", "driver_cpu_s", "shards_per_s", "whole_s", "manifest_mb")
    console.print(
        _table(
            "empty shards",
            ("shards", "", "driver MB", "driver ms/shard", "driver CPU s", "shards/s", "whole s", "manifest MB"),
            [
                (shards, name, *(runs[name][figure] for figure in figures))
                for shards, runs in result["empty_shards"].items()
                for name in ("first", "again")
            ],
        )
    )
    listing = result["listing"]
    console.print(_table("a listing", tuple(listing), [tuple(listing.values())]))
    console.print(_table("a look", ("calls out", "s"), list(result["look_s"].items())))
    console.print(
        _table(
            "simulated: a thousand million pictures",
            ("nodes", "workers", "shard MiB", "shards", "hours", "at best", "workers busy", "driver busy"),
            [tuple(row.values()) for row in result["simulated"]],
        )
    )
    for goal in result["goals"]:
        reached = {True: "reached", False: "NOT reached", None: "not measured"}[goal["reached"]]
        console.print(f"{goal['what']}: {goal['value']} (goal: under {goal['at_most']}, {reached})")


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    table = Table(box=None, pad_edge=False, title=f"\n{title}", title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(_written(value) for value in row))
    return table


def _written(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
