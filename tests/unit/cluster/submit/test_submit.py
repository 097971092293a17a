"""Submitting jobs: the address, the files and variables that are sent, errors, logs and exit codes."""

from __future__ import annotations

import asyncio
import io
import os
import re
import shlex
import threading
import zipfile
from importlib import metadata
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from aiohttp import web
from ray.job_submission import JobDetails, JobStatus, JobType

from cluster.submit import client
from cluster.submit.client import Jobs, Lost, end_message, exit_code, find_address, job_environment
from cluster.submit.submitted_command import SubmittedCommand
from cluster.submit.upload import working_tree
from library.errors import StriateError, UsageError
from tests.conftest import free_port
from tests.unit.cluster.submit.test_upload import closed, open_folder, write


def test_a_shell_on_the_cluster_reads_the_same_words() -> None:
    words = ("filter", "s3://b/raw", "s3://b/x", "--steps", "grayscale | edges(direction='vertical')")
    entrypoint = SubmittedCommand("filter", words, {}, ()).entrypoint
    assert entrypoint.startswith("striate filter s3://b/raw s3://b/x --steps ")
    assert shlex.split(entrypoint) == ["striate", *words]


@pytest.fixture(autouse=True)
def no_other_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test names its own cluster."""
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_only_variables_that_are_named_are_sent() -> None:
    here = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "A": "1", "B": "2"}
    assert job_environment([], here) == {}
    assert job_environment(["A", "C=x=y", "D="], here) == {"A": "1", "C": "x=y", "D": ""}
    assert job_environment(["AWS_*"], here) == {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}


def test_a_pattern_skips_variables_that_name_files_of_this_machine() -> None:
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
    files: dict[str, str] = {"AWS_PROFILE": "own", "AWS_CONFIG_FILE": "/c", "AWS_SHARED_CREDENTIALS_FILE": "/s"}
    assert job_environment(["AWS_*"], keys | files) == keys
    assert job_environment(["AWS_PROFILE"], files) == {"AWS_PROFILE": "own"}
    with pytest.raises(UsageError, match="aws configure export-credentials --format env"):
        job_environment(["AWS_*"], files | {"AWS_REGION": "eu-west-1"})


@pytest.mark.parametrize(
    ("option", "message"), [("E", "not set"), ("AWS_*", "not set"), ("=1", "NAME=VALUE"), ("A=$HOME", r"\$")]
)
def test_a_variable_that_would_not_arrive_is_refused(option: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        job_environment([option], {})


def details(status: str, code: int | None = None, **more: Any) -> JobDetails:
    return JobDetails(
        type=JobType.SUBMISSION,
        submission_id="job",
        status=JobStatus(status),
        entrypoint="striate",
        driver_exit_code=code,
        **more,
    )


@pytest.mark.parametrize(
    ("job", "code"),
    [
        (details("SUCCEEDED", 0), 0),
        (details("FAILED", 2), 2),
        (details("FAILED", -9), 137),
        (details("FAILED", None), 1),
        (details("STOPPED", None), 130),
        (details("SUCCEEDED", None), 0),
    ],
)
def test_submit_exits_with_the_exit_code_of_the_command(job: JobDetails, code: int) -> None:
    assert exit_code(job) == code


def test_the_reason_why_a_command_never_ran_is_reported() -> None:
    report = end_message(details("FAILED", message="runtime_env setup failed"))
    assert report == "job: FAILED, exit code 1\nruntime_env setup failed"


def test_the_address_is_the_option_or_rays_variables_or_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert find_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://b:2")
    assert find_address(None) == "http://b:2"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://a:1")
    assert find_address(None) == "http://a:1"
    assert find_address("https://head/ray/") == "https://head/ray"


@pytest.mark.parametrize("address", ["head:8265", "head", "ray://head:10001", "http://", "auto"])
def test_an_address_that_is_not_http_is_refused_with_an_example(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=f"--address {re.escape(address)} is not an http address: .*http://HOST:8265"):
        find_address(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(
        UsageError,
        match=f"RAY_ADDRESS={re.escape(address)} is the address of Ray itself: .*RAY_API_SERVER_ADDRESS=http",
    ):
        find_address(None)


def test_an_address_where_nothing_answers_is_reported() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Lost, match=f"{address} does not answer .*8265"):
        Jobs(address, "token")


class _Dashboard:
    """The part of Ray's job API that accepts one job and sends its log in parts. The first connection is cut, or falls
    silent. Other paths answer like servers that are not Ray."""

    def __init__(self) -> None:
        self.status, self.tails, self.quiet, self.stops, self.log_is_lost = "RUNNING", 0, False, True, False
        self.packages: list[bytes] = []

    async def version(self, request: web.Request) -> web.Response:
        path = request.match_info["path"]
        if path:
            status, body = {"json": (200, "{}"), "page": (200, "<html>"), "down": (502, "")}.get(path, (404, ""))
            return web.Response(status=status, text=body)
        return web.json_response({"ray_version": "2.60.0"})

    async def package(self, request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.Response(status=404)
        self.packages.append(await request.read())
        return web.Response()

    async def submit(self, _request: web.Request) -> web.Response:
        return web.json_response({"job_id": "a", "submission_id": "a"})

    async def details(self, request: web.Request) -> web.Response:
        if request.match_info["job"] != "a":
            return web.Response(status=404, text=f"Job {request.match_info['job']} does not exist")
        code = {"SUCCEEDED": 3, "STOPPED": None}.get(self.status)
        return web.json_response(
            {"type": "SUBMISSION", "submission_id": "a", "status": self.status, "entrypoint": "striate info"}
            | {"driver_exit_code": code, "job_id": None}
        )

    async def stop(self, _request: web.Request) -> web.Response:
        if self.stops:
            self.status = "STOPPED"
        return web.json_response({"stopped": True})

    async def tail(self, request: web.Request) -> web.StreamResponse:
        self.tails += 1
        if self.log_is_lost:
            return web.Response(status=500, text="the node is gone")
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str("one\ntwo\n")
        if self.tails == 1 and self.quiet:
            await socket.receive()
            return socket
        if self.tails == 1:
            assert request.transport is not None
            request.transport.abort()
            return socket
        await socket.send_str("three\n")
        if self.status == "RUNNING":
            self.status = "SUCCEEDED"
        await socket.close()
        return socket

    def run(self, ready: Queue[int]) -> None:
        app = web.Application()
        app.router.add_get("/{path:.*?}{slash:/?}api/version", self.version)
        app.router.add_route("*", "/api/packages/{protocol}/{name}", self.package)
        app.router.add_post("/api/jobs/", self.submit)
        app.router.add_get("/api/jobs/{job}", self.details)
        app.router.add_get("/api/jobs/{job}/logs/tail", self.tail)
        app.router.add_post("/api/jobs/{job}/stop", self.stop)

        async def serve() -> None:
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            ready.put(runner.addresses[0][1])
            await asyncio.Event().wait()

        asyncio.run(serve())


@pytest.fixture
def dashboard() -> tuple[_Dashboard, Jobs]:
    server, ready = _Dashboard(), Queue[int]()
    threading.Thread(target=server.run, args=(ready,), daemon=True).start()
    return server, Jobs(f"http://127.0.0.1:{ready.get(timeout=30)}", None)


@pytest.mark.parametrize("path", ["/json", "/page", "/missing", "/down"])
def test_a_server_that_is_not_ray_is_reported(
    dashboard: tuple[_Dashboard, Jobs], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = dashboard[1].address + path
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://other:1")
    with pytest.raises(Lost, match=f"{address} does not answer as Ray's dashboard does"):
        Jobs(address, None)
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://other:1"


def test_ray_packs_exactly_the_listed_files(dashboard: tuple[_Dashboard, Jobs], tmp_path: Path) -> None:
    server, jobs = dashboard
    ignored = {".gitignore": "*.log\nbuild/\nkept/*\n!kept/this.txt\n", "kept/this.txt": "", "kept/that.txt": ""}
    secrets = {"out/a.json": "", "data/a.csv": "", "a/.env": "", "a/tls.key": "", ".git/HEAD": "", "a.log": ""}
    deep = {"deep/build/a.py": "", "deep/.rayignore": "b.py\n", "deep/b.py": "", "deep/out/c.py": "", "run.sh": "#!"}
    project = write(tmp_path / "project", ignored | secrets | deep)
    (project / "run.sh").chmod(0o755)
    (project / "linked [1]").symlink_to(write(project / "there", {"big.txt": "x"}))
    tree = working_tree(str(project))
    assert jobs.submit("striate info", tree, {}) == "a"
    with zipfile.ZipFile(io.BytesIO(server.packages[0])) as packed:
        members = {member.filename: member.external_attr >> 16 for member in packed.infolist() if not member.is_dir()}
    assert members.keys() == tree.files.keys()
    sent = {
        ".gitignore",
        "kept/this.txt",
        "deep/.rayignore",
        "deep/out/c.py",
        "run.sh",
        "there/big.txt",
        "linked [1]/big.txt",
    }
    assert tree.files.keys() == sent
    assert members["run.sh"] & 0o111


def test_a_log_resumes_where_its_connection_was_cut(
    dashboard: tuple[_Dashboard, Jobs], capsys: pytest.CaptureFixture[str]
) -> None:
    _, jobs = dashboard
    pieces: list[str] = []
    details = jobs.follow("a", pieces.append)
    assert "".join(pieces) == "one\ntwo\nthree\n"
    assert exit_code(details) == 3
    assert capsys.readouterr().err.count("the job may still be running") == 1


def test_a_silent_log_is_requested_again_without_a_message(
    dashboard: tuple[_Dashboard, Jobs], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server, jobs = dashboard
    server.quiet = True
    monkeypatch.setattr(client, "_QUIET_S", 0.2)
    pieces: list[str] = []
    jobs.follow("a", pieces.append)
    assert "".join(pieces) == "one\ntwo\nthree\n"
    assert capsys.readouterr().err == ""


def test_a_job_is_stopped(dashboard: tuple[_Dashboard, Jobs]) -> None:
    details = dashboard[1].stop("a")
    assert (str(details.status), exit_code(details)) == ("STOPPED", 130)
    assert dashboard[0].tails == 0


def test_a_job_that_does_not_stop_is_reported(
    dashboard: tuple[_Dashboard, Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, jobs = dashboard
    server.stops = False
    monkeypatch.setattr(client, "_STOP_S", 0)
    with pytest.raises(StriateError, match="a was asked to stop and is still RUNNING"):
        jobs.stop("a")


def test_a_lost_log_is_reported_once_and_the_exit_code_is_kept(
    dashboard: tuple[_Dashboard, Jobs], capsys: pytest.CaptureFixture[str]
) -> None:
    server, jobs = dashboard
    server.status, server.log_is_lost = "SUCCEEDED", True
    assert exit_code(jobs.follow("a", print)) == 3
    assert capsys.readouterr().err.count("the log of a, which has ended, cannot be read") == 1


def test_a_running_job_whose_log_stays_unreadable_is_given_up(
    dashboard: tuple[_Dashboard, Jobs], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server, jobs = dashboard
    server.log_is_lost = True
    monkeypatch.setattr(client, "_AWAY_S", 0.1)
    monkeypatch.setattr(client, "_PAUSE_S", 0.01)
    with pytest.raises(Lost):
        jobs.follow("a", print)
    assert server.tails > 1
    assert capsys.readouterr().err.count("the job may still be running") == 1


def test_a_closed_pipe_ends_following(dashboard: tuple[_Dashboard, Jobs]) -> None:
    def closed(_piece: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        dashboard[1].follow("a", closed)
    assert dashboard[0].tails == 1


def test_a_file_that_cannot_be_packed_is_named(dashboard: tuple[_Dashboard, Jobs]) -> None:
    server, jobs = dashboard
    with open_folder() as folder:
        tree = working_tree(str(write(folder, {"main.py": "1", "closed.py": "2"})))
        jobs.submit("striate info", tree, {})
        refused = r"nothing was submitted, as .*/closed\.py cannot be packed \(Permission denied\): make it readable"
        with closed(folder / "closed.py"), pytest.raises(UsageError, match=refused):
            jobs.submit("striate info", tree, {})
    assert len(server.packages) == 1


def test_a_missing_job_is_reported_immediately(dashboard: tuple[_Dashboard, Jobs]) -> None:
    with pytest.raises(StriateError, match=r"no-such-job does not exist.*`striate jobs` lists") as refused:
        dashboard[1].follow("no-such-job", print)
    assert not isinstance(refused.value, Lost)


def test_another_version_of_ray_is_refused_before_any_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.59.0" if name == "ray" else version(name))
    with pytest.raises(StriateError, match=r"Ray 2\.59\.0 is too old or too new"):
        Jobs(f"http://127.0.0.1:{free_port()}", None)
