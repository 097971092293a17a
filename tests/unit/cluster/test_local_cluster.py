"""`striate cluster` without a Ray: what it refuses, and which processes it takes for its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local_cluster import down, find, processes, up
from cluster.session import node_environment
from library.errors import UsageError


@pytest.fixture(autouse=True)
def nothing_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.fixture
def member() -> Iterator[subprocess.Popen[bytes]]:
    """A process that says it belongs to node 1 of /tmp/striate-cluster-a, with a child that says nothing."""
    program = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'], env={}); print(1); input()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"STRIATE_CLUSTER": "/tmp/striate-cluster-a#1"},
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        assert process.stdin is not None
        process.stdin.write(b"\n\n")
        process.kill()


@pytest.mark.parametrize(("nodes", "cpus"), [(0, 1), (17, 1), (2, 0)])
def test_a_cluster_of_no_sensible_size_is_refused_before_anything_starts(nodes: int, cpus: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--(nodes|cpus-per-node) \d+: "):
        up(nodes, cpus)
    assert not list(tmp_path.iterdir())


def test_where_none_is_up_there_is_nothing_to_show_or_end() -> None:
    assert find() is None
    with pytest.raises(UsageError, match="nothing to end"):
        down()


def test_a_process_belongs_to_the_cluster_whose_mark_it_carries_and_so_do_those_of_its_session(
    member: subprocess.Popen[bytes],
) -> None:
    found = processes("/tmp/striate-cluster-a")
    assert member.pid in found
    assert len(found) == 2
    assert found == processes("/tmp/striate-cluster-a", 1)
    assert os.getpid() not in found
    assert processes("/tmp/striate-cluster-a", 2) == []
    assert processes("/tmp/striate-cluster-aa") == processes("/tmp/striate-cluster") == []


def test_ray_gets_another_temporary_folder_than_one_it_cannot_write_the_name_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for folder, instead in (("/home/Müller/tmp", "/tmp"), ("/home/mueller/tmp", None)):
        monkeypatch.setenv("TMPDIR", folder)
        assert node_environment().get("RAY_TMPDIR") == instead
