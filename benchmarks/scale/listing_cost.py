"""Measures time and memory to list a source of single pictures and to plan its shards.

    python -m benchmarks.scale.listing_cost 100000

`striate ingest` does both before it reads a picture. Prints the figures as JSON. The files are on this disk; a listing
in S3 takes a request for each 1,000 pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common.command_line import at_least, work_folder
from benchmarks.scale.empty_shards import peak_mb
from library.dataset.planning import Layout, plan
from library.sources import list_source

_FILES_PER_FOLDER = 1000
_BYTES = 100
# As many as photos of 111 kB in a shard of 128 MiB.
_FILES_PER_SHARD = 1200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=at_least(1), help="number of files")
    options = parser.parse_args()
    with work_folder(None) as folder:
        json.dump(_measure(folder, options.files), sys.stdout)


def _measure(folder: Path, files: int) -> dict[str, Any]:
    first = folder
    for number in range(files):
        file = folder / "from" / f"class-{number // _FILES_PER_FOLDER:06d}" / f"{number:09d}.jpg"
        if number % _FILES_PER_FOLDER == 0:
            file.parent.mkdir(parents=True)
            file.write_bytes(bytes(_BYTES))
            first = file
        else:  # one file with many names, because a listing reads no file
            os.link(first, file)
    before, start = peak_mb(), time.perf_counter()
    listing = list_source(str(folder / "from"))
    list_s, listed_peak_mb = time.perf_counter() - start, peak_mb()
    tasks = plan(listing.index, str(folder / "to"), Layout(_FILES_PER_SHARD * _BYTES))
    return {
        "files": files,
        "shards": len(tasks),
        "list_s": round(list_s, 2),
        "plan_s": round(time.perf_counter() - start - list_s, 2),
        "index_mb": round(listing.index.nbytes / 1e6, 1),
        "tasks_mb": round(sum(len(task.index) for task in tasks) / 1e6, 1),
        "before_mb": before,
        "listed_peak_mb": listed_peak_mb,
        "planned_peak_mb": peak_mb(),
    }


if __name__ == "__main__":
    main()
