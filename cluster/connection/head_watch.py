"""Detects and reports the loss of a cluster's head before Ray, after a minute, ends the process without a message."""

from __future__ import annotations

import logging
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
#: How long the head may be silent before that is reported.
_REPORTED_S = 5.0
#: How long Ray waits for the head before it ends the process (ray 2.60's default is 60 s); we act earlier.
_RAY_WAITS = "RAY_gcs_rpc_server_reconnect_timeout_s"
_BEFORE_RAY_S = 10.0
_LOG = logging.getLogger(__name__)


@contextmanager
def watched(address: str, end: Callable[[str], object] | None) -> Generator[None]:
    """Reports when the head at `address` stops answering, and when it answers again or is considered lost.

    Args:
        address: HOST:PORT of the head's own port (GCS).
        end: called once with the reason, in a thread, when the head is considered lost. It may end the process
            immediately: every call to Ray would wait for the head, and finished work is on storage. With None, as in a
            program that uses striate as a library, reports are warnings of the logger
            `cluster.connection.head_watch`, and the process is left to the program and to Ray.
    """
    over = threading.Event()
    threading.Thread(target=_watch, args=(address, over, end), name="head-watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(address: str, over: threading.Event, end: Callable[[str], object] | None) -> None:
    last_answer, reported = time.monotonic(), False
    waits_s = max(_REPORTED_S, float(os.environ.get(_RAY_WAITS, "60")) - _BEFORE_RAY_S)
    report = _LOG.warning if end is None else _to_stderr
    while not over.wait(_EVERY_S):
        if _answers(address):
            if reported:
                report(f"the head of the cluster at {address} answers again")
            last_answer, reported = time.monotonic(), False
            continue
        silent_s = time.monotonic() - last_answer
        silence = f"the head of the cluster at {address} has not answered for {silent_s:.0f} s"
        if silent_s >= waits_s and not over.is_set():
            (end or report)(f"{silence}; finished work is kept, and the same command resumes it under a new head")
            return
        if silent_s >= _REPORTED_S and not reported:
            report(f"{silence}; waiting {waits_s:.0f} s for it")
            reported = True


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _to_stderr(line: str) -> None:
    say(f"striate: {line}", file=sys.stderr, flush=True)
