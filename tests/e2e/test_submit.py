"""Commands as jobs of a running cluster: a head started by `ray start`, with a token and a dashboard."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.cli.app import run
from library import storage
from library.dataset.manifest import load_manifest
from tests import ROOT
from tests.commands import SLOW, down, up
from tests.conftest import S3Server, free_port
from tests.datasets import write_photos
from tests.processes import LOOPBACK, family, listening
from tests.waiting import until

pytestmark = pytest.mark.cluster

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A running head: the address of its dashboard, and its token."""

    address: str
    token: str

    def answers(self) -> bool:
        request = urllib.request.Request(f"{self.address}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"})
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return response.status == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray start --head` on loopback, without AWS variables."""
    token, port = secrets.token_hex(32), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    # At SIGTERM `ray start --block` waits up to half a minute for its node to be idle; with the detached actors of Ray
    # Data it never is.
    environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    # A short path, because Ray puts sockets below it.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=100000000"]
        command += ["--node-ip-address=127.0.0.1", "--port=0", f"--dashboard-port={port}", f"--temp-dir={folder}"]
        command += [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        with open(f"{folder}/start.log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            started_head = Head(f"http://127.0.0.1:{port}", token)
            until(lambda: started_head.answers() or process.poll() is not None)
            assert process.poll() is None, Path(f"{folder}/start.log").read_text()
            yield started_head
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: Head) -> Path:
    """A folder to submit from, with the cluster's address and token in the environment."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", head.token)
    return folder


@pytest.fixture
def waiting_project(project: Path) -> Path:
    """A copy of this project in which `striate info` waits until it is stopped."""
    for package in ("library", "cluster", "jobs", "serve"):
        shutil.copytree(ROOT / package, project / package, ignore=shutil.ignore_patterns("__pycache__"))
    with open(project / "jobs/inspection/info.py", "a") as code:
        code.write(
            "\n\ndef datasets_below(uri):\n"
            "    import threading\n"
            "    print('the code that was sent', flush=True)\n"
            "    threading.Event().wait()\n"
        )
    return project


def jobs(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    assert run(["jobs", "--json"]) == 0
    return {job["id"]: job for job in json.loads(capsys.readouterr().out)}


def start_waiting_job(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Starts a job that waits until it is stopped; returns its id."""
    capsys.readouterr()
    assert run(["submit", "--detach", *options, "--", "info", "/anything"]) == 0
    job = capsys.readouterr().out.strip()

    def log() -> str:
        assert run(["logs", job]) == 0
        return capsys.readouterr().out

    until(lambda: "the code that was sent" in log())
    return job


def test_a_job_ingests_into_a_bucket_with_the_keys_that_were_sent(
    project: Path, bucket: str, s3_server: S3Server
) -> None:
    photos = write_photos(project)
    some = sorted(photos.rglob("*.jpg"))[:12]
    for path in [path for path in photos.rglob("*") if path.is_file() and path not in some]:
        path.unlink()
    command = [str(BIN / "striate"), "submit", "--env", "AWS_*", "--", "ingest", "photos", f"{bucket}/raw"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"12 in = {load_manifest(f'{bucket}/raw').rows} out" in done.stdout
    assert s3_server.secret not in done.stdout + done.stderr
    assert "SUCCEEDED, exit code 0" in done.stderr


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [("doctor --address 127.0.0.1:9", 1, "cannot connect to Ray"), ("info /nowhere/raw", 2, "there is nothing at")],
)
def test_submit_ends_with_the_exit_code_of_the_command(
    project: Path, command: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["submit", "--", *command.split()]) == code
    output = capsys.readouterr()
    assert message in output.out
    assert f"FAILED, exit code {code}" in output.err


def test_two_nodes_with_a_dashboard_on_loopback_run_a_submitted_job(head: Head, tmp_path: Path) -> None:
    assert head.answers(), "another Ray must be running"
    (tmp_path / "token").touch(0o600)
    (tmp_path / "token").write_text(secrets.token_hex(32))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}

    def striate(*arguments: str) -> str:
        command = [str(BIN / "striate"), *arguments]
        # The whole project is sent: the job imports its modules while the second node is still unpacking them.
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    raw, out = str(tmp_path / "raw"), str(tmp_path / "grey")
    striate("ingest", str(write_photos(tmp_path)), raw, "--shard-mb", "0.05")
    nodes = [str(BIN / "striate"), "cluster", "up", "--nodes", "2", "--dashboard", "--json"]
    with subprocess.Popen(nodes, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as holder:
        try:
            cluster = up(holder)
            sockets = listening(family(holder.pid))
            assert int(cluster["dashboard"].rpartition(":")[2]) in {port for _, port in sockets}
            assert [each for each in sockets if each[0] not in LOOPBACK] == []
            submit = ("submit", "--address", cluster["dashboard"], "--", "filter", raw, out, "--steps", SLOW)
            striate(*submit, "--limit", "30")
        finally:
            down(holder)
    manifest = load_manifest(out)
    assert manifest.rows == 30
    # The job ran on these nodes, not on the other Ray of this machine.
    assert manifest.run["shards_by_node"].keys() == {node["node_id"] for node in cluster["nodes"]}


def test_the_doctor_examines_a_cluster_from_inside(
    project: Path, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["submit", "--env", "AWS_*", "--", "doctor", f"{bucket}/deep"]) == 0
    output = capsys.readouterr().out
    for line in ("ok    Ray: answers", "ok    node ", "ok    clock of", "ok    versions of nodes: the same"):
        assert line in output
    assert "ok    token: Ray accepts only connections with its token" in output
    assert output.count("an object was written, read and removed") == 2
    assert storage.list_files(bucket) == []


def test_the_uploaded_code_runs_until_it_is_stopped(
    waiting_project: Path, head: Head, capsys: pytest.CaptureFixture[str]
) -> None:
    job = start_waiting_job(capsys, "--env", "SECRET=42")
    listed = jobs(capsys)[job]
    assert (listed["status"], listed["exit_code"], listed["command"]) == ("RUNNING", None, "striate info /anything")
    with Forwarder(head.address) as forwarder:
        follower = threading.Thread(target=run, args=(["logs", job, "--follow", "--address", forwarder.address],))
        follower.start()
        until(lambda: "the code that was sent" in capsys.readouterr().out)
        forwarder.cut()
        until(lambda: forwarder.connections > 1)
        assert run(["stop", job]) == 0
        follower.join(60)
    output = capsys.readouterr()
    assert f"{job}: STOPPED, exit code 130" in output.out
    assert output.out.count("the code that was sent") == 0, "the log continues where it was cut"
    assert run(["logs", job, "--follow"]) == 130
    assert run(["stop", job]) == 0
    assert f"{job}: STOPPED" in capsys.readouterr().out


def test_ctrl_c_leaves_the_job_and_says_how_to_stop_it(
    waiting_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = start_waiting_job(capsys)
    command = [str(BIN / "striate"), "logs", job, "--follow"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while b"the code that was sent" not in process.stdout.readline():
            assert process.poll() is None
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
        output = process.stderr.read().decode()
    assert f"striate stop {job} --address" in output
    assert jobs(capsys)[job]["status"] == "RUNNING"
    assert run(["stop", job, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "STOPPED"


@pytest.mark.parametrize("token", ["0" * 64, None])
def test_a_wrong_token_is_reported_before_anything_is_sent(
    project: Path,
    token: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In a new process: Ray keeps the first token that it reads.
    monkeypatch.setenv("HOME", str(project.parent))
    if token is None:
        monkeypatch.delenv("RAY_AUTH_TOKEN")
    else:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    done = subprocess.run(
        [str(BIN / "striate"), "submit", "--", "info", "/nowhere"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "requires a token" in done.stderr


def test_a_token_in_a_file_and_an_address_are_enough(
    project: Path, head: Head, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name)
    Path("token").write_text(head.token + "\n")
    assert run(["jobs", "--address", head.address, "--token-file", "token"]) == 0
    assert head.token not in capsys.readouterr().out


def test_an_unknown_job_is_an_error(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["logs", "no-such-job"]) == 1
    assert "no-such-job does not exist" in capsys.readouterr().err


class Forwarder:
    """Forwards connections to a head, as a port-forward does, and can cut them.

    Attributes:
        connections: number of requests for a log so far.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0

    def __enter__(self) -> Forwarder:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Shuts down every open connection."""
        for each in self._open:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._open += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(2**16):
                self.connections += b"/logs/tail" in data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return
