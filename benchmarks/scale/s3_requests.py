"""Counts the requests of a filter job to a real S3 server, by the calls of s3fs. docs/scale.md uses the counts.

    python -m benchmarks.scale.s3_requests --shard-mb 128

Prints them as JSON, by phase of the job and by S3 operation.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from benchmarks.common.command_line import work_folder
from benchmarks.common.photo_files import make_photos
from benchmarks.common.striate_runs import BLUR, ENCODE
from jobs.filter import plan_filter
from library import stores
from library.dataset.destination import claim, committed, finish
from library.dataset.manifest import Job
from library.dataset.planning import Layout, plan
from library.dataset.totals import Totals
from library.errors import StriateError
from library.sources import Options, list_source
from library.work.ingest_shard import IngestJob

_BYTES_PER_PHOTO = 111_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard-mb", type=float, default=128, help="size of the shard in MiB (128)")
    options = parser.parse_args()
    with work_folder(None) as folder, _server(folder):
        json.dump(_count_phases(folder, options.shard_mb), sys.stdout, indent=1)
        print()


def _count_phases(folder: Path, shard_mb: float) -> dict[str, Any]:
    bucket = "s3://bucket"
    stores.opened(bucket)[0].mkdir("bucket")
    photos = int(shard_mb * 2**20 / _BYTES_PER_PHOTO)
    make_photos(None, folder / "photos", photos)
    listing = list_source(str(folder / "photos"), Options())
    work = IngestJob.of(listing, Options(), verify=False)
    tasks = plan(listing.index, f"{bucket}/raw", Layout(int(shard_mb * 2**21)))
    job = Job(kind="ingest", source="photos")
    claim(f"{bucket}/raw", [job], overwrite=False)
    finish(f"{bucket}/raw", [job], Totals.of(work.run(task, lambda _: None) for task in tasks))
    filtering = plan_filter(f"{bucket}/raw", f"{bucket}/blurred", BLUR, encode=ENCODE)
    requests: dict[str, Any] = {"photos": photos, "shards": len(tasks)}
    with _counting() as calls:
        claim(filtering.destination, filtering.jobs, overwrite=False)
    requests["claim"] = dict(calls)
    with _counting() as calls:
        reports = [filtering.work.run(task, lambda _: None) for task in filtering.tasks]
    requests["a shard"] = {name: round(count / len(tasks), 2) for name, count in calls.items()}
    requests["output_mb"] = [round(report.output.bytes / 1e6, 1) for report in reports]
    with _counting() as calls:
        list(committed(filtering.tasks, filtering.work))
    requests["see what is done"] = dict(calls)
    with _counting() as calls:
        finish(filtering.destination, filtering.jobs, Totals.of(reports))
    requests["finish"] = dict(calls)
    return requests


@contextmanager
def _counting() -> Generator[Counter[str]]:
    """Counts calls by S3 operation while the block runs; a listing counts once per page."""
    calls: Counter[str] = Counter()
    filesystem: Any = S3FileSystem
    real, real_sync = filesystem._call_s3, filesystem.call_s3

    async def counted(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        calls[method] += 1
        return await real(self, method, *arguments, **options)

    # Writers call `call_s3`, which s3fs derives from `_call_s3` when it is imported.
    filesystem._call_s3, filesystem.call_s3 = counted, sync_wrapper(counted)
    try:
        yield calls
    finally:
        filesystem._call_s3, filesystem.call_s3 = real, real_sync


@contextmanager
def _server(folder: Path) -> Generator[None]:
    """Runs `rclone serve s3` on a folder below `folder`, and sets the variables with its address."""
    (folder / "s3").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    rclone = Path(sys.executable).with_name("rclone")
    command = [rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "key,secret", folder / "s3"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.05)
            if process.poll() is not None:
                raise StriateError(
                    f"{command[0]} ended with exit code {process.returncode} before it listened on port {port}"
                )
            yield
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
