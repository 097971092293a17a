"""Fixtures for several folders of tests: real data beside the checkout, and a real S3 server."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from cluster.machine import free_ports
from tests import ROOT

#: Real pictures beside the checkout; not part of the project.
SHARED_DATA = ROOT.parent / "shared" / "data"

# Ray's token authentication is for clusters; it would write to the user's home.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# On a busy machine an example may take any time, which says nothing about the code.
hypothesis.settings.register_profile("without_deadline", deadline=None)
hypothesis.settings.load_profile("without_deadline")
# There is a test process per core: more threads would only compete.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


#: The longest tests start first.
_LONGEST_FIRST = (
    "tests/ray",
    "test_nodes.py",
    "test_submit.py",
    "test_kill.py",
    "test_serve_command.py",
    "test_page.py",
    "test_every_model.py",
)


class _Groups(LoadScopeScheduling):
    """Keeps tests that share something costly in one process: the Ray of tests/ray, and the fixtures of a file."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if "test_every_model.py" in file:
            return nodeid  # its tests share nothing
        return "tests/ray" if file.startswith("tests/ray/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Groups:
    """Distributes tests by `_Groups`, in the order of the tests."""
    config.option.loadscopereorder = False
    return _Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts with the longest tests, so that short ones fill the time of the other processes."""
    order = {name: number for number, name in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: min((order[name] for name in order if name in item.nodeid), default=len(order)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pictures; skips the test where it does not exist."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is not on this machine")
    return SHARED_DATA


@dataclass(frozen=True)
class S3Server:
    """A running S3 server: its address, and the folder whose sub-folders are its buckets."""

    endpoint: str
    root: Path
    key: str
    secret: str

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """The standard AWS variables for it, or for a proxy in front of it."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str) -> None:
        """Creates a bucket by a request: the server notices a folder made behind its back only after minutes."""
        import s3fs

        client = {"endpoint_url": self.endpoint, "region_name": "us-east-1"}
        s3fs.S3FileSystem(key=self.key, secret=self.secret, client_kwargs=client, skip_instance_cache=True).mkdir(name)


def free_port(host: str = "127.0.0.1") -> int:
    """A free port that the kernel does not give to a connection before it is used."""
    return free_ports(1, host)[0]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """`rclone serve s3` on a free loopback port, with a key."""
    with serve_s3(tmp_path_factory.mktemp("s3"), "127.0.0.1") as server:
        yield server


@contextlib.contextmanager
def serve_s3(root: Path, host: str) -> Generator[S3Server]:
    """`rclone serve s3` on `host`, with a key."""
    port = free_port(host)
    server = S3Server(f"http://{host}:{port}", root, "test-key", "test-secret")
    command = [str(Path(sys.executable).parent / "rclone"), "serve", "s3", "--addr", f"{host}:{port}"]
    command += ["--auth-key", f"{server.key},{server.secret}", "--vfs-cache-mode", "off", str(root)]
    with open(root.parent / "rclone.log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_for_port(port, process, host=host)
            yield server
        finally:
            process.terminate()


def wait_for_port(port: int, process: subprocess.Popen[bytes], timeout_s: float = 20, host: str = "127.0.0.1") -> None:
    """Waits until something listens on the port."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((host, port)) == 0:
                return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    raise RuntimeError(f"{process.args!r} does not listen on port {port}")


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a new bucket, `s3://name`, with the environment variables that lead to it."""
    import fsspec

    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    # s3fs keeps its connections by options, not by environment.
    fsspec.filesystem("s3").clear_instance_cache()
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3_server.make_bucket(name)
    return f"s3://{name}"
