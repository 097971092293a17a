"""Where a server may be reached, and by whom."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket

from cluster.machine import free_ports
from library.errors import StriateError, UsageError
from serve.http.keys import Keys
from serve.settings import ServeSettings


def check_reach(host: str, settings: ServeSettings, here: bool = True) -> None:
    """Refuse to be reached from other machines without keys.

    Args:
        host: address to listen on.
        settings: with keys, or without.
        here: the key file is read as well: it must be on this machine.

    Raises:
        UsageError: saying how to make keys; also for a wrong key file.
    """
    if settings.needs_key:
        if here:
            Keys(settings.keys or (), settings.keys_file)
    elif not is_loopback(host):
        raise UsageError(
            f"--host {host} can be reached from other machines, and there are no API keys: anyone could ask. "
            "Make one with `striate keys NAME --file keys.txt` and serve with --api-keys keys.txt, or leave --host out"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_wildcard(host: str) -> bool:
    """Whether it stands for all of a machine's addresses."""
    return host in ("0.0.0.0", "::")


async def answers(host: str, port: int, path: str) -> bool:
    """Whether a server answers HEAD requests for `path`, also by asking for a key; True where none listens at all."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    request = f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: readyz\r\nConnection: close\r\n\r\n"
    try:
        writer.write(request.encode())
        status = (await reader.readline()).split()[1:2]
    except OSError:
        return False
    finally:
        writer.close()
    return status in ([b"200"], [b"401"])


def free_port(host: str, port: int) -> int:
    """`port`, or with 0 one that is free.

    Raises:
        UsageError: when something listens there, or there is no such address.
    """
    if port == 0:
        with contextlib.suppress(StriateError):  # no such address, which is told below; or of ours none is free
            return free_ports(1, host)[0]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As servers do: a connection of one before that still ends is no reason to refuse.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}; see --host and --port") from None
        return probe.getsockname()[1]
