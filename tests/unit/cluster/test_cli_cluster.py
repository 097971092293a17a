"""`striate cluster up` without a Ray: what it refuses, and the environment of its nodes."""

from __future__ import annotations

import pytest

from cluster.session import node_environment
from jobs.cli import run


@pytest.mark.parametrize("options", [["--nodes", "0"], ["--nodes", "17"], ["--cpus-per-node", "0"]])
def test_a_cluster_of_no_sensible_size_is_refused_before_anything_starts(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cluster", "up", *options]) == 2
    told = capsys.readouterr()
    assert options[0] in told.err
    assert "starting" not in told.err


def test_ray_gets_another_temporary_folder_than_one_it_cannot_write_the_name_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for folder, instead in (("/home/Müller/tmp", "/tmp"), ("/home/mueller/tmp", None)):
        monkeypatch.setenv("TMPDIR", folder)
        assert node_environment().get("RAY_TMPDIR") == instead
