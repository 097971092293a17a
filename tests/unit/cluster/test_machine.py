from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from cluster.machine import free_ports
from library.errors import StriateError


def test_ports_are_free_and_outside_the_range_of_the_system() -> None:
    first = Path("/proc/sys/net/ipv4/ip_local_port_range")
    ports = free_ports(3)
    with contextlib.ExitStack() as stack:
        for port in ports:
            stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
    assert len(set(ports)) == 3
    if first.exists():
        assert max(ports) < int(first.read_text().split()[0])


@pytest.mark.parametrize("host", ["192.0.2.1", "there.is.no.such.invalid"])
def test_an_address_of_another_machine_has_no_ports(host: str) -> None:
    with pytest.raises(StriateError, match=f"cannot listen at {host}: "):
        free_ports(1, host)
