"""Requests to S3 that a job makes, counted at the calls of s3fs on a real S3 server; a step in docs/scale.md.

.venv/bin/python -m benchmarks.scale.s3_requests --shard-mb 128
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

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

_BYTES_A_PHOTO = 111_000


def main() -> None:
    """Counts by phase and by S3 operation, as JSON on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard-mb", type=float, default=128, help="size of the shard in MiB (128)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="striate-requests-") as folder, _server(Path(folder)):
        json.dump(_counted(Path(folder), options.shard_mb), sys.stdout, indent=1)
        print()


def _counted(folder: Path, shard_mb: float) -> dict[str, Any]:
    bucket = "s3://bucket"
    stores.opened(bucket)[0].mkdir("bucket")
    photos = int(shard_mb * 2**20 / _BYTES_A_PHOTO)
    make_photos(None, folder / "photos", photos)
    listing = list_source(str(folder / "photos"), Options())
    work = IngestJob.of(listing, Options(), verify=False)
    tasks = plan(listing.index, f"{bucket}/raw", Layout(int(shard_mb * 2**21)))
    job = Job(kind="ingest", source="photos")
    claim(f"{bucket}/raw", [job], overwrite=False)
    finish(f"{bucket}/raw", [job], Totals.of(work.run(task, lambda _: None) for task in tasks))
    filtering = plan_filter(f"{bucket}/raw", f"{bucket}/made", BLUR, encode=ENCODE)
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
    """Calls by S3 operation while the block runs; a listing counts once a page."""
    calls: Counter[str] = Counter()
    filesystem: Any = S3FileSystem
    real, real_sync = filesystem._call_s3, filesystem.call_s3

    async def counted(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        calls[method] += 1
        return await real(self, method, *arguments, **options)

    # Files that are being written go by the second, which was made of the first.
    filesystem._call_s3, filesystem.call_s3 = counted, sync_wrapper(counted)
    try:
        yield calls
    finally:
        filesystem._call_s3, filesystem.call_s3 = real, real_sync


@contextmanager
def _server(folder: Path) -> Generator[None]:
    """`rclone serve s3` below `folder`, and the variables that lead to it."""
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
                    f"{command[0]} ended before it listened on port {port}, with exit code {process.returncode}"
                )
            yield
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
