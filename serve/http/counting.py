"""Answers counted by status, outside everything else that an application does."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.envelope import CLIENT_LEFT


class Counted:
    """Tells the path, the HTTP status and the seconds of each request.

    Args:
        app: what answers.
        told: called after each answer.
    """

    def __init__(self, app: ASGIApp, told: Callable[[str, int, float], None]) -> None:
        self._app, self._told = app, told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = perf_counter(), CLIENT_LEFT

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            self._told(scope["path"], status, perf_counter() - began)
