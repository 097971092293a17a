"""Access control: checks the API key and the Host header, and limits a body's size and the time that it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import urlsplit

# Starlette's router takes its path from this; any other reading could call an address open that it routes elsewhere.
from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.endpoint import is_loopback
from serve.http.keys import Keys
from serve.http.middleware import RequestFacts, request_facts
from serve.http.problem_details import Problem
from serve.settings import ServeSettings

#: How long an answer waits for the rest of a body that is not read, so that the client gets to read the answer.
_DRAIN_S = 2.0


class AccessControl:
    """Middleware that passes on only requests with a key, or to open paths; inside `ResponseMiddleware`.

    Args:
        app: the application.
        settings: limits and keys.
        is_open: whether a method and path need no key.

    Raises:
        UsageError: for a wrong line among the keys, or a missing key file.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, is_open: Callable[[str, str], bool]) -> None:
        self._app, self._settings, self._is_open = app, settings, is_open
        self._keys = Keys(settings.keys or (), settings.keys_file) if settings.needs_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, facts = Headers(scope=scope), request_facts(scope)
        body = _Body(receive, headers, facts, self._settings)

        async def answer(message: Message) -> None:
            if body.complete:
                await send(message)
            elif message["type"] == "http.response.start":
                if not body.is_too_large:
                    await body.drain()
                if not body.complete:
                    MutableHeaders(scope=message)["Connection"] = "close"
                await send(message)
            elif body.is_too_large and not message.get("more_body", False):
                # Answered immediately; the connection is closed once the client has had time to read it.
                await send({**message, "more_body": True})
                await body.drain()
                await send({"type": "http.response.body"})
            else:
                await send(message)

        try:
            self._check(scope, headers, facts)
            body.check_length()
        except Problem as problem:
            await problem.response(scope["path"])(scope, receive, answer)
        else:
            await self._app(scope, body.receive, answer)

    def _check(self, scope: Scope, headers: Headers, facts: RequestFacts) -> None:
        if not self._is_open(scope["method"], get_route_path(scope)):
            if self._keys is None:
                _check_host(headers)
            else:
                facts.key = _owner(self._keys, headers)
        encoding = headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            raise Problem(
                415,
                "content_encoding",
                f"the body has the content encoding '{encoding[:40]}'",
                "Send it without a content encoding.",
            )


def _owner(keys: Keys, headers: Headers) -> str:
    authorization = headers.getlist("authorization")
    scheme, _, key = authorization[0].partition(" ") if len(authorization) == 1 else ("", "", "")
    owner = keys.owner(key.strip()) if scheme.lower() == "bearer" else None
    if owner is None:
        raise Problem(
            401,
            "key",
            "This needs an API key: the request has none, or one that is not known.",
            "Send one as: Authorization: Bearer KEY",
            {"WWW-Authenticate": 'Bearer realm="striate"'},
        )
    return owner


def _check_host(headers: Headers) -> None:
    """Refuses names that are not this machine's: a page whose domain resolves to it (DNS rebinding) could call it."""
    host = headers.get("host", "")
    if not is_loopback(_hostname(host)):
        detail = f"a server without keys answers requests to localhost only, not to '{host[:80]}'"
        raise Problem(421, "host", detail, "Use http://127.0.0.1, or serve with --api-keys.")


def _hostname(host: str) -> str:
    """Returns the name in a Host header, without the port; empty where the header is not valid."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class _Body:
    """Receives a request's body within the limits of size and time."""

    def __init__(self, receive: Receive, headers: Headers, facts: RequestFacts, settings: ServeSettings) -> None:
        self._receive, self._headers, self._facts = receive, headers, facts
        self._limit, self._limit_mb, self._seconds = (
            settings.max_body_bytes,
            settings.max_body_mb,
            settings.body_timeout_s,
        )
        self._deadline = asyncio.get_running_loop().time() + settings.body_timeout_s
        self._late = self.is_too_large = False
        self.complete = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers

    def check_length(self) -> None:
        """Refuses a body whose Content-Length is above the limit."""
        length = self._headers.get("content-length", "0")
        # Python refuses to convert numbers of thousands of digits.
        if length.isdecimal() and (len(length) > 18 or int(length) > self._limit):
            raise self._too_large()

    async def receive(self) -> Message:
        """Receives the next ASGI message; raises Problem when the body is too large or too slow."""
        if self.complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            self._late = True
            detail = f"the body was not complete after {self._seconds:g} s: {self._facts.received:,} bytes had arrived"
            raise Problem(408, "slow_body", detail, "Send a smaller picture, or use a faster connection.") from None
        self._count(message)
        if self._facts.received > self._limit:
            raise self._too_large()
        return message

    async def drain(self) -> None:
        """Reads more of the body for a moment: a client whose connection closes while it sends may lose the answer."""
        if self._late or ("expect" in self._headers and not self._facts.received):
            return
        at_most = self._facts.received + self._limit
        try:
            async with asyncio.timeout(_DRAIN_S):
                while not self.complete and self._facts.received < at_most:
                    self._count(await self._receive())
        except TimeoutError:
            pass

    def _count(self, message: Message) -> None:
        self._facts.received += len(message.get("body", b""))
        self.complete = message["type"] == "http.disconnect" or not message.get("more_body", False)

    def _too_large(self) -> Problem:
        self.is_too_large = True
        detail = f"the body is larger than {self._limit:,} bytes"
        how = f"Send at most {self._limit_mb:g} MiB in one request: fewer or smaller pictures."
        return Problem(413, "body_too_large", detail, how)
