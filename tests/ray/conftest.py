"""One local Ray for all tests of this folder, and a small real dataset to work on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.session import connect
from jobs.demo import demo_pictures
from jobs.ingest import ingest, plan_ingest


@pytest.fixture(scope="session", autouse=True)
def local_ray() -> Iterator[None]:
    """A Ray with two CPUs, shared."""
    with connect("local", num_cpus=2):
        yield


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """86 tiles of real photos in three classes, and three damaged files."""
    folder = tmp_path_factory.mktemp("pictures")
    for path, content in demo_pictures():
        if path.startswith("photos/"):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return folder / "photos"


@pytest.fixture(scope="session")
def photos(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiles as a dataset of several shards."""
    dataset = str(tmp_path_factory.mktemp("data") / "photos")
    ingest(plan_ingest(str(photo_folder), dataset, shard_mb=0.25, verify=True))
    return dataset
