"""A cluster's head that is gone: Ray waits for it a minute, and then ends the process without a word."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from cluster.console import say

_EVERY_S = 2.0
_TIMEOUT_S = 5.0
#: Silence that is told.
_TOLD_S = 5.0
#: Ray ends the process when it has been without a head for so long (ray 2.60's default is 60 s); we are first.
_RAY_WAITS = "RAY_gcs_rpc_server_reconnect_timeout_s"
_BEFORE_RAY_S = 10.0
_CODE = 1


@contextmanager
def watched(address: str) -> Generator[None]:
    """Tell on stderr when the head at `address` stops answering; end the process, with its last words, before Ray does.

    Nothing is waited for then: whatever the process does with Ray waits for the head too, and what is done is written.

    Args:
        address: HOST:PORT of the head's own port (GCS).
    """
    ended = threading.Event()
    threading.Thread(target=_watch, args=(address, ended), name="head-watch", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def set_last_words(tell: Callable[[str], object]) -> None:
    """Have `tell` called with the reason before the process ends with exit code 1; by default it goes to stderr."""
    global _last_words
    _last_words = tell


def _watch(address: str, ended: threading.Event) -> None:
    heard, told = time.monotonic(), False
    waits_s = max(_TOLD_S, float(os.environ.get(_RAY_WAITS, "60")) - _BEFORE_RAY_S)
    while not ended.wait(_EVERY_S):
        if _answers(address):
            if told:
                _tell(f"the head of the cluster at {address} answers again")
            heard, told = time.monotonic(), False
            continue
        silent_s = time.monotonic() - heard
        silence = f"the head of the cluster at {address} has not answered for {silent_s:.0f} s"
        if silent_s >= waits_s and not ended.is_set():
            _last_words(f"{silence}; what is done stays, the same command goes on from there under a new head")
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(_CODE)
        if silent_s >= _TOLD_S and not told:
            _tell(f"{silence}; waiting {waits_s:.0f} s for it")
            told = True


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _tell(line: str) -> None:
    say(f"striate: {line}", file=sys.stderr, flush=True)


_last_words: Callable[[str], object] = _tell
