"""A proxy in front of an S3 server that makes requests fail as real servers do."""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["slow_down", "reset", "cut", "slow"]

_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class FaultProxy(socketserver.ThreadingTCPServer):
    """Applies the next fault of `faults`, in turn, to every `every`-th request; the others pass.

    slow_down: 503 SlowDown, the request never reaches the server.
    reset: the connection is reset before the answer, after the server has carried out the request.
    cut: the connection is reset in the middle of the answer's body.
    slow: the answer is delayed by half a second.

    Attributes:
        applied: how often each fault was applied.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, target: str, faults: Sequence[Fault] = (), every: int = 4) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        split = urlsplit(target)
        self.target = (split.hostname or "", split.port or 0)
        self.faults, self.every = faults, every
        self.applied: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._requests = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self) -> Fault | None:
        with self._lock:
            self._requests += 1
            if not self.faults or self._requests % self.every:
                return None
            fault = self.faults[self._requests // self.every % len(self.faults)]
            self.applied[fault] += 1
            return fault

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(socketserver.StreamRequestHandler):
    """One request per connection: `Connection: close` tells both sides so."""

    server: FaultProxy

    def handle(self) -> None:
        head = self._head()
        if not head:
            return
        body = self.rfile.read(_length(head))
        fault = self.server.next_fault()
        if fault == "slow_down":
            answer = b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
            self.wfile.write(answer + b"Content-Length: %d\r\n\r\n" % len(_SLOW_DOWN) + _SLOW_DOWN)
            return
        with socket.create_connection(self.server.target) as upstream:
            upstream.sendall(head + body)
            answer = b"".join(iter(lambda: upstream.recv(2**16), b""))
        if fault == "slow":
            time.sleep(0.5)  # the fault itself, not a wait for something
        if fault in ("reset", "cut"):
            start_of_body = answer.find(b"\r\n\r\n") + 4
            if fault == "cut":
                self.wfile.write(answer[: start_of_body + (len(answer) - start_of_body) // 2])
            # Closing with a zero linger time sends a reset.
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        self.wfile.write(answer)

    def _head(self) -> bytes:
        lines: list[bytes] = []
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            name = line.lower()
            if name.startswith(b"expect:"):
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            elif not name.startswith(b"connection:"):
                lines.append(line)
        return b"".join(lines) + b"Connection: close\r\n\r\n" if lines else b""


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return 0
