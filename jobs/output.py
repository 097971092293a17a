"""What commands print: text for people, or one JSON document on stdout for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from library.manifest import Manifest

#: People read here; with --json only the document goes to stdout.
stderr = Console(stderr=True, highlight=False)


def emit_json(value: Any) -> None:
    """One JSON document on stdout."""
    json.dump(value, sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")


def size(num_bytes: float) -> str:
    """`1.3 GB`, in powers of 1000 as disks and object stores count."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(num_bytes) < 999.5 or unit == "TB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 99.5 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError


def balance(manifest: Manifest) -> str:
    """`1,000 in = 990 out + 7 dropped + 3 rejected`."""
    tally = manifest.tally
    dropped, rejected = sum(tally.dropped.values()), sum(tally.rejected.values())
    return f"{tally.rows_in:,} in = {tally.rows_out:,} out + {dropped:,} dropped + {rejected:,} rejected"


def reasons(title: str, counts: Mapping[str, int]) -> str:
    """`rejected: truncated 2, not_an_image 1`, most first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return f"{title}: " + ", ".join(f"{name} {number:,}" for name, number in ranked)


def time_spent(run: Mapping[str, Any]) -> Table | None:
    """Where the time went, summed over workers; None when nothing was run."""
    seconds: Mapping[str, float] = run.get("seconds", {})
    whole = sum(seconds.values())
    if not whole:
        return None
    table = Table(title="where the time went (all workers)", title_justify="left", box=None, pad_edge=False)
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for stage, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        table.add_row(stage, f"{spent:.2f}", f"{spent / whole:.0%}")
    return table


def finished(dataset: str, manifest: Manifest, *, as_json: bool) -> None:
    """The closing message of a job that made `dataset`."""
    if as_json:
        emit_json(summary(dataset, manifest))
        return
    tally, run = manifest.tally, manifest.run
    print(f"{dataset}: {len(manifest.shards):,} shards, {tally.rows_out:,} pictures, {size(manifest.bytes)}")
    print(balance(manifest))
    for title, counts in (("dropped", tally.dropped), ("rejected", tally.rejected), ("skipped", manifest.skipped)):
        if counts:
            print(reasons(title, counts))
    if run.get("shards_resumed"):
        print(f"{run['shards_resumed']:,} of {run['shards']:,} shards were done before this run")
    if run.get("shards_resumed") == run.get("shards"):
        return
    table = time_spent(run)
    if table is not None:
        Console(highlight=False).print(table)


def summary(dataset: str, manifest: Manifest) -> dict[str, Any]:
    """A manifest without its list of shards, for --json."""
    facts = manifest.model_dump(exclude={"shards", "rejects", "jobs"})
    return {
        "dataset": dataset,
        "digest": manifest.digest,
        "rows": manifest.rows,
        "bytes": manifest.bytes,
        "shards": len(manifest.shards),
        "jobs": [job.model_dump() for job in manifest.jobs],
    } | facts
