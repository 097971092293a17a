"""The endpoint of a server: which machines reach an address, whether a port is free, where a running Serve listens."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket

from cluster import ray_internals
from cluster.machine import free_ports
from library.errors import StriateError, UsageError

#: Where `publish` stores the address in Ray's key-value store.
_NAMESPACE, _KEY = "striate", "serve:listens"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_wildcard(host: str) -> bool:
    """Whether the address stands for all of a machine's addresses."""
    return host in ("0.0.0.0", "::")


def free_port(host: str, port: int) -> int:
    """Returns `port`, or a free port where it is 0.

    Raises:
        UsageError: when the port is in use, or this machine does not have the address.
    """
    if port == 0:
        # Without such an address, or with no free port in the range, the bind below gives the error.
        with contextlib.suppress(StriateError):
            return free_ports(1, host)[0]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As servers do: a closing connection of the previous server does not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}; see --host and --port") from None
        return probe.getsockname()[1]


async def answers(host: str, port: int, path: str) -> bool:
    """Whether a server answers HEAD requests for `path`, with 401 too.

    True where nothing listens on the port: then no proxy runs on this node, so none can be behind.
    """
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


def publish(host: str, port: int) -> None:
    """Stores the server's address for later commands on this Ray; Serve itself knows only the one behind HAProxy."""
    ray_internals.kv_put(_KEY, f"{host} {port}".encode(), namespace=_NAMESPACE)


def serve_address() -> tuple[str, int] | None:
    """Host and port of the Serve that runs on this Ray; None where none runs."""
    address = ray_internals.serve_address()
    published = ray_internals.kv_get(_KEY, namespace=_NAMESPACE) if address else None
    if not published:
        return address
    host, _, port = published.decode().partition(" ")
    return host, int(port)


def local_proxy() -> tuple[str, int]:
    """Host and port at which a process of this machine reaches the running Serve."""
    address = serve_address()
    assert address is not None, "called from a replica of Serve only"
    host, port = address
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port
