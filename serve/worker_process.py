"""Processes that can be ended in the middle of their work: for pictures and steps that may take long.

Threads cannot be stopped. A worker process answers one frame after another; it is ended when the answer is no longer
wanted, when it takes too long, or when it takes too much memory, and the next frame gets a new process. Both ways go
frames: the lengths of a JSON header and of the bytes after it, then both.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from library.errors import StriateError

_LENGTHS = struct.Struct(">II")
_MAX_BYTES = 6 * 2**30
#: Small pictures, which threads of the server prepare, come first.
_NICE = 5


class ProcessEndedError(StriateError):
    """The process ended before it answered.

    Attributes:
        in_time: False where it was its time limit that ended it.
        status: its exit status; negative for a signal.
    """

    def __init__(self, status: int) -> None:
        self.status, self.in_time = status, status != -signal.SIGALRM
        super().__init__(f"the process that did the work ended with exit status {status}")


class WorkerPool:
    """A few worker processes, each started when there is work for it; used from one event loop.

    Args:
        module: what they run: a module that calls `answer_frames`.
        size: how many.
        setup: plain data that every process gets at its start.
    """

    def __init__(self, module: str, size: int, setup: Any = None) -> None:
        self._processes = [_Process(module, setup) for _ in range(size)]
        # The one used last first: where little is asked few are started.
        self._free: asyncio.LifoQueue[_Process] = asyncio.LifoQueue()
        for process in self._processes:
            self._free.put_nowait(process)
        self._threads = ThreadPoolExecutor(size, "ask-worker")

    async def ask(self, header: dict[str, Any], data: bytes, *, seconds: float) -> tuple[dict[str, Any], bytes]:
        """One frame's answer, which is waited for in turn. Cancelling ends the process that is at it.

        Args:
            header: of the frame, plain data.
            data: of the frame.
            seconds: how long the work itself may take.

        Raises:
            ProcessEndedError: it took too long, or crashed.
        """
        process = await self._free.get()
        process.wanted = True
        call = asyncio.get_running_loop().run_in_executor(
            self._threads, process.ask, {**header, "seconds": seconds}, data
        )

        def release(call: asyncio.Future[Any]) -> None:
            # Not before: until then the thread uses the process.
            if not call.cancelled():
                call.exception()
            if not process.wanted:
                process.reap()  # it may have answered before it was ended
            self._free.put_nowait(process)

        call.add_done_callback(release)
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            process.kill()
            await asyncio.wait([call])
            raise

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Process:
    """One process, started by its first question and again after each end."""

    def __init__(self, module: str, setup: Any) -> None:
        self._module, self._setup = module, json.dumps(setup)
        self._running: subprocess.Popen[bytes] | None = None
        self.wanted = True

    def ask(self, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        running = self._running = self._running or self._started()
        assert running.stdin is not None
        assert running.stdout is not None
        if not self.wanted:  # ended while it was started
            running.kill()
        try:
            _write_frame(running.stdin, header, data)
            answer = _read_frame(running.stdout)
        except BrokenPipeError:
            answer = None
        if answer is None:
            self.reap()
            raise ProcessEndedError(running.returncode)
        return answer

    def reap(self) -> None:
        """Wait for a process that has ended, or was told to; the next question starts another."""
        running, self._running = self._running, None
        if running is not None:
            running.communicate()

    def kill(self) -> None:
        self.wanted, running = False, self._running
        if running is not None:
            running.kill()

    def _started(self) -> subprocess.Popen[bytes]:
        # Threads that OpenBLAS never uses here would each reserve memory that counts against the limit.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", self._module, self._setup],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )


def setup() -> Any:
    """What a worker process was started with."""
    return json.loads(sys.argv[1])


def answer_frames(answer: Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]) -> None:
    """In a worker process: answer frames until there are no more."""
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    os.nice(_NICE)
    # What a library prints must not get between the frames.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while (frame := _read_frame(sys.stdin.buffer)) is not None:
        header, data = frame
        # The default action ends the process, whatever C code it is in, and also when its server is gone.
        signal.setitimer(signal.ITIMER_REAL, header["seconds"])
        told = answer(header, data)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write_frame(replies, *told)


def _write_frame(pipe: IO[bytes], header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    pipe.write(_LENGTHS.pack(len(text), len(data)))
    pipe.write(text)
    pipe.write(data)
    pipe.flush()


def _read_frame(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """The next frame; None when the other side has ended."""
    lengths = pipe.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    text, data = _LENGTHS.unpack(lengths)
    header, body = pipe.read(text), pipe.read(data)
    return None if len(header) < text or len(body) < data else (json.loads(header), body)
