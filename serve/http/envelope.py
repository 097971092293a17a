"""What every request and response gets, whatever becomes of it: security headers and a line in the access log.

The line is one JSON object to the logger `striate.access`: who (the key's name, never the key), what (the address'
template, never what was sent), and how it went.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.problems import problem_of

#: Of a request whose client left before its answer; as nginx logs it.
CLIENT_LEFT = 499

_CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "media-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_SECURITY = {
    "Content-Security-Policy": _CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # The page takes photographs; nothing else of a device is asked for.
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: As ASGI sends them; no answer of ours has any of its own.
_HEADERS = [(name.lower().encode(), value.encode()) for name, value in _SECURITY.items()]
_NO_STORE = (b"cache-control", b"no-store")
_FACTS = "striate.facts"

_access = logging.getLogger("striate.access")
_log = logging.getLogger("striate.serve")


@dataclass
class Facts:
    """What is known of a request under way.

    Attributes:
        request_id: the first 64 characters of its `X-Request-Id`. Ray Serve gives one to a request that comes without
            and puts it, whole, into every response that is not HAProxy's own.
        model: that it is for.
        key: the name of its key.
        received: bytes of its body so far.
        sent: bytes of the response's body.
        status: of the response.
    """

    request_id: str
    model: str | None = None
    key: str | None = None
    received: int = 0
    sent: int = 0
    status: int | None = None
    began: float = field(default_factory=perf_counter)


def facts_of(scope: Scope) -> Facts:
    """What is known of the request."""
    return scope[_FACTS]


class Envelope:
    """The outermost middleware.

    Args:
        app: what answers.
        model: the model's name, where all of `app` is about one.
    """

    def __init__(self, app: ASGIApp, model: str | None = None) -> None:
        self._app, self._model = app, model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id", "")[:64].encode("ascii", "replace").decode()
        facts = Facts(request_id, self._model)
        scope[_FACTS] = facts
        method = scope["method"]
        if method == "HEAD":
            # Every address that can be read answers it: as to GET, without the body.
            scope = {**scope, "method": "GET"}
        if scope["path"] == scope.get("root_path"):
            scope["path"] += "/"  # the address of the model itself, which Starlette would find no route for

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
                raise  # half an answer is out: only closing the connection tells the client
            await problem_of(error).response(scope["path"])(scope, receive, answer)
        finally:
            if _access.isEnabledFor(logging.INFO):
                _access.info(_line(scope, method, facts))


def _complete(message: Message, facts: Facts, *, with_body: bool) -> None:
    """Put into a part of an answer what every answer has, and note it."""
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


def _line(scope: Scope, method: str, facts: Facts) -> str:
    line: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "id": facts.request_id,
        "method": method,
        "path": _template(scope, facts.model),
        "model": facts.model,
        "status": CLIENT_LEFT if facts.status is None else facts.status,
        "ms": round((perf_counter() - facts.began) * 1000, 2),
        "in": facts.received,
        "out": facts.sent,
        "key": facts.key,
    }
    return json.dumps(line)


def _template(scope: Scope, model: str | None) -> str | None:
    """The route as it was declared, under the address that the application has; None where there is no such."""
    route = getattr(scope.get("route"), "path", None)
    return None if route is None else scope.get("root_path", "") + route
