"""A cluster's head that is gone: Ray waits for it a minute, and then ends the process without a word."""

from __future__ import annotations

import _thread
import os
import socket
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

from library.errors import StriateError

_EVERY_S = 2.0
_TIMEOUT_S = 5.0
#: Silence that is told.
_TOLD_S = 5.0
#: Ray ends the process when it has been without a head for so long (ray 2.60's default is 60 s); we are first.
_RAY_WAITS = "RAY_gcs_rpc_server_reconnect_timeout_s"
_BEFORE_RAY_S = 10.0


class HeadLostError(StriateError):
    """The head has not come back; what is done lies in the job's destination."""


@contextmanager
def watched(address: str) -> Generator[None]:
    """Tell on stderr when the head at `address` stops answering, and end the block before Ray ends the process.

    Args:
        address: HOST:PORT of the head's own port (GCS).

    Raises:
        HeadLostError: in place of whatever the block was waiting for.
    """
    watch = _Watch(address)
    try:
        yield
    except BaseException:
        if not watch.has_given_up:
            raise
    finally:
        watch.end()
    if watch.has_given_up:
        raise HeadLostError(f"{watch.silence()}, it is lost; {_GOES_ON}")


_GOES_ON = "what is done stays, the same command goes on from there under a new head"


class _Watch:
    def __init__(self, address: str) -> None:
        self._address = address
        self._heard = time.monotonic()
        self._waits_s = max(_TOLD_S, float(os.environ.get(_RAY_WAITS, "60")) - _BEFORE_RAY_S)
        self._ended = threading.Event()
        self.has_given_up = False
        threading.Thread(target=self._run, name="head-watch", daemon=True).start()

    def silence(self) -> str:
        return f"the head of the cluster at {self._address} has not answered for {self._silent_s():.0f} s"

    def end(self) -> None:
        self._ended.set()

    def _silent_s(self) -> float:
        return time.monotonic() - self._heard

    def _run(self) -> None:
        told = False
        while not self._ended.wait(_EVERY_S):
            if self._answers():
                self._heard = time.monotonic()
                if told:
                    _tell(f"the head of the cluster at {self._address} answers again")
                told = False
            elif self._silent_s() >= self._waits_s:
                self.has_given_up = True
                _thread.interrupt_main()
                return
            elif self._silent_s() >= _TOLD_S and not told:
                _tell(f"{self.silence()}; waiting {self._waits_s:.0f} s for it")
                told = True

    def _answers(self) -> bool:
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=_TIMEOUT_S).close()
        except OSError:
            return False
        return True


def _tell(line: str) -> None:
    print(f"striate: {line}", file=sys.stderr, flush=True)
