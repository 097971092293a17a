"""What this machine has, or the container that this process is in."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_SHM = "/dev/shm"
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_bytes() -> int:
    """Of the machine, or what a container may use of it."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_LIMITS:
        try:
            limit = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if limit.isdigit():
            return min(whole, int(limit))
    return whole


def shm_bytes() -> int | None:
    """Of /dev/shm; None where there is none."""
    return shutil.disk_usage(_SHM).total if os.path.isdir(_SHM) else None
