"""Who may ask, and how much: keys, the size of a body and the time it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import urlsplit

# What Starlette's router takes for the path: judged by any other, an address could be open here and closed there.
from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.envelope import Facts, facts_of
from serve.http.keys import Keys
from serve.http.problems import Problem
from serve.launch.exposure import is_loopback
from serve.settings import ServeSettings

#: How long an answer waits for the rest of a body that it does not need, so that the client gets to read it.
_DRAIN_S = 2.0


class Guard:
    """Lets nothing through without a key, but what is open to all; stands inside `Envelope`.

    Args:
        app: what answers.
        settings: limits and keys.
        is_open: whether a method and path need no key.

    Raises:
        UsageError: for a wrong line among the keys, or a key file that is not there.
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
        headers, facts = Headers(scope=scope), facts_of(scope)
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
                # Told at once; the connection is closed when the client has had time to read it.
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

    def _check(self, scope: Scope, headers: Headers, facts: Facts) -> None:
        if not self._is_open(scope["method"], get_route_path(scope)):
            if self._keys is None:
                _check_host(headers)
            else:
                facts.key = _owner(self._keys, headers)
        encoding = headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            raise Problem(415, "content_encoding", f"the body is encoded as '{encoding[:40]}'", "Send it as it is.")


def _owner(keys: Keys, headers: Headers) -> str:
    given = headers.getlist("authorization")
    scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    owner = keys.owner(key.strip()) if scheme.lower() == "bearer" else None
    if owner is None:
        raise Problem(
            401,
            "key",
            "This needs an API key, and there is none that is known.",
            "Send one as: Authorization: Bearer KEY",
            {"WWW-Authenticate": 'Bearer realm="striate"'},
        )
    return owner


def _check_host(headers: Headers) -> None:
    """Without keys only this machine may ask; a web page whose name was made to lead here (DNS rebinding) is not it."""
    host = headers.get("host", "")
    if not is_loopback(_name(host)):
        detail = f"a server without keys answers to localhost, not to '{host[:80]}'"
        raise Problem(421, "host", detail, "Ask http://127.0.0.1, or serve with --api-keys.")


def _name(host: str) -> str:
    """Of a Host header, without its port; empty where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class _Body:
    """The request's body on its way in, held to its size and its time."""

    def __init__(self, receive: Receive, headers: Headers, facts: Facts, settings: ServeSettings) -> None:
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
        """Refuse a body that says itself that it is too large."""
        length = self._headers.get("content-length", "0")
        # Python refuses to read numbers of thousands of digits.
        if length.isdecimal() and (len(length) > 18 or int(length) > self._limit):
            raise self._too_large()

    async def receive(self) -> Message:
        """As ASGI's; raises Problem when the body is too large or too slow."""
        if self.complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            self._late = True
            detail = f"the body was not here {self._seconds:g} s after its head; {self._facts.received:,} bytes were"
            raise Problem(408, "slow_body", detail, "Send a smaller picture, or over a faster line.") from None
        self._count(message)
        if self._facts.received > self._limit:
            raise self._too_large()
        return message

    async def drain(self) -> None:
        """Read on for a moment: closed upon while it still sends, a client may never see the answer."""
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
        how = f"Send at most {self._limit_mb:g} MiB at once: fewer pictures, or smaller ones."
        return Problem(413, "body_too_large", detail, how)
