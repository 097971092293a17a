"""One local Ray for all tests of this folder, and a small real dataset."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from cluster.connection.session import connect
from jobs.ingest import ingest, plan_ingest
from tests.conftest import S3Server
from tests.datasets import write_photos
from tests.fault_proxy import FaultProxy

# A command imports Ray after `connect` has set what keeps Ray's ports on loopback; test files import it first.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    importlib.import_module("ray")


@pytest.fixture(scope="session")
def s3_proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    """Stands in front of the S3 server all the time, as Ray's workers learn its address when they start; tests that
    need faults switch them on."""
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="session", autouse=True)
def local_ray(s3_server: S3Server, s3_proxy: FaultProxy) -> Iterator[None]:
    """A Ray with two CPUs, shared; its workers reach the S3 server."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment(s3_proxy.endpoint).items():
            patch.setenv(name, value)
        with connect("local", num_cpus=2):
            yield


@pytest.fixture
def bucket() -> str:
    """A fresh bucket behind the proxy."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    filesystem = fsspec.filesystem("s3")
    filesystem.clear_instance_cache()
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """86 tiles of real photos in three classes, and three damaged files."""
    return write_photos(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def photos(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiles as a dataset of several shards."""
    dataset = str(tmp_path_factory.mktemp("data") / "photos")
    ingest(plan_ingest(str(photo_folder), dataset, shard_mb=0.25, verify=True))
    return dataset
