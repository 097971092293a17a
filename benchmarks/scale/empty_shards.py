"""Measures a filter job over shards of one pixel: what the driver needs to plan, hand out and commit shards.

    python -m benchmarks.scale.empty_shards SOURCE DESTINATION

Filters SOURCE (written by `make_source`) with Ray on this machine and prints time and memory as JSON. If DESTINATION is
finished already, this is the cost to find that nothing is left to do.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from cluster.connection.session import connect
from jobs.filter import filter_dataset, plan_filter
from library.dataset.manifest import VERSIONS, FileEntry, Job, Manifest, Tally, manifest_uri, save_manifest
from library.dataset.record import ImageRecord, dataset_schema, table_of
from library.dataset.shards import SUFFIX, ShardWriter, shard_name
from library.imaging import codec

# Reads width and height from their columns, and decodes no picture.
_STEPS = "min_size(1)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="dataset to read")
    parser.add_argument("destination", help="dataset to write")
    options = parser.parse_args()
    json.dump(_measure(options.source, options.destination), sys.stdout)


def make_source(dataset: Path, shards: int) -> None:
    """Writes a finished dataset of shards with one picture of one pixel each."""
    dot = codec.encode(np.zeros((1, 1, 3), np.uint8), codec.Encoding.parse("png"), "png")[0]
    record = ImageRecord("dot", dot, "dot.png", "dot", codec.probe(dot), {})
    schema = dataset_schema([])
    with ShardWriter(str(dataset), shard_name(0) + SUFFIX, schema) as writer:
        writer.add(table_of([record], schema))
    data, first = (dataset / writer.entry.name).read_bytes(), writer.entry
    entries: list[FileEntry] = []
    for number in range(shards):
        name = shard_name(number) + SUFFIX
        (dataset / name).write_bytes(data)
        entries.append(first.model_copy(update={"name": name}))
    job = Job(kind="ingest", source=str(dataset.parent / "nothing"))
    tally = Tally(rows_in=shards, rows_out=shards, classes={"dot": shards})
    save_manifest(str(dataset), Manifest(complete=True, jobs=[job], tally=tally, shards=entries, versions=VERSIONS))


def _measure(source: str, destination: str) -> dict[str, Any]:
    workers = os.cpu_count() or 1
    with connect("local", num_cpus=workers):
        before = peak_mb()
        start, cpu_start = time.perf_counter(), time.process_time()
        plan = plan_filter(source, destination, _STEPS)
        plan_s = time.perf_counter() - start
        manifest = filter_dataset(plan, workers=str(workers))
        whole_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
        gcs = _gcs_peak_mb()
    shards, run_s = manifest.run["shards"], manifest.run["wall_s"]
    new_shards = shards - manifest.run["shards_resumed"]
    around_s = whole_s - (run_s if new_shards else 0)
    return {
        "shards": shards,
        "new_shards": new_shards,
        "workers": workers,
        "driver_peak_mb": peak_mb(),
        "driver_before_mb": before,
        "gcs_peak_mb": gcs,
        "whole_s": round(whole_s, 2),
        "plan_s": round(plan_s, 2),
        "around_s": round(around_s, 2),
        "driver_cpu_s": round(cpu_s, 2),
        # The time in which workers wait for the driver: before the first shard and after the last, and the driver's CPU
        # time in between. An upper bound, because its CPU time before and after counts twice.
        "driver_ms_a_shard": round((around_s + cpu_s) / shards * 1e3, 3),
        "shards_per_s": round(new_shards / run_s, 1) if new_shards else None,
        "worker_ms_a_shard": round(sum(manifest.run["seconds"].values()) / shards * 1e3, 3),
        "manifest_mb": round(os.path.getsize(manifest_uri(destination)) / 1e6, 2),
    }


def peak_mb(process: str = "self") -> float:
    """Returns the peak memory of a process in 10^6 bytes, without that of its parent, which `getrusage` includes."""
    status = (Path("/proc") / process / "status").read_text()
    (peak,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return round(int(peak.split()[1]) * 1024 / 1e6, 1)


def _gcs_peak_mb() -> float | None:
    """Returns the peak memory of Ray's control store below this process; None if it has ended."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid() and b"gcs_server" in (process / "cmdline").read_bytes():
                return peak_mb(process.name)
        except OSError:  # the process has ended
            continue
    return None


if __name__ == "__main__":
    main()
