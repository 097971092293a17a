"""A cluster whose head has no CPUs and whose autoscaler adds nodes: Ray's own autoscaler, with its provider that starts
nodes as processes of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from library import storage
from tests.conftest import S3Server, free_port
from tests.datasets import write_photos
from tests.waiting import until

pytestmark = pytest.mark.cluster

_BIN = Path(sys.executable).parent
#: The id that this provider gives the head.
_HEAD = "f" * 51 + "00000"


def config(port: int) -> dict[str, Any]:
    """The autoscaler's configuration: none to three nodes of one CPU."""
    provider = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "striate",
        "max_workers": 3,
        "provider": {"type": "external", "module": provider, "head_node_id": _HEAD, "gcs_address": f"127.0.0.1:{port}"},
        "available_node_types": {
            "head": {"resources": {}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 3},
        },
        "head_node_type": "head",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        **{name: {} for name in ("docker", "auth", "file_mounts")},
        **{f"{name}_commands": [] for name in commands},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }


@pytest.fixture
def environment(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of commands on the head of such a cluster."""
    port, config_file = free_port(), tmp_path_factory.mktemp("autoscaler") / "config.yaml"
    config_file.write_text(json.dumps(config(port)))
    # A short path, because Ray puts sockets below it.
    folder = Path(f"/tmp/striate-grows-{os.getpid()}")
    # The nodes reach S3 as well.
    environment_of_nodes = (
        os.environ | s3_server.environment() | {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    )
    grows = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    start = [str(_BIN / "ray"), "start", "--head", "--port", str(port), "--num-cpus", "0", "--temp-dir", str(folder)]
    start += ["--autoscaling-config", str(config_file), "--include-dashboard", "false"]
    try:
        subprocess.run(start, env=environment_of_nodes | grows, check=True, capture_output=True, timeout=120)
        yield environment_of_nodes | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        # Nodes that the autoscaler started are not children of this process.
        until(lambda: not _killed(str(folder)))
        shutil.rmtree(folder, ignore_errors=True)


def _killed(name: str) -> list[int]:
    """Kills the processes whose command line holds `name`, and returns their ids."""
    pids: list[int] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if name in path.read_text():
                pids.append(int(path.parent.name))
                os.kill(pids[-1], signal.SIGKILL)
    return pids


def test_workers_start_on_the_nodes_that_the_autoscaler_adds(
    environment: dict[str, str], bucket: str, tmp_path: Path
) -> None:
    def striate(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(_BIN / "striate"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)

    photos = tmp_path / "photos.tar"
    with tarfile.open(photos, "w") as tar:
        tar.add(write_photos(tmp_path), "photos")
    storage.write_bytes(f"{bucket}/photos.tar", photos.read_bytes())
    here = striate("ingest", f"{bucket}/photos.tar", str(tmp_path / "raw"), "--workers", "2")
    assert here.returncode == 2
    assert "no node is up yet to check that workers see the same files" in here.stderr
    fixed = striate("ingest", f"{bucket}/photos.tar", f"{bucket}/raw", "--shard-mb", "0.05", "--workers", "2", "--json")
    assert fixed.returncode == 0, fixed.stderr
    # The refused command may have made the autoscaler start a node already: 1 node or 2.
    assert "connected to Ray at" in fixed.stderr
    # One node may have done all the work before the second had started.
    assert _HEAD not in json.loads(fixed.stdout)["run"]["shards_by_node"]
    grown = striate("filter", f"{bucket}/raw", f"{bucket}/grey", "--steps", "grayscale", "--json")
    assert grown.returncode == 0, grown.stderr
    assert _HEAD not in json.loads(grown.stdout)["run"]["shards_by_node"]
