"""One training at a time in a folder: two would remove each other's checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager

from ray.exceptions import RayError

from jobs import board
from library.errors import UsageError

_RENEWED_S = 4.0
#: Not renewed for so long: its driver has died.
_DEAD_S = 3 * _RENEWED_S
_LOOK_S = 0.5


@contextmanager
def alone_in(out: str) -> Generator[None]:
    """Hold the folder `out` on this Ray for as long as the block takes; one whose holder has died is taken over.

    Trainings on other Rays are not seen.

    Raises:
        UsageError: another command trains there now.
    """
    name, own = f"training/{out}", uuid.uuid4().hex
    _wait(name, out)
    _renew(name, own)
    ended = threading.Event()
    thread = threading.Thread(target=_keep, args=(name, own, ended), name="train-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(RayError, RuntimeError):  # the head may be gone
            board.forget(name)


def _wait(name: str, out: str) -> None:
    """Until nobody holds it."""
    first, end = board.noted(name), time.monotonic() + _DEAD_S
    while first is not None and time.monotonic() < end:
        now = board.noted(name)
        if now is None:
            return
        if now != first:
            held = json.loads(now)
            raise UsageError(
                f"{out} is being trained now, by process {held['pid']} on {held['host']}: wait for it, or stop it "
                "(`striate jobs`, `striate stop ID`)"
            )
        time.sleep(_LOOK_S)  # a sign of life is all that a process on another machine gives


def _keep(name: str, own: str, ended: threading.Event) -> None:
    while not ended.wait(_RENEWED_S):
        with contextlib.suppress(RayError, RuntimeError):
            _renew(name, own)


def _renew(name: str, own: str) -> None:
    told = {"id": own, "pid": os.getpid(), "host": socket.gethostname(), "at": time.time()}
    board.note(name, json.dumps(told).encode())
