"""Processes of this machine, and the addresses they listen on."""

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
    """A set that collects the types of threads that read local files through `library.storage` from now on. A thread
    that Python did not start, such as one of Arrow's, is a `_DummyThread`."""
    thread_types: set[type[threading.Thread]] = set()

    class Recorded(io.FileIO):
        def readinto(self, buffer: Any, /) -> int | None:
            thread_types.add(type(threading.current_thread()))
            return super().readinto(buffer)

        def read(self, size: int | None = -1, /) -> bytes | None:
            thread_types.add(type(threading.current_thread()))
            return super().read(size)

    monkeypatch.setattr(storage, "open_read", Recorded)
    return thread_types


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    pids = [pid]
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        try:
            pids += [each for child in (thread / "children").read_text().split() for each in family(int(child))]
        except OSError:
            continue
    return pids


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def listening(pids: list[int]) -> set[tuple[str, int]]:
    """Addresses and ports on which the processes accept TCP connections."""
    sockets: set[str] = set()
    for pid in pids:
        try:
            links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        sockets |= {link[8:-1] for link in links if link.startswith("socket:[")}
    addresses: set[tuple[str, int]] = set()
    for kind, family_of in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in sockets:
                address, _, port = words[1].partition(":")
                raw = bytes.fromhex(address)
                raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
                addresses.add((socket.inet_ntop(family_of, raw), int(port, 16)))
    return addresses
