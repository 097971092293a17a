"""A web server whose answers, good and bad, are written byte for byte by the tests."""

from __future__ import annotations

import gzip
import socket
import socketserver
import struct
import threading
from collections import Counter, defaultdict
from collections.abc import Callable

#: Bytes to send, or what to do with the connection.
Answer = bytes | Callable[[socket.socket], None]


class LinkServer(socketserver.ThreadingTCPServer):
    """Answers the requests for a path from a list, one after the other; the last answer repeats.

    Attributes:
        requests: number of requests by path.
        heads: the heads of the requests, by path.
        most: the largest number of requests open at the same time.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("0.0.0.0", 0), _Handler)
        self.answers: dict[str, list[Answer]] = {}
        self.requests: Counter[str] = Counter()
        self.heads: dict[str, list[str]] = defaultdict(list)
        self.open = self.most = 0
        self.lock = threading.Lock()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_address[1]}{path}"

    def add(self, path: str, *answers: Answer) -> str:
        """Set the answers of a path; returns its address."""
        self.answers[path] = list(answers)
        return self.url(path)

    def __enter__(self) -> LinkServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(socketserver.BaseRequestHandler):
    server: LinkServer

    def handle(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            more = self.request.recv(65536)
            if not more:
                return
            head += more
        path = head.split(b" ", 2)[1].decode()
        with self.server.lock:
            answers = self.server.answers.get(path, [reply(b"", status=404)])
            answer = answers[min(self.server.requests[path], len(answers) - 1)]
            self.server.requests[path] += 1
            self.server.heads[path].append(head.decode("latin-1"))
            self.server.open += 1
            self.server.most = max(self.server.most, self.server.open)
        try:
            self.request.sendall(answer) if isinstance(answer, bytes) else answer(self.request)
        except OSError:
            pass  # the client has closed the connection
        finally:
            with self.server.lock:
                self.server.open -= 1


def reply(body: bytes, *fields: str, status: int = 200, length: int | None = None, kind: str = "image/jpeg") -> bytes:
    """A complete answer; `length` is the Content-Length it claims."""
    claimed = len(body) if length is None else length
    lines = [
        f"HTTP/1.1 {status} X",
        f"Content-Length: {claimed}",
        f"Content-Type: {kind}",
        "Connection: close",
        *fields,
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def redirect(target: str, status: int = 302) -> bytes:
    return reply(b"", f"Location: {target}", status=status)


def reset(connection: socket.socket) -> None:
    """Ends the connection as a crash does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def silence(connection: socket.socket) -> None:
    """Holds the connection without an answer until the client closes it."""
    connection.recv(1)


def drip(connection: socket.socket) -> None:
    """Starts a valid answer, then sends a byte every 10 ms."""
    closed = threading.Event()
    connection.sendall(reply(b"\xff\xd8\xff", length=10**6))
    while not closed.wait(0.01):
        connection.sendall(b"x")


def endless(connection: socket.socket) -> None:
    """A body without a length and without an end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nConnection: close\r\n\r\n\xff\xd8\xff")
    while True:
        connection.sendall(bytes(65536))


def bomb(num_bytes: int, head: bytes) -> bytes:
    """A small gzip body that unpacks to a large one, which begins with `head`."""
    return reply(gzip.compress(head + bytes(num_bytes)), "Content-Encoding: gzip")
