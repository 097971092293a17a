"""Load on an HTTP server: as fast as it answers, by wrk, or at a rate that does not wait for it.

What wrk cannot do is keep a rate when answers come late or are refusals; a small client over asyncio's streams does
that. Its latencies count from the moment a request was due, not from when it could be sent (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import uvloop

from benchmarks.common.measuring import NotRunError
from library.errors import StriateError, UsageError

_SCRIPT = Path(__file__).parent / "programs" / "post.lua"
_TIMEOUT_S = 30.0
#: More connections than this at once are not opened: a client of its own would fall over before the server does.
_MAX_CONNECTIONS = 1000


@dataclass(frozen=True)
class Bodies:
    """What is posted: numbered JPEG files in a folder, `000000.jpg` and on."""

    folder: Path
    count: int

    def read(self) -> list[bytes]:
        return [(self.folder / f"{number:06d}.jpg").read_bytes() for number in range(self.count)]


def closed_loop(url: str, bodies: Bodies, concurrency: int, seconds: float, form: str | None = None) -> dict[str, Any]:
    """Each of `concurrency` connections asks again as soon as it is answered.

    Args:
        form: name of the multipart field; None posts the bytes as they are.

    Returns:
        `requests_per_s` of good answers, `p50_ms`, `p95_ms`, `p99_ms`, `max_ms`, `refused` (another status), `broken`.
    """
    if shutil.which("wrk") is None:
        raise UsageError("no `wrk` here; `apt-get install -y wrk`")
    command = ["wrk", "-t1", f"-c{concurrency}", f"-d{max(1, round(seconds))}s", f"--timeout={_TIMEOUT_S:.0f}s"]
    command += ["-s", str(_SCRIPT), url, "--", str(bodies.folder), str(bodies.count), *([form] if form else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise StriateError(f"wrk failed: {(done.stderr or done.stdout).strip()[-500:]}")
    report = json.loads(done.stdout.splitlines()[-1])
    good = report.pop("requests") - report["refused"]
    if not good:
        raise NotRunError(f"{url} gave no good answer: {report}")
    return {"requests_per_s": round(good / report.pop("seconds"), 2), **report}


@dataclass
class OpenLoop:
    """What became of requests that were due at a steady rate.

    Attributes:
        rate: requests a second that were due.
        seconds: from the first that was due to the last answer.
        good_ms: latencies of the answers, from when each was due.
        refused_ms: of refusals (429, 503), likewise.
        other: answers of another status, by it; `broken` for none at all.
        late_ms: how late the client itself sent each: where it is large, the client was too slow for the rate.
    """

    rate: float
    seconds: float
    good_ms: list[float] = field(default_factory=list[float])
    refused_ms: list[float] = field(default_factory=list[float])
    other: Counter[str] = field(default_factory=Counter[str])
    late_ms: list[float] = field(default_factory=list[float])

    def figures(self) -> dict[str, Any]:
        return {
            "due_per_s": round(self.rate, 2),
            "good_per_s": round(len(self.good_ms) / self.seconds, 2),
            "good": _percentiles(self.good_ms),
            "refused": {"count": len(self.refused_ms), **_percentiles(self.refused_ms)},
            "other": dict(self.other),
            "client_late_p99_ms": _percentiles(self.late_ms)["p99_ms"],
        }


def open_loop(url: str, bodies: Bodies, rate: float, seconds: float) -> OpenLoop:
    """Ask at a steady rate, whatever becomes of it."""
    # To look through all that this process holds takes time in which it would neither ask nor hear an answer.
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_open_loop(url, bodies.read(), rate, seconds))
    finally:
        gc.enable()


async def _open_loop(url: str, bodies: Sequence[bytes], rate: float, seconds: float) -> OpenLoop:
    result = OpenLoop(rate, seconds)
    client = _Client(url)
    requests = [client.encoded(body) for body in bodies]
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    start = perf_counter()
    for number in range(round(rate * seconds)):
        due = start + number / rate
        if (left := due - perf_counter()) > 0:
            await asyncio.sleep(left)
        elif number % 16 == 0:
            await asyncio.sleep(0)  # answers are read even where we are behind
        task = loop.create_task(_one(client, requests[number % len(requests)], due, result))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks, timeout=2 * _TIMEOUT_S)
    result.seconds = max(seconds, perf_counter() - start)
    client.close()
    return result


async def _one(client: _Client, request: bytes, due: float, result: OpenLoop) -> None:
    result.late_ms.append((perf_counter() - due) * 1e3)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            status = await client.status(request)
    except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
        result.other[f"broken: {type(error).__name__}"] += 1
        return
    spent = (perf_counter() - due) * 1e3
    if status == 200:
        result.good_ms.append(spent)
    elif status in (429, 503):
        result.refused_ms.append(spent)
    else:
        result.other[str(status)] += 1


class _Client:
    """Keeps connections open and takes the one used last; a library for HTTP would take longer than a small model."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: image/jpeg\r\n"
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._room = asyncio.Semaphore(_MAX_CONNECTIONS)

    def encoded(self, body: bytes) -> bytes:
        return f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def status(self, request: bytes) -> int:
        """Send a request and read its answer whole."""
        async with self._room:
            reader, writer = self._idle.pop() if self._idle else await self._opened()
            try:
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
            except BaseException:
                writer.close()
                raise
            if b"connection: close" in head:
                writer.close()
            else:
                self._idle.append((reader, writer))
            return int(head.split(b" ", 2)[1])

    async def _opened(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._host, self._port)

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return dict.fromkeys(("p50_ms", "p95_ms", "p99_ms", "max_ms"))
    percentiles = np.percentile(values, [50, 95, 99, 100])
    return {
        name: round(float(value), 3)
        for name, value in zip(("p50_ms", "p95_ms", "p99_ms", "max_ms"), percentiles, strict=True)
    }
