"""Bodies too large, too slow or cut off; clients that leave; pictures made to hurt; and what the log says of it all."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from typing import Any

import httpx
import numpy as np
import pytest
from picture_examples import encoded, kinds, npy_bytes, png_bytes
from serving import LocalModel, Server, apps, asgi_client, problem, until

from serve.keys import new_key
from serve.service import Busy
from serve.settings import ServeSettings

JPEG = encoded("jpeg", 40, 50)
POST = "POST /models/grey/predict HTTP/1.1\r\nHost: localhost\r\n"


# -- bodies -----------------------------------------------------------------------------------------------------------


def small(models: dict[str, LocalModel], **settings: Any) -> Server:
    return Server(apps(models, ServeSettings(max_body_mb=0.01, **settings)))


def told(answer: bytes) -> dict[str, Any]:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def test_a_body_that_is_too_large_is_413_whether_it_says_so_or_not(models: dict[str, LocalModel]) -> None:
    with small(models) as server, server.client() as client:
        for path in ("/models/grey/predict", "/models/grey/view", "/preview?steps=invert", "/v2/models/grey/infer"):
            problem(client.post(path, content=b"x" * 11_000), 413, "body_too_large")
            told = problem(client.post(path, content=(b"x" * 1000 for _ in range(11))), 413, "body_too_large")
            assert "0.01 MiB" in told["how"]
        assert client.post("/models/grey/predict", content=JPEG).status_code == 200


def test_a_client_that_only_says_how_much_it_will_send_is_refused_before_it_does(models: dict[str, LocalModel]) -> None:
    with small(models) as server:
        head = f"{POST}Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n"
        answer = server.raw(head.encode())
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"connection: close" in answer.lower()
        answer = server.raw(f"{POST}Content-Length: {'9' * 5000}\r\n\r\n".encode())
        assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 413")


@pytest.mark.parametrize("head", ["Content-Length: 5000\r\n", "Transfer-Encoding: chunked\r\n"])
def test_a_body_that_does_not_come_is_408_and_the_connection_closed(models: dict[str, LocalModel], head: str) -> None:
    with small(models, body_timeout_s=0.2) as server:
        body = b"5\r\nhello\r\n" if "chunked" in head else b"hello"
        answer = server.raw(f"{POST}{head}\r\n".encode() + body)
        assert answer.startswith(b"HTTP/1.1 408"), answer
        assert told(answer)["type"] == "urn:striate:slow_body"
        assert "5 bytes" in told(answer)["detail"]


def test_a_body_that_ends_early_is_no_answer_and_no_failure(
    models: dict[str, LocalModel], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "striate.access")
    with small(models) as server:
        assert server.raw(f"{POST}Content-Length: 5000\r\n\r\nhello".encode(), half=True) == b""
        until(lambda: [line["status"] for line in lines(caplog)] == [499])
        with server.client() as client:
            assert client.post("/models/grey/predict", content=JPEG).status_code == 200


def test_a_wrong_key_is_told_to_who_still_sends(models: dict[str, LocalModel]) -> None:
    settings = ServeSettings(keys=(new_key("a")[1],))
    with Server(apps(models, settings)) as server, server.client() as client:
        problem(client.post("/models/grey/predict", content=b"x" * 2**22), 401, "key")
        problem(client.post("/models/grey/predict", content=(b"x" * 2**16 for _ in range(64))), 401, "key")


# -- clients that leave, models that take long ------------------------------------------------------------------------


def test_who_leaves_while_the_model_works_ends_the_work(
    models: dict[str, LocalModel], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "striate.access")
    held = LocalModel("held", models["grey"].bundle, ServeSettings())
    held.gate = asyncio.Event()
    with Server(apps({"held": held}, ServeSettings())) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = f"POST /models/held/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(JPEG)}\r\n\r\n"
            connection.sendall(head.encode() + JPEG)
            until(held.entered.is_set)
        until(lambda: held.cancelled == 1)
        until(lambda: [line["status"] for line in lines(caplog)] == [499])


def test_a_model_that_takes_too_long_is_504_and_its_work_ended(models: dict[str, LocalModel]) -> None:
    held = LocalModel("held", models["grey"].bundle, ServeSettings())
    held.gate = asyncio.Event()

    async def play() -> None:
        async with asgi_client(apps({"held": held}, ServeSettings(timeout_s=0.05))) as client:
            problem(await client.post("/models/held/predict", content=JPEG), 504, "timed_out")

    asyncio.run(play())
    assert held.cancelled == 1


def test_many_requests_at_once_are_all_answered_alike(models: dict[str, LocalModel]) -> None:
    async def play() -> None:
        async with asgi_client(apps(models, ServeSettings())) as client:
            answers = await asyncio.gather(*(client.post("/models/grey/predict", content=JPEG) for _ in range(200)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({json.dumps(answer.json()["predictions"]) for answer in answers}) == 1

    asyncio.run(play())


# -- pictures ---------------------------------------------------------------------------------------------------------

HUGE = {
    "png": png_bytes(60_000, 60_000, 8, 2, b"\0" * 1000),
    "png 1-bit": png_bytes(60_000, 60_000, 1, 0, b"\0" * 1000),
    "png of 2^31": png_bytes(2**31 - 1, 2**31 - 1, 16, 6, b""),
    "gif": b"GIF89a" + b"\xff\xff\xff\xff\x80\0\0" + bytes(6),
    "bmp": b"BM"
    + bytes(12)
    + (40).to_bytes(4, "little")
    + (60_000).to_bytes(4, "little") * 2
    + b"\1\0\x18\0"
    + bytes(24),
    "npy": npy_bytes("{'descr': '|u1', 'fortran_order': False, 'shape': (60000, 60000, 3), }", b"\0" * 100),
}


@pytest.mark.parametrize("kind", HUGE)
@pytest.mark.parametrize("path", ["/models/grey/predict", "/models/grey/view", "/preview?steps=invert"])
def test_a_picture_of_60000_x_60000_is_refused_by_its_header(server: Server, kind: str, path: str) -> None:
    with server.client() as client:
        response = client.post(path, content=HUGE[kind])
    assert response.status_code in (400, 413), response.text
    if kind.startswith("png"):
        problem(response, 413, "too_large")
        assert "pixels" in response.json()["detail"]


def damaged() -> dict[str, bytes]:
    """Every kind of picture cut off, with bytes changed, and followed by others; and files that are none."""
    rng = np.random.default_rng(0)
    made: dict[str, bytes] = {
        "empty": b"",
        "svg": b"<svg/>",
        "html": b"<script>alert(1)</script>",
        "zip": b"PK\3\4" * 9,
    }
    for name, data in kinds().items():
        made[f"{name}, half"] = data[: len(data) // 2]
        made[f"{name}, head"] = data[:40]
        for number in range(4):
            changed = bytearray(data)
            for place in rng.integers(0, len(changed), 3):
                changed[place] ^= int(rng.integers(1, 256))
            made[f"{name}, changed {number}"] = bytes(changed)
    return made


def test_no_damaged_picture_is_ever_a_failure_of_the_server(server: Server) -> None:
    with server.client() as client:
        for name, data in damaged().items():
            response = client.post("/models/grey/predict", content=data)
            assert response.status_code in (200, 400, 413, 415, 422), (name, response.text)
            if response.status_code != 200:
                assert response.json()["reason"], name


# -- the access log ---------------------------------------------------------------------------------------------------


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.message) for record in caplog.records if record.name == "striate.access"]


def test_the_log_says_who_asked_what_and_how_it_went_and_holds_no_key_and_no_name_of_a_file(
    models: dict[str, LocalModel], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "striate.access")
    key, line = new_key("ann")

    async def play() -> None:
        headers = {"Authorization": f"Bearer {key}", "X-Request-Id": "r-1"}
        async with asgi_client(apps(models, ServeSettings(keys=(line,))), headers=headers) as client:
            await client.post("/models/grey/predict?top_k=1", files={"file": ("mine.jpg", JPEG)})
            await client.post("/models/secret-name/predict", content=JPEG)
            await client.get("/v2/models/grey/ready")
            await client.get("/secret-path")
            await client.get("/models", headers={"Authorization": "Bearer secret-key"})

    asyncio.run(play())
    logged = lines(caplog)
    assert [(one["method"], one["path"], one["model"], one["status"], one["key"]) for one in logged] == [
        ("POST", "/models/grey/predict", "grey", 200, "ann"),
        ("POST", "/models/{name}/{rest:path}", None, 404, "ann"),
        ("GET", "/v2/models/{name}/ready", "grey", 200, "ann"),
        ("GET", None, None, 404, "ann"),
        ("GET", None, None, 401, None),
    ]
    assert {one["id"] for one in logged} == {"r-1"}
    assert logged[0]["in"] > len(JPEG)
    assert logged[0]["out"] > 100
    assert logged[0]["ms"] > 0
    for secret in (key, "mine.jpg", "secret"):
        assert secret not in caplog.text


def test_an_unexpected_failure_is_logged_with_its_trace_and_told_without(
    models: dict[str, LocalModel], caplog: pytest.LogCaptureFixture
) -> None:
    failing = LocalModel("failing", models["grey"].bundle, ServeSettings())
    failing.failing = ZeroDivisionError("inside")

    async def play() -> httpx.Response:
        async with asgi_client(apps({"failing": failing}, ServeSettings())) as client:
            return await client.post("/models/failing/predict", content=JPEG)

    response = asyncio.run(play())
    problem(response, 500, "internal")
    assert "inside" not in response.text
    assert "ZeroDivisionError: inside" in caplog.text


def test_busy_says_when_to_ask_again() -> None:
    assert Busy("full", 3).__reduce__() == (Busy, ("full", 3, 503))
