"""Leases: one writer at a time for a destination, on whatever machine, container or Ray cluster it runs.

A writer puts a small file of its own, its lease, below the destination, then lists the leases there. If two do so at
the same time, at least one sees the other: on local disks and on every object store a listing shows what was written
before it. So no store needs compare-and-set, and no process changes or removes the lease of a running writer.

A writer that was killed leaves its lease. On the same machine it is enough to see that its process has ended. On
another machine a lease counts as abandoned when it is not renewed while it is watched, so that no two clocks are
compared.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydantic

from library import storage
from library.errors import StriateError, UsageError
from library.storage import FileInfo

#: Folder of the leases below a destination; readers of Parquet skip it.
LEASES = "_leases"

_RENEWED_S = 5.0
#: A lease that is not renewed for this long is abandoned: its writer was killed, or its machine is suspended.
_ABANDONED_S = 4 * _RENEWED_S
_POLL_S = 1.0
# Two writers that begin at the same time see each other, and one of them withdraws, which takes a few requests.
_WITHDRAWN_S = 5.0
_TIE_POLL_S = 0.05
_MAX_LEASE_BYTES = 10_000


@dataclass(frozen=True)
class Writer:
    """The process that holds a lease.

    Attributes:
        pid: process id on its machine.
        started: start time in clock ticks of its machine, as another process may get the same id later.
        machine: identifies the process table; empty where the system has no /proc.
        host: name of the machine, for people.
        since: when it took the lease, by the clock of that machine, for people.
    """

    pid: int
    started: int | None
    machine: str
    host: str
    since: str

    @classmethod
    def this(cls) -> Writer:
        """Returns this process, with the current time."""
        now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        return cls(os.getpid(), _start_of(os.getpid()), _machine(), socket.gethostname(), now)

    @property
    def runs(self) -> bool | None:
        """Whether the process runs; None where that cannot be determined on this machine."""
        if not self.machine or self.machine != _machine():
            return None
        return _start_of(self.pid) == self.started


_WRITERS = pydantic.TypeAdapter(Writer)


@contextmanager
def hold(*destinations: str, tidy: Callable[[str], None]) -> Generator[None]:
    """Holds the leases of some destinations during the block, so that no other process writes there.

    Args:
        destinations: URIs of folders, which need not exist yet.
        tidy: removes what a failed job leaves unfinished at a destination; not called after a UsageError.

    Raises:
        UsageError: another process writes there; names the process, its machine, and since when.
        StriateError: nothing can be written there, or another process has taken over because this one did not renew
            its lease in time.
    """
    with ExitStack() as stack:
        # Every process takes several destinations in the same order, so that no two wait for each other.
        taken_over = {destination: stack.enter_context(_held(destination)) for destination in sorted(set(destinations))}
        try:
            yield
        except UsageError:
            raise
        except BaseException:
            for destination in destinations:
                if taken_over[destination].is_set():
                    continue  # its files belong to another process now
                with contextlib.suppress(StriateError):  # the job's own error is raised instead
                    tidy(destination)
            raise


@contextmanager
def _held(destination: str) -> Generator[threading.Event]:
    """Holds the lease of one destination; the event is set when another process has taken over."""
    folder = storage.join(destination, LEASES)
    lease = storage.join(folder, f"{uuid.uuid4().hex}.json")
    existed = storage.is_remote(destination) or storage.exists(destination)  # a bucket has no folders to remove
    ended, taken_over = threading.Event(), threading.Event()
    renewal = threading.Thread(
        target=_renew,
        args=(lease, ended, taken_over, threading.current_thread() is threading.main_thread()),
        name="lease",
        daemon=True,
    )
    try:
        _take(destination, lease)
        renewal.start()
        try:
            yield taken_over
        except KeyboardInterrupt:
            if not taken_over.is_set():
                raise
        if taken_over.is_set():
            raise StriateError(
                f"another command has taken over {destination}, as this one did not renew its lease for "
                f"{_ABANDONED_S:.0f} s (its machine may have been suspended); this command stops"
            )
    finally:
        ended.set()
        if renewal.ident is not None:
            renewal.join()
        with contextlib.suppress(StriateError):  # a lease that stays counts as abandoned once this process ends
            storage.remove([lease])
        storage.remove_empty_folder(folder)
        if not existed:
            storage.remove_empty_folder(destination)


def _take(destination: str, lease: str) -> None:
    abandoned = _abandoned(destination)
    storage.write_bytes(lease, _WRITERS.dump_json(Writer.this()))
    end = time.monotonic() + _WITHDRAWN_S
    while rivals := [file for file in _leases(destination) if file.uri != lease and _is_rival(file, abandoned)]:
        # The first lease by name stays and waits until the others have withdrawn, so exactly one is left.
        if min(file.uri for file in rivals) < lease or time.monotonic() > end:
            raise _refusal(destination, rivals[0])
        time.sleep(_TIE_POLL_S)  # object stores cannot notify
    storage.remove(uri for uri, _ in abandoned)


def _is_rival(file: FileInfo, abandoned: set[tuple[str, float]]) -> bool:
    if (file.uri, file.modified) in abandoned:
        return False
    writer = _writer(file)
    return writer is None or writer.runs is not False


def _abandoned(destination: str) -> set[tuple[str, float]]:
    """Returns URI and modification time of the leases whose writers have ended; may wait to find out.

    Raises:
        UsageError: one of the writers runs.
    """
    dead, unsure = set[tuple[str, float]](), dict[str, float]()
    for file in _leases(destination):
        writer = _writer(file)
        runs = None if writer is None else writer.runs
        if runs:
            raise _refusal(destination, file)
        if runs is None:
            unsure[file.uri] = file.modified
        else:
            dead.add((file.uri, file.modified))
    if unsure:
        print(
            f"striate: an earlier command left its lease at the destination: waiting up to {_ABANDONED_S:.0f} s to see "
            "whether it still runs",
            file=sys.stderr,
            flush=True,
        )
    end = time.monotonic() + _ABANDONED_S
    while unsure and time.monotonic() < end:
        time.sleep(_POLL_S)  # only a renewal shows that a process on another machine runs
        current = {file.uri: file for file in _leases(destination)}
        for uri in list(unsure):
            if uri not in current:
                del unsure[uri]
            elif current[uri].modified != unsure[uri]:
                raise _refusal(destination, current[uri])
    return dead | set(unsure.items())


def _renew(lease: str, ended: threading.Event, taken_over: threading.Event, held_by_main: bool) -> None:
    while not ended.wait(_RENEWED_S):
        # An error of the store is ignored: as long as the lease exists, no other process has taken over.
        with contextlib.suppress(StriateError):
            if not storage.touch(lease) and not ended.is_set():
                taken_over.set()
                if held_by_main:
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return


def _leases(destination: str) -> list[FileInfo]:
    files = storage.list_files(storage.join(destination, LEASES))
    return [file for file in files if file.path.endswith(".json")]


def _writer(file: FileInfo) -> Writer | None:
    """Returns the holder of a lease; None where it cannot be read: it is being written or removed, or a kill cut it."""
    try:
        return _WRITERS.validate_json(storage.read_bytes(file.uri, max_bytes=_MAX_LEASE_BYTES))
    except (StriateError, pydantic.ValidationError):
        return None


def _refusal(destination: str, file: FileInfo) -> UsageError:
    writer = _writer(file)
    name = "another command" if writer is None else f"process {writer.pid} on {writer.host} since {writer.since}"
    return UsageError(
        f"{destination} is being written by {name}; wait until it ends, or stop it (a submitted job with `striate stop "
        "ID`; `striate jobs` lists them)"
    )


def _machine() -> str:
    """Identifies the table of processes that this process can look up; empty where there is none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # A virtual machine that was started from the snapshot of another has the same boot id.
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {socket.gethostname()}"
    except OSError:
        return ""


def _start_of(pid: int) -> int | None:
    """Returns when a process of this machine started, in clock ticks; None where there is none, or it has ended."""
    try:
        # The name of the command is in brackets and may hold any character.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
