"""`striate cluster up` before Ray starts: refused options, signals, and the environment of nodes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from importlib import metadata

import pytest

from cluster.connection.session import node_environment
from cluster.local_cluster import end_on_signals
from jobs.cli.app import run

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restores the signal handlers after the test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("options", [["--nodes", "0"], ["--nodes", "17"], ["--cpus-per-node", "0"]])
def test_a_cluster_of_an_invalid_size_is_refused_before_it_starts(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cluster", "up", *options]) == 2
    output = capsys.readouterr()
    assert options[0] in output.err
    assert "starting" not in output.err


def test_ray_gets_another_temporary_folder_if_the_path_is_not_ascii(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for folder, instead in (("/home/Müller/tmp", "/tmp"), ("/home/mueller/tmp", None)):
        monkeypatch.setenv("TMPDIR", folder)
        assert node_environment().get("RAY_TMPDIR") == instead


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_cluster_and_a_later_hangup_is_ignored(number: signal.Signals) -> None:
    received = end_on_signals()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    os.kill(os.getpid(), signal.SIGHUP)
    assert received == [number]


@pytest.mark.usefixtures("handlers")
def test_a_hangup_does_not_end_a_cluster_under_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    received = end_on_signals()
    os.kill(os.getpid(), signal.SIGHUP)
    assert received == []


@pytest.mark.usefixtures("handlers")
def test_another_version_of_ray_is_refused_before_a_node_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.59.0" if name == "ray" else version(name))
    monkeypatch.setattr(os, "environ", os.environ | {"RAY_AUTH_TOKEN": "0" * 64})
    assert run(["cluster", "up"]) == 1
    error = capsys.readouterr().err
    assert "Ray 2.59.0 is too old or too new" in error
    assert "starting" not in error
