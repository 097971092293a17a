"""Puts load on an HTTP server: in a closed loop with wrk, or in an open loop at a constant rate.

wrk cannot keep a rate when answers are late or refused, so a small asyncio client does. It measures latencies from the
moment when a request was due, not from when it was sent (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
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

from benchmarks.common.measuring import NotRunError
from library.errors import StriateError, UsageError

_SCRIPT = Path(__file__).parent / "programs" / "post.lua"
_TIMEOUT_S = 30.0
#: The most connections of the open loop; with more, the client would fail before the server does.
_MAX_CONNECTIONS = 1000


@dataclass(frozen=True)
class Bodies:
    """The request bodies: `count` JPEG files in a folder, `000000.jpg` and so on."""

    folder: Path
    count: int

    def read(self) -> list[bytes]:
        return [(self.folder / f"{number:06d}.jpg").read_bytes() for number in range(self.count)]


def closed_loop(url: str, bodies: Bodies, concurrency: int, seconds: float, form: str | None = None) -> dict[str, Any]:
    """Measures a server with `concurrency` connections, each of which sends a request as soon as it has an answer.

    Args:
        url: address that pictures are posted to.
        bodies: sent in turn.
        concurrency: number of connections.
        seconds: duration.
        form: name of the multipart field; None posts the bytes as they are.

    Returns:
        `requests_per_s` with status 200, `p50_ms`, `p95_ms`, `p99_ms`, `max_ms`, `refused` (answers with another
        status) and `broken` (requests without an answer).
    """
    if shutil.which("wrk") is None:
        raise UsageError("`wrk` is not installed: apt-get install -y wrk")
    command = ["wrk", "-t1", f"-c{concurrency}", f"-d{max(1, round(seconds))}s", f"--timeout={_TIMEOUT_S:.0f}s"]
    command += ["-s", str(_SCRIPT), url, "--", str(bodies.folder), str(bodies.count), *([form] if form else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise StriateError(f"wrk failed: {(done.stderr or done.stdout).strip()[-500:]}")
    report = json.loads(done.stdout.splitlines()[-1])
    good = report.pop("requests") - report["refused"]
    if not good:
        raise NotRunError(f"{url} answered no request with status 200: {report}")
    return {"requests_per_s": round(good / report.pop("seconds"), 2), **report}


def client_loop(url: str, bodies: Bodies, concurrency: int, seconds: float, processes: int) -> dict[str, Any]:
    """Does what `closed_loop` does with Python's clients in place of wrk, for a machine that lacks it.

    Args:
        url: address that pictures are posted to.
        bodies: sent in turn.
        concurrency: number of connections.
        seconds: duration.
        processes: clients that share the connections; each needs a core.

    Returns:
        The figures of `closed_loop`; `max_ms` may be `None`, like all times, where no request was answered.
    """
    processes = min(processes, concurrency)
    shares = [
        concurrency * (number + 1) // processes - concurrency * number // processes for number in range(processes)
    ]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        parts = pool.starmap(_closed_loop, [(url, bodies, share, seconds, first) for first, share in enumerate(shares)])
    latencies = [latency for part in parts for latency in part.good_ms]
    return {
        "requests_per_s": round(sum(len(part.good_ms) / part.seconds for part in parts), 2),
        **_percentiles(latencies),
        "refused": sum(len(part.refused_ms) for part in parts),
        "broken": sum(sum(part.other.values()) for part in parts),
    }


def _closed_loop(url: str, bodies: Bodies, connections: int, seconds: float, first: int) -> OpenLoop:
    """Runs one client process of `client_loop`."""
    return asyncio.run(_ask_again(url, bodies.read(), connections, seconds, first))


async def _ask_again(url: str, bodies: Sequence[bytes], connections: int, seconds: float, first: int) -> OpenLoop:
    result = OpenLoop(0.0, seconds)
    client = _Client(url)
    requests = [client.encoded(body) for body in bodies]
    start = perf_counter()

    async def connection(number: int) -> None:
        while (sent := perf_counter()) - start < seconds:
            await _send(client, requests[number % len(requests)], sent, result)
            number += connections

    await asyncio.gather(*(connection(first * connections + number) for number in range(connections)))
    result.seconds = perf_counter() - start
    client.close()
    return result


@dataclass
class OpenLoop:
    """The outcomes of requests that were due at a constant rate.

    Attributes:
        rate: requests per second that were due.
        seconds: from the first due request to the last answer.
        good_ms: latencies of answers with status 200, from the moment when the request was due.
        refused_ms: latencies of refusals (429, 503), from the same moment.
        other: number of other outcomes, by status, or by `broken: ERROR` for requests without an answer.
        late_ms: delay of each request in the client itself; if it is large, the client was too slow for the rate.
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
    """Sends requests at a constant rate, however late the answers are."""
    import uvloop

    # A collection would stop the client for so long that requests are sent and answers are read too late.
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
            await asyncio.sleep(0)  # lets answers be read even if the client is late
        task = loop.create_task(_send(client, requests[number % len(requests)], due, result))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks, timeout=2 * _TIMEOUT_S)
    result.seconds = max(seconds, perf_counter() - start)
    client.close()
    return result


async def _send(client: _Client, request: bytes, due: float, result: OpenLoop) -> None:
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
    """Keeps connections open and reuses the latest one; an HTTP library would take longer than a small model."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: image/jpeg\r\n"
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._slots = asyncio.Semaphore(_MAX_CONNECTIONS)

    def encoded(self, body: bytes) -> bytes:
        return f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def status(self, request: bytes) -> int:
        """Sends a request, reads the whole answer, and returns its status."""
        async with self._slots:
            reader, writer = self._idle.pop() if self._idle else await self._connect()
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

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
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
