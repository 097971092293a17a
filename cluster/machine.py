"""What this machine has, or the container that this process is in, and which of its ports are free."""

from __future__ import annotations

import errno
import os
import random
import shutil
import socket
from pathlib import Path

from library.errors import StriateError

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


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports that nothing listens on at `host`, and that no connection or worker of Ray gets before they are used.

    By default the system hands out ports from 32768 on, Ray's workers take 10002 to 19999, and replicas 30000 to 31000.

    Raises:
        StriateError: when there are not so many, or this machine has no such address.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 30_000), 10_000):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise StriateError(f"cannot listen at {host}: {error.strerror}") from error
            found.append(port)
        if len(found) == count:
            return found
    raise StriateError(f"of the ports 20000 to 29999 fewer than {count} are free at {host}")
