"""The log lines of workers."""

from __future__ import annotations

import json

import pytest

from cluster.logging_setup import WorkLog


def test_a_line_has_the_fields_of_its_worker_and_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    log = WorkLog(command="filter", run="r1")
    log.info("shard done", extra={"shard": "out/part-000003", "pictures": 7})
    try:
        raise ZeroDivisionError("inside")
    except ZeroDivisionError:
        log.exception("shard %s failed", "x")
    done, failed = map(json.loads, capsys.readouterr().err.splitlines())
    assert done.pop("time").endswith("+00:00")
    assert done == {
        "level": "info",
        "message": "shard done",
        "command": "filter",
        "run": "r1",
        "shard": "out/part-000003",
        "pictures": 7,
    }
    assert (failed["level"], failed["message"], failed["run"]) == ("error", "shard x failed", "r1")
    assert failed["traceback"].endswith("ZeroDivisionError: inside")
