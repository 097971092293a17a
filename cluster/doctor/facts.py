"""Collects the facts about one machine as plain data: here, and by a task on every node of a cluster."""

from __future__ import annotations

import email.utils
import os
import platform
import socket
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

from cluster.connection.token import RAYS_TOKEN_FILE
from cluster.machine import memory_bytes, shm_bytes
from library import storage, stores
from library.errors import StriateError

#: Packages whose versions must be the same on all nodes: Ray requires it of some, others determine the bytes of
#: datasets and bundles.
PACKAGES = (
    *("striate", "ray", "torch", "torchvision", "timm", "numpy", "pyarrow", "pydantic"),
    *("opencv-python-headless", "simplejpeg", "pillow", "tifffile", "imagecodecs", "s3fs"),
)


class GpuFacts(TypedDict):
    """GPUs of one machine: the number of device files, the number that torch can use, and the names of the latter."""

    devices: int
    usable: int
    names: list[str]


class StorageFacts(TypedDict):
    """The result of a test of storage: the first error and the step that failed, if any, and the duration in ms."""

    error: str | None
    step: str | None
    ms: int


class NodeFacts(TypedDict):
    """Facts about one machine, as plain data, because striate may have another version there."""

    host: str
    versions: dict[str, str | None]
    cpus: int | None
    memory_bytes: int
    shm_bytes: int | None
    gpus: GpuFacts
    token: bool
    open_token_files: list[str]
    storage: StorageFacts | None


def node_facts(place: str | None = None) -> NodeFacts:
    """Returns versions and sizes of this machine, and with `place` whether it can read and write there."""
    return {
        "host": socket.gethostname(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "shm_bytes": shm_bytes(),
        "gpus": _gpus(),
        # On a node, Ray sets this variable for all its processes.
        "token": os.environ.get("RAY_AUTH_MODE", "").lower() == "token",
        "open_token_files": _open_token_files(),
        "storage": None if place is None else storage_facts(place),
    }


def clock() -> float:
    """Returns the seconds since 1970 by this machine's clock."""
    return time.time()


def storage_facts(place: str) -> StorageFacts:
    """Writes, reads, lists and removes a small object below `place`; returns how long that took, or the error."""
    probe, content = storage.join(place, f"{storage.TEMPORARY_PREFIX}{uuid.uuid4().hex}"), os.urandom(64)

    def read() -> None:
        if storage.read_bytes(probe) != content:
            raise StriateError(f"{place} returns other bytes than were written")

    steps: dict[str, Callable[[], object]] = {
        "written": lambda: storage.write_bytes(probe, content),
        "read": read,
        "listed": lambda: storage.exists(place),
        "removed": lambda: storage.remove([probe]),
    }
    begin = time.perf_counter()
    first_error: str | None = None
    failed_step: str | None = None
    for step, do in steps.items():
        if failed_step is None or (step == "removed" and failed_step != "written"):
            try:
                do()
            except StriateError as error:
                first_error, failed_step = first_error or str(error), failed_step or step
    return {"error": first_error, "step": failed_step, "ms": round((time.perf_counter() - begin) * 1000)}


def storage_clock(place: str) -> tuple[float, float] | None:
    """Returns how many seconds this clock is ahead of S3's, and the uncertainty in seconds; None if S3 sends no time.

    The request has no signature: S3 would refuse one made with a wrong clock.
    """
    try:
        endpoint = str(_s3_client().meta.endpoint_url)
        request = urllib.request.Request(endpoint, method="HEAD")
        before = time.time()
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                headers = response.headers
        except urllib.error.HTTPError as error:
            headers = error.headers
        after = time.time()
        date = email.utils.parsedate_to_datetime(headers["Date"]).timestamp()
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    # The header has whole seconds.
    return (before + after) / 2 - (date + 0.5), (after - before) / 2 + 0.5


def _s3_client() -> Any:
    filesystem: Any = stores.opened("s3://")[0]
    return filesystem.s3


def _open_token_files() -> list[str]:
    """Returns the files with Ray's token that other users can read, as they can read those that Ray 2.60 creates."""
    files = [Path(name).expanduser() for name in (RAYS_TOKEN_FILE, os.environ.get("RAY_AUTH_TOKEN_PATH")) if name]
    return [str(file) for file in dict.fromkeys(files) if file.is_file() and file.stat().st_mode & 0o077]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> GpuFacts:
    """Returns the number of GPUs by their device files, and the GPUs that torch can use. Torch, which takes seconds to
    import, is imported only if there are device files."""
    devices = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if not devices:
        return {"devices": 0, "usable": 0, "names": []}
    import torch

    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "devices": devices,
        "usable": usable,
        "names": [torch.cuda.get_device_name(number) for number in range(usable)],
    }
