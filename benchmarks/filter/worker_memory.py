"""Peak memory of Ray's workers, as the kernel counts it (VmHWM in /proc, so on Linux only)."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from types import TracebackType

_EVERY_S = 0.5
_WORKER = b"ray::MapWorker(Map(striate_"


class WorkerMemory:
    """Watches the workers of this process's own Ray while the block runs.

    The kernel keeps each process's highest resident size, so looking now and then loses only what a worker takes in
    its last half second. Memory shared with the object store counts in full.

    Attributes:
        peak_bytes: the largest of all workers; None where none was seen.
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
    """Below /proc: the shard workers among this process's descendants. Others' Rays on this machine are not ours."""
    parents: dict[int, int] = {}
    named: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            # "123 (name, maybe with brackets) S 456 ...": the parent is the second field after the name.
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if _WORKER in (process / "cmdline").read_bytes():
                named.append(int(process.name))
        except OSError:  # it has ended
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
