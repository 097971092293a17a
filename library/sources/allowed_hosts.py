"""Checks that pictures are fetched only from public addresses and from those that the user allows."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from library.errors import BadPicture, UsageError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_PUBLIC_V6 = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
#: In public ranges, but served by the cloud itself: Oracle's metadata, Azure's wire server.
_CLOUD_SERVICES = (IPv4Network("192.0.0.0/24"), IPv4Network("168.63.129.16/32"))


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Parses networks and addresses such as `10.0.0.0/8`, `127.0.0.1` and `fd00::/8`.

    Raises:
        UsageError: a text is neither.
    """
    try:
        return tuple(ip_network(text, strict=False) for text in texts)
    except ValueError as error:
        raise UsageError(f"--allow-address: {error}; write an address or a network, e.g. 10.0.0.0/8") from None


def literal(host: str) -> Address | None:
    """The address in a URL's host; None if the host is a name."""
    try:
        return ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def check(address: Address, allowed: Sequence[Network]) -> None:
    """Checks that an address is public or allowed.

    Raises:
        BadPicture: `private_address`.
    """
    target = _embedded(address)
    if any(target in network for network in allowed) or _is_public(target):
        return
    raise BadPicture("private_address", f"{address} is not a public address (see --allow-address)")


def guarded_socket(info: tuple[object, ...], allowed: Sequence[Network]) -> socket.socket:
    """A socket for an address that a name was resolved to; checks the very address that will be connected to.

    Raises:
        BadPicture: `private_address`.
    """
    family, kind, protocol, _, where = info
    assert isinstance(where, tuple)
    check(ip_address(str(where[0]).partition("%")[0]), allowed)
    return socket.socket(family, kind, protocol)  # pyright: ignore[reportArgumentType] -- from getaddrinfo


def _embedded(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, if it does; else the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_public(address: Address) -> bool:
    if address.is_multicast or not address.is_global:
        return False
    if isinstance(address, IPv6Address):
        return address in _PUBLIC_V6
    return not any(address in network for network in _CLOUD_SERVICES)
