"""Measures the cost to list a source of single pictures, and to plan its shards; in a process of its own.

    python -m benchmarks.scale.listing_cost 100000

prints as JSON what one process took for so many files on disk: `list_source` and `plan`, which `striate ingest` does
before any picture is read. In S3 the time is another, and there is a request for each 1,000 pictures.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.scale.empty_shards import peak_mb
from library.dataset.planning import Layout, plan
from library.sources import list_source

_IN_A_FOLDER = 1000
_BYTES = 100
# As photos of 111 kB in shards of 128 MiB.
_IN_A_SHARD = 1200


def main() -> None:
    """List so many files; a JSON document on stdout."""
    with tempfile.TemporaryDirectory(prefix="striate-listing-") as folder:
        json.dump(_measured(Path(folder), int(sys.argv[1])), sys.stdout)


def _measured(folder: Path, files: int) -> dict[str, Any]:
    first = folder
    for number in range(files):
        file = folder / "from" / f"class-{number // _IN_A_FOLDER:06d}" / f"{number:09d}.jpg"
        if number % _IN_A_FOLDER == 0:
            file.parent.mkdir(parents=True)
            file.write_bytes(bytes(_BYTES))
            first = file
        else:  # one file with many names: a listing reads none of them
            os.link(first, file)
    before, start = peak_mb(), time.perf_counter()
    listing = list_source(str(folder / "from"))
    listed, at_list = time.perf_counter() - start, peak_mb()
    tasks = plan(listing.index, str(folder / "to"), Layout(_IN_A_SHARD * _BYTES))
    return {
        "files": files,
        "shards": len(tasks),
        "list_s": round(listed, 2),
        "plan_s": round(time.perf_counter() - start - listed, 2),
        "index_mb": round(listing.index.nbytes / 1e6, 1),
        "tasks_mb": round(sum(len(task.index) for task in tasks) / 1e6, 1),
        "before_mb": before,
        "listed_peak_mb": at_list,
        "planned_peak_mb": peak_mb(),
    }


if __name__ == "__main__":
    main()
