"""Waiting for a model, but not longer than it makes sense."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from serve.service import TimedOut
from serve.settings import ServeSettings

_T = TypeVar("_T")


async def answered(request: Request, settings: ServeSettings, call: Coroutine[Any, Any, _T]) -> _T:
    """The result of `call`, which is cancelled when the client leaves or the time is over.

    Args:
        request: its body has been read.
        settings: with `timeout_s`.
        call: of the model.

    Raises:
        ClientDisconnect: nobody waits for the answer any longer.
        TimedOut: not done in time.
    """
    work = asyncio.ensure_future(call)
    left = asyncio.ensure_future(_left(request))
    try:
        done, _ = await asyncio.wait({work, left}, timeout=settings.timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if work in done:
            return work.result()
        if left in done:
            left.result()  # a body that nobody wanted, and that breaks a limit
            raise ClientDisconnect
        raise TimedOut(f"no answer within {settings.timeout_s:g} s")
    finally:
        work.cancel()
        left.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
