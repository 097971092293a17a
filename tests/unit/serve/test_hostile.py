"""Bodies too large, too slow or truncated; clients that leave; malicious pictures; and the access log."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.http.keys import new_key
from serve.http.service import Busy
from serve.settings import ServeSettings
from tests.picture_examples import encoded
from tests.serving import LocalModel, Server, apps, asgi_client, problem
from tests.waiting import until

sys.path.insert(0, str(Path(__file__).parents[1] / "library" / "imaging"))
bad: Any = importlib.import_module("test_bad_pictures")

JPEG = encoded("jpeg", 40, 50)
POST = "POST /models/grey/predict HTTP/1.1\r\nHost: localhost\r\n"


# -- bodies -----------------------------------------------------------------------------------------------------------


def small(models: dict[str, LocalModel], **settings: Any) -> Server:
    return Server(apps(models, ServeSettings(max_body_mb=0.01, **settings)))


def problem_body(answer: bytes) -> dict[str, Any]:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def test_a_body_too_large_is_413_whether_declared_or_not(models: dict[str, LocalModel]) -> None:
    with small(models) as server, server.client() as client:
        for path in ("/models/grey/predict", "/models/grey/view", "/preview?steps=invert", "/v2/models/grey/infer"):
            problem(client.post(path, content=b"x" * 11_000), 413, "body_too_large")
            body = problem(client.post(path, content=(b"x" * 1000 for _ in range(11))), 413, "body_too_large")
            assert "0.01 MiB" in body["how"]
        assert client.post("/models/grey/predict", content=JPEG).status_code == 200


def test_a_client_that_announces_too_much_is_refused_before_it_sends(models: dict[str, LocalModel]) -> None:
    with small(models) as server:
        head = f"{POST}Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n"
        answer = server.raw(head.encode())
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"connection: close" in answer.lower()
        answer = server.raw(f"{POST}Content-Length: {'9' * 5000}\r\n\r\n".encode())
        assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 413")


def test_a_body_declared_too_large_is_refused_unread(models: dict[str, LocalModel]) -> None:
    sent: list[Any] = []
    sent_before_read: list[int] = []

    async def receive() -> dict[str, Any]:
        sent_before_read.append(len(sent))
        return {"type": "http.request", "body": b"x" * 20_000, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-length", b"20000")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/models/grey/predict",
        "query_string": b"",
        "headers": headers,
    }

    async def play() -> None:
        await apps(models, ServeSettings(max_body_mb=0.01))(scope, receive, send)

    asyncio.run(play())
    assert sent[0]["status"] == 413
    assert b"".join(message.get("body", b"") for message in sent).count(b"body_too_large") == 1
    assert sent_before_read == [2], "its head and its content are sent before anything is read"


@pytest.mark.parametrize("path", ["/models/grey/predict", "/v2/models/grey/infer"])
@pytest.mark.parametrize(
    "body",
    [
        b"{" + b",".join(b'"key%d":1' % number for number in range(10**6)) + b"}",
        b'{"pictures":[{' + b'"k":1,' * 10**6 + b'"base64":""}]}',
        b'{"pictures":[' + b"1," * 10**6 + b"1]}",
        b'{"inputs":[' + b"1," * 10**6 + b"1]}",
        b'{"inputs":[],"outputs":[' + b"1," * 10**6 + b"1]}",
        b'{"' + b"k" * 10**7 + b'":1}',
        b"[" * 10**6,
    ],
    ids=["keys", "keys of a picture", "pictures", "inputs", "outputs", "a long key", "depth"],
)
def test_json_made_to_have_many_mistakes_is_refused_in_few_words(server: Server, path: str, body: bytes) -> None:
    with server.client() as client:
        response = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 413, 422)
    assert response.headers["content-type"] == "application/problem+json"
    assert len(response.content) < 2000


def test_a_part_of_a_form_with_many_headers_is_refused(server: Server) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="file"\r\n'
    body = head + b"".join(b"X-%d: 1\r\n" % number for number in range(1000)) + b"\r\nx\r\n--b--\r\n"
    with server.client() as client:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        problem(client.post("/models/grey/predict", content=body, headers=headers), 400, "malformed")


@pytest.mark.parametrize("head", ["Content-Length: 5000\r\n", "Transfer-Encoding: chunked\r\n"])
def test_a_body_that_does_not_arrive_is_408_and_the_connection_closed(models: dict[str, LocalModel], head: str) -> None:
    with small(models, body_timeout_s=0.2) as server:
        body = b"5\r\nhello\r\n" if "chunked" in head else b"hello"
        answer = server.raw(f"{POST}{head}\r\n".encode() + body)
        assert answer.startswith(b"HTTP/1.1 408"), answer
        assert problem_body(answer)["type"] == "urn:striate:slow_body"
        assert "5 bytes" in problem_body(answer)["detail"]


def test_a_body_that_ends_early_gets_no_answer_and_fails_nothing(
    models: dict[str, LocalModel], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "striate.access")
    with small(models) as server:
        assert server.raw(f"{POST}Content-Length: 5000\r\n\r\nhello".encode(), half=True) == b""
        until(lambda: [line["status"] for line in lines(caplog)] == [499])
        with server.client() as client:
            assert client.post("/models/grey/predict", content=JPEG).status_code == 200


def test_a_wrong_key_is_reported_to_a_client_that_still_sends(models: dict[str, LocalModel]) -> None:
    settings = ServeSettings(keys=(new_key("a")[1],))
    with Server(apps(models, settings)) as server, server.client() as client:
        problem(client.post("/models/grey/predict", content=b"x" * 2**22), 401, "key")
        problem(client.post("/models/grey/predict", content=(b"x" * 2**16 for _ in range(64))), 401, "key")


# -- clients that leave, models that take long ------------------------------------------------------------------------


def test_a_client_that_leaves_while_the_model_works_ends_the_work(
    models: dict[str, LocalModel], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "striate.access")
    gated = LocalModel("gated", models["grey"].bundle, ServeSettings())
    gated.gate = asyncio.Event()
    with Server(apps({"gated": gated}, ServeSettings())) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = f"POST /models/gated/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(JPEG)}\r\n\r\n"
            connection.sendall(head.encode() + JPEG)
            until(gated.entered.is_set)
        until(lambda: gated.cancelled == 1)
        until(lambda: [line["status"] for line in lines(caplog)] == [499])


def test_a_model_that_takes_too_long_is_504_and_its_work_ended(models: dict[str, LocalModel]) -> None:
    gated = LocalModel("gated", models["grey"].bundle, ServeSettings())
    gated.gate = asyncio.Event()

    async def play() -> None:
        async with asgi_client(apps({"gated": gated}, ServeSettings(timeout_s=0.05))) as client:
            problem(await client.post("/models/gated/predict", content=JPEG), 504, "timed_out")

    asyncio.run(play())
    assert gated.cancelled == 1


def test_many_simultaneous_requests_get_equal_answers(models: dict[str, LocalModel]) -> None:
    async def play() -> None:
        async with asgi_client(apps(models, ServeSettings())) as client:
            answers = await asyncio.gather(*(client.post("/models/grey/predict", content=JPEG) for _ in range(200)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({json.dumps(answer.json()["predictions"]) for answer in answers}) == 1

    asyncio.run(play())


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", bad.BOMBS)
@pytest.mark.parametrize("path", ["/models/grey/predict", "/models/grey/view", "/preview?steps=invert"])
def test_a_picture_of_60000_x_60000_is_refused_by_its_header(server: Server, kind: str, path: str) -> None:
    with server.client() as client:
        response = client.post(path, content=bad.BOMBS[kind])
    if kind == "npy":  # recognised as truncated before any limit is checked
        problem(response, 400, "truncated")
    else:
        problem(response, 413, "too_large")


def bad_pictures() -> list[bytes]:
    """The inputs of the tests of bad pictures, recorded while they run; at most about 20 from each test."""
    recorded: list[bytes] = []
    reason_of, outcome_of = bad.reason_of, bad.outcome_of

    def record(read: Callable[[bytes], str]) -> Callable[[bytes], str]:
        return lambda data: (recorded.append(bytes(data)), read(data))[1]

    pictures = [data[:length] for data in bad.KINDS.values() for length in (40, 100, len(data) // 2, len(data) - 20)]
    bad.reason_of, bad.outcome_of = record(reason_of), record(outcome_of)
    try:
        for test in (value for name, value in vars(bad).items() if name.startswith("test_")):
            for arguments in _arguments(test):
                recorded.clear()
                test(**arguments)
                pictures += recorded[:: max(1, len(recorded) // 20)]
    finally:
        bad.reason_of, bad.outcome_of = reason_of, outcome_of
    return list(dict.fromkeys(pictures))


def _arguments(test: Any) -> Iterator[dict[str, Any]]:
    """The parameter sets of a test; none for a test that tries thousands of inputs or starts a process."""
    parameters = set(inspect.signature(test).parameters)
    marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
    if hasattr(test, "hypothesis") or "kind" in parameters or "memory" in test.__name__:
        return
    if not marks and not parameters:
        yield {}
    for mark in marks:
        names = mark.args[0].replace(" ", "").split(",") if isinstance(mark.args[0], str) else mark.args[0]
        if set(names) == parameters:
            for values in mark.args[1]:
                yield dict(zip(names, values if len(names) > 1 else [values], strict=True))


@pytest.mark.filterwarnings("ignore")
def test_no_bad_picture_is_ever_a_failure_of_the_server(server: Server) -> None:
    pictures = bad_pictures()
    assert len(pictures) > 300
    refused = 0
    with server.client() as client:
        for first in range(0, len(pictures), 60):
            some = pictures[first : first + 60]
            response = client.post("/models/grey/predict", files=[("file", data) for data in some])
            assert response.status_code == 200, response.text
            for data, prediction in zip(some, response.json()["predictions"], strict=True):
                if "error" in prediction:
                    refused += 1
                    assert prediction["error"]["status"] in (400, 413, 415, 422), (data, prediction)
                    assert prediction["error"]["reason"], (data, prediction)
        for data in pictures[::10]:
            alone = client.post("/models/grey/predict", content=data)
            assert alone.status_code in (200, 400, 413, 415, 422), alone.text
    assert refused > 250


# -- the access log ---------------------------------------------------------------------------------------------------


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.message) for record in caplog.records if record.name == "striate.access"]


def test_the_access_log_has_key_names_and_routes_but_no_keys_or_files(
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
        ("POST", "/models/{name}/predict", None, 404, "ann"),
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


def test_only_the_beginning_of_a_long_id_is_logged(
    models: dict[str, LocalModel], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "striate.access")

    async def play() -> None:
        async with asgi_client(apps(models, ServeSettings())) as client:
            await client.get("/models", headers={"X-Request-Id": "x" * 10_000})

    asyncio.run(play())
    assert [one["id"] for one in lines(caplog)] == ["x" * 64]


def test_an_unexpected_failure_is_logged_with_its_trace_and_sent_without(
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
