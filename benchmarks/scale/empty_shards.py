"""One job over shards that cost nothing, in a process of its own: what planning, handing out and committing cost.

    python -m benchmarks.scale.empty_shards SOURCE DESTINATION

prints as JSON what the driver took to filter SOURCE (of `make_source`) on a Ray of this machine. With DESTINATION
finished already, that is what it takes to find out that there is nothing to do.
"""

from __future__ import annotations

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

# Looks at the width and height beside the picture, and decodes nothing.
_STEPS = "min_size(1)"


def main() -> None:
    """Run one job; a JSON document on stdout."""
    json.dump(_measured(sys.argv[1], sys.argv[2]), sys.stdout)


def make_source(dataset: Path, shards: int) -> None:
    """A finished dataset of shards that hold one picture of one pixel each."""
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


def _measured(source: str, destination: str) -> dict[str, Any]:
    workers = os.cpu_count() or 1
    with connect("local", num_cpus=workers):
        before = peak_mb()
        start, cpu = time.perf_counter(), time.process_time()
        plan = plan_filter(source, destination, _STEPS)
        planned = time.perf_counter() - start
        manifest = filter_dataset(plan, workers=str(workers))
        whole, cpu = time.perf_counter() - start, time.process_time() - cpu
        gcs = _gcs_peak_mb()
    shards, run = manifest.run["shards"], manifest.run["wall_s"]
    new_shards = shards - manifest.run["shards_resumed"]
    around = whole - (run if new_shards else 0)
    return {
        "shards": shards,
        "made": new_shards,
        "workers": workers,
        "driver_peak_mb": peak_mb(),
        "driver_before_mb": before,
        "gcs_peak_mb": gcs,
        "whole_s": round(whole, 2),
        "plan_s": round(planned, 2),
        "around_s": round(around, 2),
        "driver_cpu_s": round(cpu, 2),
        # What workers wait for: all of the time before and after them, and the driver's CPU in between. An upper bound,
        # as its CPU before and after counts twice.
        "driver_ms_a_shard": round((around + cpu) / shards * 1e3, 3),
        "shards_per_s": round(new_shards / run, 1) if new_shards else None,
        "worker_ms_a_shard": round(sum(manifest.run["seconds"].values()) / shards * 1e3, 3),
        "manifest_mb": round(os.path.getsize(manifest_uri(destination)) / 1e6, 2),
    }


def peak_mb(process: str = "self") -> float:
    """Of a process, in 10^6 bytes. Not `getrusage`, which begins with what the process that started this one has."""
    status = (Path("/proc") / process / "status").read_text()
    (peak,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return round(int(peak.split()[1]) * 1024 / 1e6, 1)


def _gcs_peak_mb() -> float | None:
    """Of Ray's control store, which this process has started."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid() and b"gcs_server" in (process / "cmdline").read_bytes():
                return peak_mb(process.name)
        except OSError:  # it has ended
            continue
    return None


if __name__ == "__main__":
    main()
