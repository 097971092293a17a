"""Pictures after any steps, each in a process that can be ended: see `preview_worker`."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

from anyio import to_thread

from library.errors import BadPicture, StepError
from serve.preview_worker import read_frame, write_frame
from serve.service import Busy, TimedOut
from serve.settings import ServeSettings

_MOST_WAITING = 16
_MAX_BYTES = 6 * 2**30
_MAX_SECONDS = 10.0


class Previewer:
    """Shows one picture after another; its process starts with the first and lives until the server ends."""

    def __init__(self, settings: ServeSettings) -> None:
        self._max_pixels = settings.max_pixels
        self._seconds = min(settings.timeout_s, _MAX_SECONDS)
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._process: subprocess.Popen[bytes] | None = None

    async def show(self, data: bytes, steps: str) -> bytes:
        """A picture after steps, as PNG.

        Raises:
            BadPicture: it cannot be used, or is dropped, or would become too large.
            StepError: a step's own code fails.
            TimedOut: the steps took too long.
            Busy: too many wait.
        """
        if self._waiting >= _MOST_WAITING:
            raise Busy("too many previews wait for their turn")
        self._waiting += 1
        try:
            async with self._lock:
                return await to_thread.run_sync(self._ask, data, steps)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, data: bytes, steps: str) -> bytes:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            write_frame(process.stdin, {"steps": steps, "max_pixels": self._max_pixels, "seconds": self._seconds}, data)
            answer = read_frame(process.stdout)
        except BrokenPipeError:
            answer = None
        if answer is None:
            self._process = None
            process.communicate()
            if process.returncode == -signal.SIGALRM:
                raise TimedOut(f"the steps took more than {self._seconds:g} s")
            raise StepError(f"the steps ended the process that ran them (exit status {process.returncode})")
        header, png = answer
        if "reason" in header:
            raise BadPicture(header["reason"], header["detail"])
        if "detail" in header:
            raise StepError(header["detail"])
        return png

    def _start(self) -> subprocess.Popen[bytes]:
        # Threads that OpenBLAS never uses here would each reserve memory that counts against the limit.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "serve.preview_worker", str(_MAX_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        return self._process
