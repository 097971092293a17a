"""A head that stops answering: programs are warned, and `striate` commands are ended."""

from __future__ import annotations

import logging
import socket

import pytest

from cluster.connection import head_watch
from cluster.connection.head_watch import watched
from tests.conftest import free_port
from tests.waiting import until


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_watch, "_EVERY_S", 0.01)
    monkeypatch.setattr(head_watch, "_REPORTED_S", 0.02)
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "10.1")


def test_a_program_that_uses_the_library_is_only_warned(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cluster.connection.head_watch"), watched(f"127.0.0.1:{free_port()}", None):
        until(lambda: "finished work is kept" in caplog.text)
    assert caplog.text.count("has not answered") == 2


def test_a_striate_command_is_ended_once(capsys: pytest.CaptureFixture[str]) -> None:
    reasons: list[str] = []
    address = f"127.0.0.1:{free_port()}"
    with watched(address, reasons.append):
        until(lambda: reasons)
    assert len(reasons) == 1
    assert reasons[0].startswith(f"the head of the cluster at {address} has not answered for")
    assert capsys.readouterr().err.startswith(f"striate: the head of the cluster at {address} has not answered")


def test_a_head_that_answers_again_is_reported(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "60")
    port = free_port()
    with caplog.at_level(logging.WARNING, "cluster.connection.head_watch"), watched(f"127.0.0.1:{port}", None):
        until(lambda: "waiting 50 s" in caplog.text)
        with socket.create_server(("127.0.0.1", port)):
            until(lambda: "answers again" in caplog.text)
