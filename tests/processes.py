"""What processes there are, and where they listen."""

from __future__ import annotations

import io
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from library import storage

LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


def reading_threads(monkeypatch: pytest.MonkeyPatch) -> set[type[threading.Thread]]:
    """The kinds of threads that read local files of `library.storage` from now on, filled as they do. Python knows a
    thread that it has not started, as one of Arrow's own, as a "dummy"."""
    found: set[type[threading.Thread]] = set()

    class Recorded(io.FileIO):
        def readinto(self, buffer: Any, /) -> int | None:
            found.add(type(threading.current_thread()))
            return super().readinto(buffer)

        def read(self, size: int | None = -1, /) -> bytes | None:
            found.add(type(threading.current_thread()))
            return super().read(size)

    monkeypatch.setattr(storage, "open_read", Recorded)
    return found


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        try:
            found += [each for child in (thread / "children").read_text().split() for each in family(int(child))]
        except OSError:
            continue
    return found


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def listening(pids: list[int]) -> set[tuple[str, int]]:
    """Addresses and ports that processes accept TCP connections on."""
    sockets: set[str] = set()
    for pid in pids:
        try:
            links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        sockets |= {link[8:-1] for link in links if link.startswith("socket:[")}
    found: set[tuple[str, int]] = set()
    for kind, family_of in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in sockets:
                address, _, port = words[1].partition(":")
                raw = bytes.fromhex(address)
                raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
                found.add((socket.inet_ntop(family_of, raw), int(port, 16)))
    return found
