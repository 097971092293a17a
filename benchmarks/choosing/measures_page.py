"""Measures time, memory and size of the page of `striate measure --report`, for growing numbers of pictures.

The side table and the dataset are synthetic: random scores, and in each shard one small photo again and again, in row
groups of some 12 MB of pictures, as in a real dataset. Only what follows the measuring is timed: reading the side
table, the histograms, decoding the pictures at both ends, and the HTML. Each size runs in a process of its own; its
memory is the peak of that process (ru_maxrss), with NumPy, PyArrow and Matplotlib loaded.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common.command_line import add_cores, at_least, make_parser, run_benchmark, run_module, say
from benchmarks.common.report import goal, print_goals, print_table
from library.choosing.measures.measuring import DEFAULT, MEASURES
from library.choosing.measures.score_page import distributions_of, measures_page
from library.choosing.measures.side_table import Parts
from library.dataset.manifest import FileEntry, Job, Manifest, Tally
from library.imaging import codec

_ROWS = 10_000
_PICTURE, _GROUP_ROWS = (96, 128, 3), 2000
_GOAL_ROWS, _GOAL_S, _GOAL_MB = 1_000_000, 60, 10


def main() -> int:
    """Returns the exit code."""
    if len(sys.argv) == 3 and sys.argv[1] == "--one":
        json.dump(_one(Path(sys.argv[2])), sys.stdout)
        return 0
    parser = make_parser(__file__, __doc__, "", "--pictures 100000 --out /tmp/results")
    add_cores(parser)
    parser.add_argument(
        "--pictures", type=at_least(_ROWS), nargs="+", default=[100_000, 1_000_000], help="numbers of pictures"
    )
    return run_benchmark(__file__, parser, _measure, _print)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    runs: list[dict[str, Any]] = []
    for pictures in options.pictures:
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), pictures // _ROWS)
            runs.append(run_module("benchmarks.choosing.measures_page", "--one", folder))
        say(str(runs[-1]))
    at_goal = [run for run in runs if run["pictures"] == _GOAL_ROWS]
    goals = [
        goal(f"seconds of processor time for {_GOAL_ROWS:,}", [run["cpu_s"] for run in at_goal], at_most=_GOAL_S),
        goal(f"MB of the page of {_GOAL_ROWS:,}", [run["page_mb"] for run in at_goal], at_most=_GOAL_MB),
    ]
    return {"parameters": {"rows_of_a_shard": _ROWS, "rows_of_a_group": _GROUP_ROWS}, "runs": runs, "goals": goals}


def _write(folder: Path, shards: int) -> None:
    """Writes the shards, their side table and a manifest."""
    rng = np.random.default_rng(0)
    names = [name for name in DEFAULT if _kind(name)]
    (folder / "_measures").mkdir()
    entries: list[FileEntry] = []
    for number in range(shards):
        name = f"part-{number:06d}.parquet"
        data = codec.encode(rng.integers(0, 256, _PICTURE, np.uint8), codec.Encoding("jpeg"))[0]
        keys = pa.array(np.arange(number * _ROWS, (number + 1) * _ROWS)).cast(pa.string())
        images = pa.StructArray.from_arrays([pa.array([data] * _ROWS), keys], ["bytes", "path"])
        pq.write_table(
            pa.table({"key": keys, "image": images}),
            folder / name,
            compression="zstd",
            row_group_size=_GROUP_ROWS,
            use_dictionary=False,
        )
        scores = {score: pa.array(rng.lognormal(3, 1, _ROWS)).cast(MEASURES[score].type, safe=False) for score in names}
        pq.write_table(pa.table({"key": keys, **scores}), folder / "_measures" / name, compression="zstd")
        entries.append(FileEntry(name=name, rows=_ROWS, bytes=(folder / name).stat().st_size, digest=str(number)))
    rows = shards * _ROWS
    tally = Tally(rows_in=rows, rows_out=rows)
    job = Job(kind="ingest", source="made by a benchmark")
    manifest = Manifest(complete=True, jobs=[job], tally=tally, shards=entries)
    (folder / "_manifest.json").write_text(manifest.model_dump_json())


def _kind(name: str) -> bool:
    type_ = MEASURES[name].type
    return pa.types.is_floating(type_) or (pa.types.is_integer(type_) and not pa.types.is_uint64(type_))


def _one(folder: Path) -> dict[str, Any]:
    manifest = Manifest.model_validate_json((folder / "_manifest.json").read_bytes())
    parts = Parts(str(folder / "_measures"), manifest.shards)
    start, cpu = time.perf_counter(), time.process_time()
    found = distributions_of(parts, DEFAULT)
    scored = time.perf_counter()
    page = measures_page(str(folder), manifest, parts.folder, found, {})
    return {
        "pictures": manifest.rows,
        "scores": len(found),
        "shown": page.count("<img"),
        "s": round(time.perf_counter() - start, 2),
        "of_it_reading_scores_s": round(scored - start, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
        "page_mb": round(len(page.encode()) / 1e6, 2),
    }


def _print(result: Mapping[str, Any]) -> None:
    columns = ("pictures", "scores", "shown", "s", "of_it_reading_scores_s", "cpu_s", "peak_gb", "page_mb")
    print_table("", columns, [[run[name] for name in columns] for run in result["runs"]])
    print_goals(result["goals"])


if __name__ == "__main__":
    sys.exit(main())
