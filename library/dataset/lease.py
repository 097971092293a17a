"""One writer at a time for a destination, whatever machine, container or Ray it runs on.

A writer puts a small file of its own, its lease, below the destination, then lists the leases there. Of two that do so
at once at least one sees the other: on local disks and on every object store a listing shows what was written before
it. So no store has to compare and set, and nobody ever changes or removes the lease of a writer that runs.

A writer that was killed leaves its lease. On the same machine its process is gone, and that is known at once. From
elsewhere a lease counts as abandoned when it is not renewed while somebody watches it, so that no two clocks are
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
#: Not renewed for so long: its writer was killed, or its machine stands still.
_ABANDONED_S = 4 * _RENEWED_S
_LOOK_S = 1.0
# Two that begin at once see each other: one of them withdraws, which takes it a few requests.
_WITHDRAWN_S = 5.0
_TIE_LOOK_S = 0.05
# An empty folder of leases is removed, maybe just as the next one is to be written there.
_TRIES = 10
_MAX_LEASE_BYTES = 10_000


@dataclass(frozen=True)
class Writer:
    """The process that holds a lease.

    Attributes:
        pid: its number on its machine.
        started: when it started, in clock ticks of its machine: another process may get its number later.
        machine: names a table of processes; empty where the system has no /proc.
        host: name of the machine, for people.
        since: when it took the lease by the clock there, for people.
    """

    pid: int
    started: int | None
    machine: str
    host: str
    since: str

    @classmethod
    def this(cls) -> Writer:
        """This process, from now on."""
        now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        return cls(os.getpid(), _start_of(os.getpid()), _machine(), socket.gethostname(), now)

    @property
    def runs(self) -> bool | None:
        """Whether the process runs; None where that cannot be known from here."""
        if not self.machine or self.machine != _machine():
            return None
        return _start_of(self.pid) == self.started


_WRITERS = pydantic.TypeAdapter(Writer)


@contextmanager
def hold(*destinations: str, tidy: Callable[[str], None]) -> Generator[None]:
    """Be the only writer to some destinations for as long as the block takes.

    Args:
        destinations: URIs of folders, which need not exist yet.
        tidy: takes away what a job that failed leaves unfinished at a destination. A refused request has left nothing.

    Raises:
        UsageError: another process writes there; says which, where, and since when.
        StriateError: nothing can be written there; or another process has taken over, after this one showed no sign
            of life for a while.
    """
    with ExitStack() as stack:
        # All take several destinations in one order, and so never wait for each other.
        lost = {destination: stack.enter_context(_held(destination)) for destination in sorted(set(destinations))}
        try:
            yield
        except UsageError:
            raise
        except BaseException:
            for destination in destinations:
                if lost[destination].is_set():
                    continue  # what lies there is another's now
                with contextlib.suppress(StriateError):  # the job's own failure is what counts
                    tidy(destination)
            raise


@contextmanager
def _held(destination: str) -> Generator[threading.Event]:
    """Holds one destination; the event is set when another process has taken over."""
    folder = storage.join(destination, LEASES)
    lease = storage.join(folder, f"{uuid.uuid4().hex}.json")
    existed = storage.is_remote(destination) or storage.exists(destination)  # a bucket has no folders to remove
    ended, lost = threading.Event(), threading.Event()
    renewal = threading.Thread(
        target=_renew,
        args=(lease, ended, lost, threading.current_thread() is threading.main_thread()),
        name="lease",
        daemon=True,
    )
    try:
        _take(destination, lease)
        renewal.start()
        try:
            yield lost
        except KeyboardInterrupt:
            if not lost.is_set():
                raise
        if lost.is_set():
            raise StriateError(
                f"another command has taken over {destination}: this one showed no sign of life for "
                f"{_ABANDONED_S:.0f} s, as when its machine sleeps; it stops here, so that two do not write at once"
            )
    finally:
        ended.set()
        if renewal.ident is not None:
            renewal.join()
        with contextlib.suppress(StriateError):  # left behind it counts as abandoned as soon as this process ends
            storage.remove([lease])
        storage.remove_empty_folder(folder)
        if not existed:
            storage.remove_empty_folder(destination)


def _take(destination: str, lease: str) -> None:
    abandoned = _abandoned(destination)
    _write(lease)
    end = time.monotonic() + _WITHDRAWN_S
    while rivals := [file for file in _leases(destination) if file.uri != lease and _is_rival(file, abandoned)]:
        # The first by name stays and waits until the others have withdrawn: exactly one is left.
        if min(file.uri for file in rivals) < lease or time.monotonic() > end:
            raise _refusal(destination, rivals[0])
        time.sleep(_TIE_LOOK_S)  # a store has no call that waits for an object
    storage.remove(uri for uri, _ in abandoned)


def _write(lease: str) -> None:
    content = _WRITERS.dump_json(Writer.this())
    for left in reversed(range(_TRIES)):
        try:
            storage.write_bytes(lease, content)
            break
        except StriateError as error:
            if not left or not isinstance(error.__cause__, FileNotFoundError):
                raise


def _is_rival(file: FileInfo, abandoned: set[tuple[str, float]]) -> bool:
    if (file.uri, file.modified) in abandoned:
        return False
    writer = _writer(file)
    return writer is None or writer.runs is not False


def _abandoned(destination: str) -> set[tuple[str, float]]:
    """The leases of writers that run no more, and their state; waits where that takes a while to see.

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
            f"striate: an earlier command left its mark at the destination: waiting up to {_ABANDONED_S:.0f} s to see "
            "whether it still runs",
            file=sys.stderr,
            flush=True,
        )
    end = time.monotonic() + _ABANDONED_S
    while unsure and time.monotonic() < end:
        time.sleep(_LOOK_S)  # a renewal is all that a process on another machine gives
        there = {file.uri: file for file in _leases(destination)}
        for uri in list(unsure):
            if uri not in there:
                del unsure[uri]
            elif there[uri].modified != unsure[uri]:
                raise _refusal(destination, there[uri])
    return dead | set(unsure.items())


def _renew(lease: str, ended: threading.Event, lost: threading.Event, of_main_thread: bool) -> None:
    while not ended.wait(_RENEWED_S):
        # A store that does not answer is no reason to stop: as long as the lease is there, nobody has taken over.
        with contextlib.suppress(StriateError):
            if not storage.touch(lease) and not ended.is_set():
                lost.set()
                if of_main_thread:
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return


def _leases(destination: str) -> list[FileInfo]:
    files = storage.list_files(storage.join(destination, LEASES))
    return [file for file in files if file.path.endswith(".json")]


def _writer(file: FileInfo) -> Writer | None:
    """Whose lease it is; None when it cannot be read: it is just being written or removed, or was cut by a kill."""
    try:
        return _WRITERS.validate_json(storage.read_bytes(file.uri, max_bytes=_MAX_LEASE_BYTES))
    except (StriateError, pydantic.ValidationError):
        return None


def _refusal(destination: str, file: FileInfo) -> UsageError:
    writer = _writer(file)
    who = "another command" if writer is None else f"process {writer.pid} on {writer.host} since {writer.since}"
    return UsageError(
        f"{destination} is being written by {who}: wait until it has ended, or stop it (a submitted job: "
        "`striate jobs`, `striate stop ID`)"
    )


def _machine() -> str:
    """Names the processes that this process can look up; empty where it can look up none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # A virtual machine that was started from another's snapshot has its boot id.
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {socket.gethostname()}"
    except OSError:
        return ""


def _start_of(pid: int) -> int | None:
    """When a process of this machine started, in clock ticks; None when there is no such process, or it has ended."""
    try:
        # The name of the command stands in brackets and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
