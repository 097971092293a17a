"""Addresses of Ray clusters: whether one answers, needs a token, or is the same as another."""

from __future__ import annotations

import socket

from library.errors import StriateError, UsageError

#: A call without effect that shows whether the head requires a token.
_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"


def check_answers(address: str) -> tuple[str, int]:
    """Returns host and port of a cluster that answers; Ray itself would retry for minutes if nothing listens."""
    host, port = _host_and_port(address)
    try:
        socket.create_connection((host, port), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise StriateError(
            f"cannot connect to Ray at {address}: {error}; is it running, and is that its port (6379, ray:// 10001)?"
        ) from error
    return host, port


def asks_for_token(host: str, port: int) -> bool:
    """Whether a cluster requires a token. A driver with a token cannot connect to a cluster without one."""
    import grpc

    with grpc.insecure_channel(f"{host}:{port}") as channel:
        try:
            channel.unary_unary(_ALIVE)(b"", timeout=10)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAUTHENTICATED
    return False


def is_only_here(host: str, port: int) -> bool:
    """Whether something listens on this machine's loopback address, but not on its network address."""
    if host not in ("127.0.0.1", "localhost"):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Nothing is sent: this only chooses the interface.
            probe.connect(("8.8.8.8", 53))
            socket.create_connection((probe.getsockname()[0], port), timeout=10).close()
        except OSError:
            return True
    return False


def is_same(one: str, other: str) -> bool:
    """Whether two HOST:PORT are the same; all addresses of this machine count as equal."""
    (host, port), (other_host, other_port) = _host_and_port(one), _host_and_port(other)
    is_one_host = bool(_addresses(host) & _addresses(other_host)) or all(map(is_of_this_machine, (one, other)))
    return port == other_port and is_one_host


def is_of_this_machine(address: str) -> bool:
    """Whether the host of HOST:PORT is this machine."""
    return any(map(_is_here, _addresses(_host_and_port(address)[0])))


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--address '{address}': write HOST:PORT, ray://HOST:PORT, auto or local")
    return host, int(port)


def _addresses(host: str) -> set[str]:
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return set()


def _is_here(address: str) -> bool:
    """Whether the address belongs to this machine."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
