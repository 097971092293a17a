"""Where jobs are sent, with which token, and what is said when nobody answers."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from cluster.job_server import JobServer, Lost, find_address
from cluster.ray_token import find_token, make_token
from library.errors import StriateError, UsageError
from tests.conftest import free_port


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
    with pytest.raises(UsageError, match=r"RAY_ADDRESS.*http://HOST:8265"):
        find_address(None, {"RAY_ADDRESS": address})


def test_the_token_is_of_the_file_that_is_named_else_where_ray_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "named").write_text("from-file\n")
    (tmp_path / "path").write_text("from-path")
    (tmp_path / ".ray").mkdir()
    here = {"RAY_AUTH_TOKEN": "from-variable", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "path")}
    assert find_token(str(tmp_path / "named"), here) == "from-file"
    assert find_token(None, here) == "from-variable"
    assert find_token(None, {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "path")}) == "from-path"
    assert find_token(None, {}) is None
    (tmp_path / ".ray/auth_token").write_text("from-home")
    assert find_token(None, {}) == "from-home"
    assert find_token(None, {"RAY_AUTH_MODE": "disabled"}) is None


@pytest.mark.parametrize("content", ["", "  \n", "two words", "a\nb", "ünicode"])
def test_what_is_no_token_is_refused_and_not_shown(tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    with pytest.raises(UsageError, match="holds no token") as refused:
        find_token(str(tmp_path / "token"), {})
    assert not content.strip() or content.strip() not in str(refused.value)


def test_where_nothing_answers_it_is_tried_again_and_then_told() -> None:
    told: list[str] = []
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Lost, match=f"nothing answers at {address} .*refused.*8265"):
        JobServer(address, "token", waits_s=(0, 0), told=told.append)
    assert len(told) == 1
    assert "trying" in told[0]


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
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("path", ["/json", "/page", "/missing"])
def test_a_server_that_is_no_ray_is_called_that_at_once(not_ray: str, path: str) -> None:
    with pytest.raises(StriateError, match="does not answer as Ray's dashboard does") as refused:
        JobServer(not_ray + path)
    assert not isinstance(refused.value, Lost)


def test_a_proxy_before_a_head_that_is_down_is_tried_again(not_ray: str) -> None:
    with pytest.raises(Lost, match="502"):
        JobServer(not_ray + "/down", waits_s=(0,))


def test_the_environment_is_as_it_was(not_ray: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://other:1")
    with pytest.raises(StriateError, match=not_ray):
        JobServer(not_ray + "/json")
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://other:1"


def test_a_token_that_is_made_here_is_its_owners_alone_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    make_token()
    file = tmp_path / ".ray" / "auth_token"
    made = file.read_text()
    assert (file.stat().st_mode & 0o777, find_token(None, {})) == (0o600, made)
    make_token()
    assert file.read_text() == made


@pytest.mark.parametrize("variable", [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "mine")])
def test_no_token_is_made_where_none_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str]
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(*variable)
    make_token()
    assert not (tmp_path / ".ray").exists()
