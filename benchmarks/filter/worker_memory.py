"""Peak memory of Ray's workers by the kernel's count (VmHWM in /proc, Linux only)."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from types import TracebackType

_EVERY_S = 0.5
_WORKER = b"ray::MapWorker(Map(striate_"


class WorkerMemory:
    """Watches the workers of this process's Ray while the block runs.

    The kernel keeps each process's largest resident size, so sampling misses only the last half second of a worker.
    Memory shared with the object store counts in full.

    Attributes:
        peak_bytes: the largest of all workers; None without workers.
    """

    def __init__(self) -> None:
        self.peak_bytes: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> WorkerMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            sizes = [size for process in _workers() if (size := _peak_bytes(process)) is not None]
            self.peak_bytes = max([*sizes, self.peak_bytes or 0]) or None


def _workers() -> list[Path]:
    """Folders in /proc of the shard workers that descend from this process; other Rays of this machine are left out."""
    parents: dict[int, int] = {}
    named: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            # "123 (name, maybe with brackets) S 456 ...": the parent is the second field after the name.
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if _WORKER in (process / "cmdline").read_bytes():
                named.append(int(process.name))
        except OSError:  # the process has ended
            continue
    return [Path("/proc") / str(process) for process in named if _descends(process, parents)]


def _descends(process: int, parents: dict[int, int]) -> bool:
    while process in parents:
        process = parents[process]
        if process == os.getpid():
            return True
    return False


def _peak_bytes(process: Path) -> int | None:
    try:
        match = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None
