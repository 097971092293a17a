"""Calls of `connect` in a process that is already connected, and the processes of a local Ray."""

from __future__ import annotations

import os
import sys

import pytest
import ray

from cluster.connection.session import connect
from library.errors import UsageError
from tests.processes import command, family


@pytest.mark.parametrize("address", ["127.0.0.1:9", "192.0.2.1:{port}", "there.is.no.such.invalid:{port}"])
def test_another_address_than_the_connected_one_is_refused(address: str) -> None:
    address = address.format(port=connected_port())
    refused = rf"--address {address}: this process is connected to Ray at .+ already"
    with pytest.raises(UsageError, match=refused), connect(address):
        pass


@pytest.mark.parametrize("address", [None, "local", "auto", "127.0.0.1:{port}", "localhost:{port}"])
def test_any_name_of_the_connected_cluster_is_accepted(address: str | None) -> None:
    with connect(address and address.format(port=connected_port())) as session:
        assert session.cpus == 2


def test_an_invalid_address_is_reported() -> None:
    with pytest.raises(UsageError, match=r"--address 'foo': write HOST:PORT"), connect("foo"):
        pass


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the processes from /proc")
def test_a_local_ray_has_no_processes_that_one_command_does_not_need() -> None:
    commands = [command(pid) for pid in family(os.getpid())]
    assert any("raylet" in each for each in commands)
    unneeded = ("monitor.py", "log_monitor.py", "dashboard/dashboard.py")
    assert not [each for each in commands if any(name in each for name in unneeded)]


def connected_port() -> str:
    return ray.get_runtime_context().gcs_address.rpartition(":")[2]
