"""`striate cluster` without a Ray: what it refuses, and what it takes for running."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

from cluster.local_cluster import LocalCluster, down, find, up
from cluster.session import node_environment
from library.errors import UsageError


@pytest.fixture(autouse=True)
def nothing_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.mark.parametrize(("nodes", "cpus"), [(0, 1), (17, 1), (2, 0)])
def test_a_cluster_of_no_sensible_size_is_refused_before_anything_starts(nodes: int, cpus: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--(nodes|cpus-per-node) \d+: "):
        up(nodes, cpus)
    assert not list(tmp_path.iterdir())


def test_where_none_is_up_there_is_nothing_to_show_or_end() -> None:
    assert find() is None
    with pytest.raises(UsageError, match="nothing to end"):
        down()


def test_a_cluster_runs_as_long_as_its_keeper_holds_the_lock(tmp_path: Path) -> None:
    (tmp_path / "striate").mkdir()
    (tmp_path / "ray").mkdir()
    node = {"number": 1, "node_id": "a", "pid": os.getpid(), "cpus": 1}
    state = {"folder": str(tmp_path / "ray"), "address": "127.0.0.1:9", "dashboard": None, "keeper": os.getpid()}
    (tmp_path / "striate/cluster.json").write_text(json.dumps(state | {"nodes": [node]}))
    with open(tmp_path / "striate/cluster.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert [node.running for node in found().nodes] == [True]
        with pytest.raises(UsageError, match=r"runs here already at 127\.0\.0\.1:9"):
            up(1, 1)
    # This process lives, and has the keeper's id; but it is not the keeper.
    assert [node.running for node in found().nodes] == [False]
    assert down() == 0
    assert find() is None
    assert not (tmp_path / "ray").exists()


def found() -> LocalCluster:
    cluster = find()
    assert cluster is not None
    return cluster


def test_ray_gets_another_temporary_folder_than_one_it_cannot_write_the_name_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for folder, instead in (("/home/Müller/tmp", "/tmp"), ("/home/mueller/tmp", None)):
        monkeypatch.setenv("TMPDIR", folder)
        assert node_environment().get("RAY_TMPDIR") == instead
