"""Where jobs are sent and with which variables, what is said when nobody answers, and exit codes."""

from __future__ import annotations

import asyncio
import http.server
import os
import shlex
import threading
from collections.abc import Iterator
from queue import Queue
from typing import Any, ClassVar

import pytest
from aiohttp import web
from ray.job_submission import JobDetails, JobStatus, JobType

from cluster import submit
from cluster.inner_command import InnerCommand
from cluster.submit import Jobs, Lost, ended, exit_code, find_address, passed_on
from library.errors import StriateError, UsageError
from tests.conftest import free_port


def test_a_shell_on_the_cluster_reads_the_words_as_they_were_written() -> None:
    words = ("filter", "s3://b/raw", "s3://b/x", "--steps", "grayscale | edges(direction='vertical')")
    entrypoint = InnerCommand("filter", words, {}, ()).entrypoint
    assert entrypoint.startswith("striate filter s3://b/raw s3://b/x --steps ")
    assert shlex.split(entrypoint) == ["striate", *words]


def test_variables_go_along_only_when_told() -> None:
    here = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_PROFILE": "me", "A": "1", "B": "2"}
    assert passed_on([], aws=False, environment=here) == {}
    assert passed_on(["A", "C=x=y", "D="], aws=False, environment=here) == {"A": "1", "C": "x=y", "D": ""}
    assert passed_on([], aws=True, environment=here) == {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}


@pytest.mark.parametrize(("written", "told"), [("E", "not set"), ("a-b=1", "NAME=VALUE"), ("A=$HOME", r"\$")])
def test_a_variable_that_would_not_arrive_is_refused(written: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        passed_on([written], aws=False, environment={})


def test_a_profile_is_no_key() -> None:
    with pytest.raises(UsageError, match="export-credentials"):
        passed_on([], aws=True, environment={"AWS_PROFILE": "me"})


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
def test_submit_ends_as_the_command_did(job: JobDetails, code: int) -> None:
    assert exit_code(job) == code


def test_why_a_command_never_ran_is_told() -> None:
    told = ended(details("FAILED", message="runtime_env setup failed", start_time=1000, end_time=13_000))
    assert told == "job: FAILED, exit code 1, 12 s\nruntime_env setup failed"


def test_the_address_is_the_one_that_is_said_else_rays_own_variables_else_this_machine() -> None:
    here = {"RAY_API_SERVER_ADDRESS": "http://a:1", "RAY_ADDRESS": "http://b:2"}
    assert find_address("https://head/ray/", here) == "https://head/ray"
    assert find_address(None, here) == "http://a:1"
    assert find_address(None, {"RAY_ADDRESS": "http://b:2"}) == "http://b:2"
    assert find_address(None, {}) == "http://127.0.0.1:8265"


@pytest.mark.parametrize("address", ["head:8265", "head", "ray://head:10001", "http://", "http://head:port", "auto"])
def test_another_address_is_refused_with_what_it_looks_like(address: str) -> None:
    with pytest.raises(UsageError, match="http://HOST:8265"):
        find_address(address, {})
    with pytest.raises(UsageError, match=r"RAY_ADDRESS .*http://HOST:8265"):
        find_address(None, {"RAY_ADDRESS": address})


def test_where_nothing_answers_it_is_told() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Lost, match=f"{address} does not answer .*8265"):
        Jobs(address, "token")


class _NotRay(http.server.BaseHTTPRequestHandler):
    answers: ClassVar = {
        "/json/api/version": (200, b"{}"),
        "/page/api/version": (200, b"<html>"),
        "/down/api/version": (502, b""),
    }

    def do_GET(self) -> None:
        status, body = self.answers.get(self.path, (404, b""))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name there)
        pass


@pytest.fixture
def not_ray() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _NotRay) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("path", ["/json", "/page", "/missing", "/down"])
def test_a_server_that_is_no_ray_is_called_that(not_ray: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://other:1")
    with pytest.raises(Lost, match=f"{not_ray}{path} does not answer as Ray's dashboard does"):
        Jobs(not_ray + path, None)
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://other:1"


class _Dashboard:
    """As much of Ray's job API as follows one job, whose log is sent in parts; the first connection is cut
    short, or says nothing more."""

    def __init__(self) -> None:
        self.status, self.tails, self.quiet = "RUNNING", 0, False

    async def version(self, _request: web.Request) -> web.Response:
        return web.json_response({"ray_version": "2.60.0"})

    async def details(self, request: web.Request) -> web.Response:
        if request.match_info["job"] != "a":
            return web.Response(status=404, text=f"Job {request.match_info['job']} does not exist")
        code = {"SUCCEEDED": 3, "STOPPED": None}.get(self.status)
        return web.json_response(
            {"type": "SUBMISSION", "submission_id": "a", "status": self.status, "entrypoint": "striate info"}
            | {"driver_exit_code": code, "job_id": None}
        )

    async def stop(self, _request: web.Request) -> web.Response:
        self.status = "STOPPED"
        return web.json_response({"stopped": True})

    async def tail(self, request: web.Request) -> web.StreamResponse:
        self.tails += 1
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
        self.status = "SUCCEEDED"
        await socket.close()
        return socket

    def run(self, ready: Queue[int]) -> None:
        app = web.Application()
        app.router.add_get("/api/version", self.version)
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
    made, ready = _Dashboard(), Queue[int]()
    threading.Thread(target=made.run, args=(ready,), daemon=True).start()
    return made, Jobs(f"http://127.0.0.1:{ready.get(timeout=30)}", None)


def test_a_log_goes_on_where_its_connection_was_cut(dashboard: tuple[_Dashboard, Jobs]) -> None:
    server, jobs = dashboard
    pieces: list[str] = []
    reports: list[str] = []
    details = jobs.follow("a", pieces.append, reports.append)
    assert "".join(pieces) == "one\ntwo\nthree\n"
    assert (server.tails, exit_code(details), len(reports)) == (2, 3, 1)
    assert "the job may go on" in reports[0]


def test_a_quiet_log_is_asked_for_anew_without_a_report(
    dashboard: tuple[_Dashboard, Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, jobs = dashboard
    server.quiet = True
    monkeypatch.setattr(submit, "_QUIET_S", 0.2)
    pieces: list[str] = []
    reports: list[str] = []
    jobs.follow("a", pieces.append, reports.append)
    assert "".join(pieces) == "one\ntwo\nthree\n"
    assert (server.tails, reports) == (2, [])


def test_a_job_is_stopped_once(dashboard: tuple[_Dashboard, Jobs]) -> None:
    _, jobs = dashboard
    details, by_us = jobs.stop("a")
    assert (str(details.status), exit_code(details), by_us) == ("STOPPED", 130, True)
    assert jobs.stop("a")[1] is False


def test_a_job_that_is_not_there_is_told_at_once(dashboard: tuple[_Dashboard, Jobs]) -> None:
    with pytest.raises(StriateError, match=r"no-such-job does not exist.*`striate jobs` lists") as refused:
        dashboard[1].follow("no-such-job", print, print)
    assert not isinstance(refused.value, Lost)
