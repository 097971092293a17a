"""Memory, shared memory and free ports of this machine, or of the container this process runs in."""

from __future__ import annotations

import errno
import os
import random
import shutil
import socket
from pathlib import Path

from library.errors import StriateError

_SHM = "/dev/shm"
# Ray's object store takes 30% of memory, as by default, and at most 90% of /dev/shm, beyond which Ray uses files.
# Shards never pass through it; decoded training pictures do. Memory is taken only as it is used.
_STORE_OF_MEMORY, _STORE_OF_SHM, _SMALLEST_STORE = 0.3, 0.9, 100 * 2**20
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_bytes() -> int:
    """Returns the memory of this machine, or the limit of its container, in bytes."""
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
    """Returns the size of /dev/shm in bytes; None if there is no /dev/shm."""
    return shutil.disk_usage(_SHM).total if os.path.isdir(_SHM) else None


def object_store_bytes(memory: int | None = None, shm: int | None = None) -> int:
    """Returns the size of the object store of a Ray started on this machine, in bytes.

    Args:
        memory: bytes of memory; None for both those of this machine.
        shm: bytes of /dev/shm; None if there is no /dev/shm.
    """
    if memory is None:
        memory, shm = memory_bytes(), shm_bytes()
    most = min(_STORE_OF_MEMORY * memory, memory if shm is None else _STORE_OF_SHM * shm)
    return max(int(most), _SMALLEST_STORE)


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Returns unused ports of `host` from a range that neither the system nor Ray hands out by default.

    The system assigns ports from 32768 on, Ray's workers use 10002 to 19999, and replicas 30000 to 31000.

    Raises:
        StriateError: when too few ports are free, or this machine does not have that address.
    """
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 30_000), 10_000):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise StriateError(f"cannot listen at {host}: {error.strerror}") from error
            ports.append(port)
        if len(ports) == count:
            return ports
    raise StriateError(f"fewer than {count} of the ports 20000 to 29999 are free at {host}")
