"""One writer at a time for a destination."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from library import storage
from library.dataset import lease
from library.dataset.lease import LEASES, hold
from library.errors import StriateError, UsageError
from tests.waiting import until

#: Reads a destination, says whether it holds its lease, and releases it at the next line.
_WRITER = """
import sys
from library.errors import UsageError
from library.dataset.lease import hold
print("up", flush=True)
for line in sys.stdin:
    try:
        with hold(line.strip(), tidy=print):
            print("holds", flush=True)
            sys.stdin.readline()
    except UsageError as error:
        print(error, flush=True)
        sys.stdin.readline()
    print("out", flush=True)
"""


class Writer:
    """A process that takes leases."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextlib.contextmanager
def writers(number: int) -> Generator[list[Writer]]:
    started = [Writer() for _ in range(number)]
    try:
        assert {writer.answer() for writer in started} == {"up"}
        yield started
    finally:
        for writer in started:
            writer.process.kill()
            writer.process.communicate()


@pytest.fixture
def destination(tmp_path: Path) -> str:
    """A destination that does not exist yet."""
    return str(tmp_path / "made")


@pytest.fixture
def tidied() -> list[str]:
    return []


@pytest.fixture(params=["disk", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "disk" else request.getfixturevalue("bucket")


def test_of_two_writers_that_begin_together_exactly_one_writes(root: str) -> None:
    with writers(2) as both:
        for number in range(5):
            destination = storage.join(root, f"made-{number}")
            for writer in both:
                writer.say(destination)
            answers = [writer.answer() for writer in both]
            first = both[answers.index("holds")]
            assert answers.count("holds") == 1
            assert f"{destination} is being written by process {first.process.pid} on " in "".join(answers)
            for writer in both:
                writer.say("end")
                assert writer.answer() == "out"
            assert storage.list_files(destination) == []


def test_a_second_writer_learns_which_process_writes_and_since_when(destination: str, tidied: list[str]) -> None:
    with hold(destination, tidy=tidied.append):
        message = (
            rf"made is being written by process {os.getpid()} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC; wait"
        )
        with pytest.raises(UsageError, match=message), hold(destination, tidy=tidied.append):
            pass
        with hold(f"{destination}/below", tidy=tidied.append):
            pass
        assert os.listdir(destination) == [LEASES]
    assert tidied == []
    assert not os.path.exists(destination)


def test_a_folder_that_existed_before_stays(tmp_path: Path, tidied: list[str]) -> None:
    with hold(str(tmp_path), tidy=tidied.append):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lease_of_a_killed_writer_is_taken_over_without_waiting(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with writers(1) as (killed,):
        killed.say(root)
        assert killed.answer() == "holds"
        killed.process.send_signal(signal.SIGKILL)
        killed.process.communicate()
    with hold(root, tidy=print):
        assert len(storage.list_files(root)) == 1
    assert storage.list_files(root) == []
    assert capsys.readouterr().err == "", "no waiting"


def test_another_process_with_the_same_id_is_not_the_writer(destination: str, tidied: list[str]) -> None:
    with hold(destination, tidy=tidied.append):
        (own,) = Path(destination, LEASES).iterdir()
        earlier = json.loads(own.read_text())
    Path(destination, LEASES).mkdir(parents=True)
    old_lease = Path(destination, LEASES, "0" * 32 + ".json")
    old_lease.write_text(json.dumps(earlier | {"started": earlier["started"] - 1}))
    with hold(destination, tidy=tidied.append):
        assert not old_lease.exists()


@pytest.fixture
def elsewhere(root: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Lease of a writer on another machine."""
    monkeypatch.setattr(lease, "_POLL_S", 0.01)
    monkeypatch.setattr(lease, "_ABANDONED_S", 0.2)
    uri = storage.join(root, LEASES, "0" * 32 + ".json")
    content = {"pid": 7, "started": 1, "machine": "far", "host": "gpu-3", "since": "2026-01-02 03:04:05 UTC"}
    storage.write_bytes(uri, json.dumps(content).encode())
    return uri


def test_a_lease_from_elsewhere_that_is_not_renewed_is_taken_over(
    root: str, elsewhere: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with hold(root, tidy=print):
        assert not storage.exists(elsewhere)
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "an earlier command left its lease at the destination: waiting up to " in message


def test_a_lease_from_elsewhere_that_is_renewed_is_not_taken_over(
    root: str, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_ABANDONED_S", 60)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.05):
            storage.touch(elsewhere)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(UsageError, match="by process 7 on gpu-3 since 2026-01-02 03:04:05 UTC"):
            hold(root, tidy=print).__enter__()
    finally:
        ended.set()
        thread.join()
    assert [file.uri for file in storage.list_files(root)] == [elsewhere]


def test_a_lease_that_a_kill_has_cut_is_taken_over(destination: str, tidied: list[str], elsewhere: str) -> None:
    del elsewhere  # the fixture shortens the waits
    Path(destination, LEASES).mkdir(parents=True)
    Path(destination, LEASES, "0" * 32 + ".json").write_text('{"pid"')
    with hold(destination, tidy=tidied.append):
        pass
    assert not Path(destination, LEASES).exists()


def test_a_writer_whose_lease_was_taken_stops(
    destination: str, tidied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_RENEWED_S", 0.02)
    # Tests that a shell runs in the background inherit that SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def write() -> None:
        with hold(destination, tidy=tidied.append):
            (own,) = Path(destination, LEASES).iterdir()
            own.unlink()
            until(lambda: False)

    try:
        with pytest.raises(
            StriateError, match=r"another command has taken over .*, as this one did not renew its lease"
        ):
            write()
    finally:
        signal.signal(signal.SIGINT, before)
    assert tidied == [], "the files belong to the other command"


def test_a_failed_job_is_tidied_up_after_and_a_refused_one_is_not(destination: str, tidied: list[str]) -> None:
    with pytest.raises(ZeroDivisionError), hold(destination, f"{destination}/b", tidy=tidied.append):
        raise ZeroDivisionError
    assert tidied == [destination, f"{destination}/b"]
    with pytest.raises(UsageError), hold(destination, tidy=tidied.append):
        raise UsageError("no")
    assert len(tidied) == 2
