"""Calls of `connect` in a process that is already connected, and the processes of a local Ray."""

from __future__ import annotations

import os
import subprocess
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


# Ray's head has no second to start in, until the first failure has been reported. Then a start fails after all of its
# processes run.
_STARTS = """
import io, os, sys
from cluster import ray_internals
from cluster.connection import session
from tests.processes import command, family
from tests.waiting import until

os.environ["RAY_gcs_server_port_wait_time_s"] = "0"

class Reported(io.TextIOWrapper):
    def write(self, text):
        if "starting it again" in text:
            os.environ["RAY_gcs_server_port_wait_time_s"] = "60"
            until(lambda: not any(map(command, family(os.getpid())[1:])))  # those that were killed may take a moment
            print("nothing is left of a failed start", flush=True)
        return super().write(text)

sys.stderr = Reported(sys.stderr.buffer, write_through=True)
with session.connect("local", num_cpus=1):
    import ray

    print("computed", ray.get(ray.remote(lambda: 6 * 7).remote()))
    running = family(os.getpid())[1:]
try:
    with ray_internals.whole_start():
        ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        running += family(os.getpid())[1:]
        raise ValueError("too late")
except ValueError:
    until(lambda: not any(map(command, running)))
    print("all ended")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the processes from /proc")
def test_a_failed_start_of_ray_is_repeated_and_leaves_no_process() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", _STARTS], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "cannot start Ray on this machine: Timed out" in done.stderr
    assert "starting it again (2 of 3)" in done.stderr
    *failed, computed, ended = done.stdout.splitlines()
    assert (computed, ended) == ("computed 42", "all ended")
    assert set(failed) == {"nothing is left of a failed start"}  # a busy machine may miss the second start, too


def connected_port() -> str:
    return ray.get_runtime_context().gcs_address.rpartition(":")[2]
