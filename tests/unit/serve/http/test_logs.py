"""The destinations of a server's log lines."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from library.errors import UsageError
from serve.http.logs import log_path, write_logs


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    names = ("striate.access", "striate.serve")
    before = [(log.handlers[:], log.level, log.propagate) for log in map(logging.getLogger, names)]
    yield
    for log, (handlers, level, propagate) in zip(map(logging.getLogger, names), before, strict=True):
        log.handlers[:], log.propagate = handlers, propagate
        log.setLevel(level)


def test_requests_go_to_the_file_even_after_it_is_moved_away(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    write_logs(str(path))
    logging.getLogger("striate.access").info('{"id": 1}')
    path.rename(tmp_path / "access.log.1")
    logging.getLogger("striate.access").info('{"id": 2}')
    assert (tmp_path / "access.log.1").read_text() == '{"id": 1}\n'
    assert path.read_text() == '{"id": 2}\n'


def test_errors_are_one_line_of_json_on_stderr(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # as in a replica of Serve, which drops what is written there
    write_logs("-")
    try:
        raise ZeroDivisionError("inside")
    except ZeroDivisionError:
        logging.getLogger("striate.serve").exception("request %s failed", "r-1")
    logging.getLogger("striate.access").info('{"id": 1}')
    first, second = map(json.loads, capfd.readouterr().err.splitlines())
    assert (first["level"], first["message"]) == ("error", "request r-1 failed")
    assert first["traceback"].endswith("ZeroDivisionError: inside")
    assert second == {"id": 1}


def test_without_a_destination_requests_are_not_logged() -> None:
    write_logs(None)
    assert not logging.getLogger("striate.access").isEnabledFor(logging.INFO)


def test_a_missing_folder_of_the_access_log_is_reported_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert log_path("access.log") == str(tmp_path / "access.log")
    assert (log_path("-"), log_path(None)) == ("-", None)
    with pytest.raises(UsageError, match="--access-log"):
        log_path("nowhere/access.log")
