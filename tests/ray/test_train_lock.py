"""One training at a time in a folder."""

from __future__ import annotations

import json

import pytest

from cluster.session import connect
from jobs import board, train_lock
from library.errors import UsageError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_lock, "_RENEWED_S", 0.2)
    monkeypatch.setattr(train_lock, "_DEAD_S", 2.0)
    monkeypatch.setattr(train_lock, "_LOOK_S", 0.05)


def test_a_second_training_in_a_folder_is_refused_while_the_first_runs_and_not_after_it() -> None:
    with connect():
        with train_lock.alone_in("s3://b/lenet"):
            with pytest.raises(UsageError, match="s3://b/lenet is being trained now, by process"):
                train_lock.alone_in("s3://b/lenet").__enter__()
            with train_lock.alone_in("s3://b/other"):
                pass
        with train_lock.alone_in("s3://b/lenet"):
            pass
        assert board.noted("training/s3://b/lenet") is None


def test_one_whose_driver_has_died_is_taken_over() -> None:
    with connect():
        board.note("training/s3://b/lost", json.dumps({"id": "x", "pid": 1, "host": "gone", "at": 0}).encode())
        with train_lock.alone_in("s3://b/lost"):
            told = board.noted("training/s3://b/lost")
            assert told is not None
            assert json.loads(told)["host"] != "gone"
