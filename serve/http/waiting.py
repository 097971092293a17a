"""Waiting for a model, but not longer than it makes sense."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from serve.http.problems import Problem
from serve.http.service import TimedOut
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
    asking = asyncio.current_task()
    assert asking is not None
    ended: list[Exception] = []

    async def watch() -> None:
        try:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            ended.append(ClientDisconnect())
        except Problem as problem:  # a body that nobody wanted, and that breaks a limit
            ended.append(problem)
        asking.cancel()

    watcher = asyncio.create_task(watch())
    try:
        async with asyncio.timeout(settings.timeout_s):
            return await call
    except TimeoutError:
        raise TimedOut(f"no answer within {settings.timeout_s:g} s") from None
    except asyncio.CancelledError:
        if not ended:
            raise
        asking.uncancel()
        raise ended[0] from None
    finally:
        watcher.cancel()
