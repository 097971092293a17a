"""The server's processes: workers that can be ended in the middle of their work, and the priority of a replica.

A thread cannot be stopped; a worker process can. It answers one frame after another. It is ended when its client has
left, when it takes too long, or when it needs too much memory; the next frame gets a new process. Requests and answers
are frames: the lengths of a JSON header and of the bytes after it, then both.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeAlias

from library.errors import StriateError

#: Answers a frame: header and bytes of the request, then of the answer.
AnswerFrame: TypeAlias = Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]
_LENGTHS = struct.Struct(">II")
_MAX_BYTES = 6 * 2**30
#: Steps of niceness: workers yield to the threads that prepare small pictures, and replicas to HAProxy.
_NICE = 5
_THREADS = Path("/proc/self/task")


class ProcessEndedError(StriateError):
    """The process ended before it answered.

    Attributes:
        in_time: False where its time limit ended it.
        status: its exit status; negative for a signal.
    """

    def __init__(self, status: int) -> None:
        self.status, self.in_time = status, status != -signal.SIGALRM
        super().__init__(f"the worker process ended with exit status {status}")


class ProcessPool:
    """A few worker processes, each started when there is work for it; for use from one event loop.

    Args:
        module: the module that they run, which calls `answer_frames`.
        size: number of processes.
        setup: plain data that every process gets at its start, as its first frame.
    """

    def __init__(self, module: str, size: int, setup: Any = None) -> None:
        self._processes = [_Process(module, setup) for _ in range(size)]
        # The process used last comes first, so that under little load few are started.
        self._free: asyncio.LifoQueue[_Process] = asyncio.LifoQueue()
        for process in self._processes:
            self._free.put_nowait(process)
        self._threads = ThreadPoolExecutor(size, "ask-worker")

    async def ask(self, header: dict[str, Any], data: bytes, *, seconds: float) -> tuple[dict[str, Any], bytes]:
        """Returns a worker's answer to one frame, after waiting for a free process. Cancelling ends that process.

        Args:
            header: of the frame, plain data.
            data: of the frame.
            seconds: how long the work may take, without the wait.

        Raises:
            ProcessEndedError: the work took too long, or the process crashed.
        """
        process = await self._free.get()
        process.is_cancelled = False
        call = asyncio.get_running_loop().run_in_executor(
            self._threads, process.ask, {**header, "seconds": seconds}, data
        )

        def release(call: asyncio.Future[Any]) -> None:
            # Only now: until the call is done, its thread uses the process.
            if not call.cancelled():
                call.exception()
            if process.is_cancelled:
                process.reap()  # it may have answered before it was killed
            self._free.put_nowait(process)

        call.add_done_callback(release)
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            process.kill()
            await asyncio.wait([call])
            raise

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.kill()
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Process:
    """One process, started by its first frame and again after each end."""

    def __init__(self, module: str, setup: Any) -> None:
        self._module, self._setup = module, setup
        self._running: subprocess.Popen[bytes] | None = None
        self.is_cancelled = False

    def ask(self, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        new = self._running is None
        running = self._running = self._running or self._start()
        assert running.stdin is not None
        assert running.stdout is not None
        if self.is_cancelled:  # while the process started
            running.kill()
        try:
            if new:
                _write_frame(running.stdin, {"setup": self._setup}, b"")
            _write_frame(running.stdin, header, data)
            answer = _read_frame(running.stdout)
        except BrokenPipeError:
            answer = None
        if answer is None:
            self.reap()
            raise ProcessEndedError(running.returncode)
        return answer

    def reap(self) -> None:
        """Waits for a process that has ended or was killed; the next frame starts another."""
        running, self._running = self._running, None
        if running is not None:
            running.communicate()

    def kill(self) -> None:
        self.is_cancelled, running = True, self._running
        if running is not None:
            running.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        # Without the limit OpenBLAS reserves memory for threads that it never uses here, which counts as the worker's.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )


def answer_frames(start: Callable[[Any], AnswerFrame]) -> None:
    """Answers frames, in a worker process, until its server closes the pipe.

    Args:
        start: gets the pool's `setup`, and returns the function that answers a frame.
    """
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    os.nice(_NICE)
    # Output that a library prints must not come between the frames.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    first = _read_frame(sys.stdin.buffer)
    if first is None:
        return
    answer = start(first[0]["setup"])
    while (frame := _read_frame(sys.stdin.buffer)) is not None:
        header, data = frame
        # SIGALRM's default action ends the process even within C code, and also after its server has died.
        signal.setitimer(signal.ITIMER_REAL, header["seconds"])
        reply = answer(header, data)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write_frame(replies, *reply)


def yield_to_others() -> None:
    """Lowers this process's priority below HAProxy and Serve's health checks.

    Without this, refusals come late under overload, because HAProxy, which sends them, gets no CPU time. Threads
    inherit the priority from the thread that starts them. Does nothing where threads cannot be listed (macOS).
    """
    if not _THREADS.is_dir():
        return
    for thread in map(int, os.listdir(_THREADS)):
        with contextlib.suppress(ProcessLookupError):  # the thread has ended since
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICE)


def _write_frame(pipe: IO[bytes], header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    pipe.write(_LENGTHS.pack(len(text), len(data)))
    pipe.write(text)
    pipe.write(data)
    pipe.flush()


def _read_frame(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """Returns the next frame; None when the other side has closed the pipe."""
    lengths = pipe.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    text, data = _LENGTHS.unpack(lengths)
    header, body = pipe.read(text), pipe.read(data)
    return None if len(header) < text or len(body) < data else (json.loads(header), body)
