"""Middleware around every application: security headers, CORS, and a line in the access log.

The line is one JSON object to the logger `striate.access`: the key's name (never the key), the route's template (never
what was sent), status, sizes and time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.problem_details import problem_of

#: Status of a request whose client left before its answer; nginx logs the same.
CLIENT_LEFT = 499

_CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "media-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_SECURITY = {
    "Content-Security-Policy": _CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # The page takes photographs and needs nothing else of a device.
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: In ASGI's form; our routes set none of these headers.
_HEADERS = [(name.lower().encode(), value.encode()) for name, value in _SECURITY.items()]
_NO_STORE = (b"cache-control", b"no-store")
_FACTS = "striate.facts"

_access = logging.getLogger("striate.access")
_log = logging.getLogger("striate.serve")


@dataclass
class RequestFacts:
    """Facts about a request in progress, for the access log.

    Attributes:
        request_id: the first 64 characters of its `X-Request-Id`. Ray Serve adds the header where it is missing, and
            puts it, whole, into every response except HAProxy's own.
        model: the model that it is for.
        key: the name of its API key.
        received: bytes of its body so far.
        sent: bytes of the response's body so far.
        status: HTTP status of the response.
        began: time of its arrival, by `perf_counter`.
    """

    request_id: str
    model: str | None = None
    key: str | None = None
    received: int = 0
    sent: int = 0
    status: int | None = None
    began: float = field(default_factory=perf_counter)


def request_facts(scope: Scope) -> RequestFacts:
    """Returns the facts of a request that `ResponseMiddleware` has passed on."""
    return scope[_FACTS]


class ResponseMiddleware:
    """Adds security headers, answers HEAD, turns exceptions into problems and writes the access log; the outermost.

    Args:
        app: the application.
        model: the model's name, where all of `app` is about one.
    """

    def __init__(self, app: ASGIApp, model: str | None = None) -> None:
        self._app, self._model = app, model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id", "")[:64].encode("ascii", "replace").decode()
        facts = RequestFacts(request_id, self._model)
        scope[_FACTS] = facts
        method = scope["method"]
        if method == "HEAD":
            # Every route that answers GET answers HEAD: the same without the body.
            scope = {**scope, "method": "GET"}
        if scope["path"] == scope.get("root_path"):
            scope["path"] += "/"  # the model's own address, for which Starlette would find no route

        async def answer(message: Message) -> None:
            _complete(message, facts, with_body=method != "HEAD")
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except ClientDisconnect:
            facts.status = CLIENT_LEFT
        except Exception as error:
            _log.exception("request %s failed", facts.request_id)
            if facts.status is not None:
                raise  # half of the answer is sent: only closing the connection tells the client
            await problem_of(error).response(scope["path"])(scope, receive, answer)
        finally:
            if _access.isEnabledFor(logging.INFO):
                _access.info(_line(scope, method, facts))


def allow_origins(app: FastAPI, origins: Sequence[str]) -> None:
    """Lets pages of other origins call `app` (CORS).

    It must be outside `AccessControl`: browsers send their preflight requests without a key.
    """
    if not origins:
        return
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "Inference-Header-Content-Length", "X-Request-Id"],
        expose_headers=["Inference-Header-Content-Length", "Retry-After", "X-Request-Id"],
    )


def _complete(message: Message, facts: RequestFacts, *, with_body: bool) -> None:
    """Adds the headers of every answer to a part of a response, and records its status and size."""
    if message["type"] == "http.response.start":
        facts.status = message["status"]
        headers = [*message["headers"], *_HEADERS]
        if not any(name == b"cache-control" for name, _ in headers):
            headers.append(_NO_STORE)
        message["headers"] = headers
    elif message["type"] == "http.response.body":
        if not with_body:
            message["body"] = b""
        facts.sent += len(message.get("body", b""))


def _line(scope: Scope, method: str, facts: RequestFacts) -> str:
    line: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "id": facts.request_id,
        "method": method,
        "path": _template(scope),
        "model": facts.model,
        "status": CLIENT_LEFT if facts.status is None else facts.status,
        "ms": round((perf_counter() - facts.began) * 1000, 2),
        "in": facts.received,
        "out": facts.sent,
        "key": facts.key,
    }
    return json.dumps(line)


def _template(scope: Scope) -> str | None:
    """The template of the route, with the application's prefix; None where no route matched."""
    route = getattr(scope.get("route"), "path", None)
    return None if route is None else scope.get("root_path", "") + route
