"""Process trees: servers with all their processes and their memory, and the peak memory of Ray's workers."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter

from benchmarks.common.measuring import NotRunError

_END_S = 60.0
_SAMPLE_S = 0.5
_WORKER = b"ray::MapWorker(Map(striate_"
#: The load generator gets the cores first, as on a machine of its own, so that its latencies are those of the server.
_NICE = ("nice", "-n", "5")


@dataclass(frozen=True)
class Started:
    """A running server that answers requests.

    Attributes:
        process: the first process; the others descend from it.
        seconds: from its start to its first answer.
    """

    process: subprocess.Popen[bytes]
    seconds: float

    def memory_mb(self) -> float:
        """Returns the proportional set size of all its processes in 10^6 bytes; shared memory counts once."""
        return _megabytes(descendants(self.process.pid), "smaps_rollup", "Pss")

    @property
    def runs(self) -> bool:
        return self.process.poll() is None


@contextmanager
def server(
    command: Sequence[str], environment: Mapping[str, str], probe: urllib.request.Request, timeout_s: float = 180
) -> Generator[Started]:
    """Starts a server, waits until it answers `probe` with 200, and ends it and its descendants with the block.

    Raises:
        NotRunError: the server ended or did not answer in time; the message holds the end of its output.
    """
    with tempfile.NamedTemporaryFile(prefix="striate-bench-", suffix=".log") as log:
        start = perf_counter()
        command = [*_NICE, *command]
        process = subprocess.Popen(command, env=dict(environment), stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(process, command, probe, timeout_s, Path(log.name))
            yield Started(process, round(perf_counter() - start, 2))
        finally:
            _end(process)


def descendants(pid: int) -> list[int]:
    """Returns the process and all its descendants."""
    parents: dict[int, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        # The process may have ended.
        with contextlib.suppress(OSError):
            # "123 (name, maybe with brackets) S 456 ...": the parent is the second field after the name.
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    pids = [pid]
    for parent in pids:
        pids += [child for child, of in parents.items() if of == parent]
    return pids


def _megabytes(pids: Sequence[int], file: str, field: str) -> float:
    """Returns the sum of one field of a file in /proc over the processes that still run, in 10^6 bytes."""
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            text = Path(f"/proc/{pid}/{file}").read_text(encoding="utf-8")
            match = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
            # A zombie process has no memory.
            total += int(match[1]) * 1024 if match else 0
    return round(total / 1e6, 1)


def _wait(
    process: subprocess.Popen[bytes],
    command: Sequence[str],
    probe: urllib.request.Request,
    timeout_s: float,
    log: Path,
) -> None:
    end = monotonic() + timeout_s
    answer = "nothing"
    while process.poll() is None and monotonic() < end:
        try:
            with urllib.request.urlopen(probe, timeout=10):
                return
        except urllib.error.HTTPError as error:
            answer = f"{error.code}: {error.read()[:300]!r}"
        except OSError as error:
            answer = str(error)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    why = "ended" if process.poll() is not None else f"answered {answer} for {timeout_s:g} s"
    written = log.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
    raise NotRunError(f"{shlex.join(command)} {why}:\n{written}")


def _end(process: subprocess.Popen[bytes]) -> None:
    # Listed first: descendants get another parent when the process ends.
    below = descendants(process.pid)[1:]
    if process.poll() is None:
        # Not SIGINT, which a process ignores if a shell without a terminal started it in the background.
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
    for pid in [*below, process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


class PeakMemory:
    """The largest memory of a server while the block runs, from the kernel's high-water marks.

    Memory is not sampled, because adding up the pages of some processes takes 0.1 s of a core from the server.

    Attributes:
        before_mb: `Started.memory_mb` when the block began.
        peak_mb: `before_mb` plus the largest growth of the resident set of each process. Processes may have had their
            peaks at different times, so this is an upper bound for those that still run.
    """

    before_mb: float
    peak_mb: float

    def __init__(self, started: Started) -> None:
        self._started = started
        self._resident_mb = dict[int, float]()

    def __enter__(self) -> PeakMemory:
        self.before_mb = self._started.memory_mb()
        for pid in descendants(self._started.process.pid):
            self._resident_mb[pid] = _megabytes([pid], "status", "VmRSS")
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
        return self

    def __exit__(self, *raised: object) -> None:
        below = descendants(self._started.process.pid)
        grown = [_megabytes([pid], "status", "VmHWM") - self._resident_mb.get(pid, 0.0) for pid in below]
        self.peak_mb = round(self.before_mb + sum(grown), 1)


class WorkerMemory:
    """Watches the memory of the shard workers below this process while the block runs.

    The kernel keeps each process's largest resident size, so sampling misses only the last half second of a worker.
    Memory shared with the object store counts in full.

    Attributes:
        peak_mb: the largest of all workers, in 10^6 bytes; None without workers.
    """

    peak_mb: float | None = None

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> WorkerMemory:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            sizes = [_megabytes([pid], "status", "VmHWM") for pid in descendants(os.getpid()) if _is_worker(pid)]
            self.peak_mb = max([*sizes, self.peak_mb or 0]) or None


def _is_worker(pid: int) -> bool:
    try:
        return _WORKER in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # the process has ended
        return False
