"""Machines on this machine: each has a network of its own, an address, a host name, a disk and processes that end with
it. What runs on one reaches the others by their addresses only. Linux as root, with iproute2 and util-linux.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes import command, family
from tests.waiting import until

_NETWORK = "10.213.{third}.{last}"
_BRIDGE = "striate"
#: Of this machine itself, in the network of the others.
_OUTSIDE = 254
_NAMESPACES = ("--net", "--mount", "--uts", "--pid")
_INIT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs {disk}
mount -t tmpfs tmpfs /dev/shm
hostname {name}
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
ip address add {address}/24 dev eth0
ip link set eth0 up
ip route add default via {outside}
touch {disk}/.up
exec sleep infinity
"""


@dataclass(frozen=True)
class Machine:
    """One of them; `pid` is of its first process, as this machine numbers it, and all others descend from that."""

    name: str
    address: str
    pid: int
    link: str
    process: subprocess.Popen[bytes]

    def start(self, *words: str, environment: Mapping[str, str], **options: Any) -> subprocess.Popen[bytes]:
        """A command there, in /, with pipes for its stdout and stderr."""
        enter = ["nsenter", "--target", str(self.pid), *_NAMESPACES]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen([*enter, *words], env=dict(environment), **pipes)

    def runs(self, what: str) -> bool:
        """Whether a process there has this in its command line."""
        return any(what in command(pid) for pid in family(self.pid))

    def kill(self) -> None:
        """Ends all its processes without notice, as a power failure does."""
        _ip("link", "set", self.link, "down", check=False)
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Machines:
    """Machines in one network.

    Attributes:
        each: the machines.
        outside: the address of the real machine in their network.
        disk: a path that is a different disk on each of them and on the real machine.
    """

    each: Sequence[Machine]
    outside: str
    disk: Path


def why_not() -> str | None:
    """The reason why machines cannot be made here; None where they can."""
    if missing := [tool for tool in ("ip", "unshare", "nsenter", "hostname") if shutil.which(tool) is None]:
        return f"there is no {missing[0]}"
    tried = subprocess.run(["unshare", *_NAMESPACES, "--fork", "true"], capture_output=True, check=False)
    if tried.returncode:
        return tried.stderr.decode().strip()
    try:
        _ip("link", "delete", _bridge())
    except OSError as error:
        return str(error)
    return None


@contextlib.contextmanager
def machines(names: Sequence[str]) -> Generator[Machines]:
    """Machines with these names, until the block ends."""
    # Short: Ray puts sockets below it.
    disk = Path(tempfile.mkdtemp(prefix="disk-", dir="/tmp"))
    with contextlib.ExitStack() as stack:
        stack.callback(disk.rmdir)
        bridge = _bridge()
        stack.callback(_ip, "link", "delete", bridge)
        third = int(bridge.removeprefix(_BRIDGE))
        outside = _NETWORK.format(third=third, last=_OUTSIDE)
        _ip("address", "add", f"{outside}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        each: list[Machine] = []
        for number, name in enumerate(names, 1):
            address, link = _NETWORK.format(third=third, last=number), f"{bridge}-{number}"
            init = _INIT.format(disk=disk, name=name, address=address, outside=outside)
            process = subprocess.Popen(
                ["unshare", *_NAMESPACES, "--fork", "--kill-child", "--mount-proc", "sh", "-c", init],
                stdin=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            machine = Machine(name, address, _child(process), link, process)
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(machine.pid))
            stack.callback(_ip, "link", "delete", link, check=False)  # the kernel may have been faster
            _ip("link", "set", link, "master", bridge, "up")
            until((Path(f"/proc/{machine.pid}/root") / disk.relative_to("/") / ".up").exists, 10)
            each.append(machine)
        yield Machines(each, outside, disk)


def _bridge() -> str:
    """Creates a bridge with an unused number and returns its name.

    Raises:
        OSError: it cannot be created on this machine.
    """
    for number in random.sample(range(256), 256):
        result = subprocess.run(["ip", "link", "add", f"{_BRIDGE}{number}", "type", "bridge"], capture_output=True)
        if result.returncode == 0:
            return f"{_BRIDGE}{number}"
        if b"exists" not in result.stderr:
            break
    raise OSError(result.stderr.decode().strip())


def _child(process: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until(lambda: children.read_text().strip(), 10)
    return int(children.read_text())


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=not check)
