"""Calls to models: finds the one that a request names, and waits for its answer no longer than makes sense."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from library.errors import StriateError
from serve.http.middleware import request_facts
from serve.http.problem_details import Problem
from serve.http.schemas import ModelDescription, ModelState
from serve.http.service import ModelService, TimedOut
from serve.settings import ServeSettings

#: How long the list of models waits for one that does not answer.
_DESCRIBE_S = 5.0

_T = TypeVar("_T")


def find_model(request: Request, models: Mapping[str, ModelService], name: str) -> ModelService:
    """Returns a model by name, and records it for the access log.

    Raises:
        Problem: 404, with the names of all models.
    """
    model = models.get(name)
    if model is None:
        names = sorted(models)
        how = f"The models are: {', '.join(names)}." if names else "This server has no models."
        raise Problem(404, "unknown_model", f"there is no model '{name[:80]}'", how, models=names)
    request_facts(request.scope).model = name
    return model


async def describe_all(models: Mapping[str, ModelService]) -> list[ModelDescription | ModelState]:
    """Describes all models, sorted by name."""
    # A model may be removed in the meantime.
    present = [model for name in sorted(models) if (model := models.get(name)) is not None]
    return await asyncio.gather(*(describe_soon(model) for model in present))


async def describe_soon(model: ModelService) -> ModelDescription | ModelState:
    """Describes a model; gives only its name and state where it does not answer within seconds."""
    try:
        async with asyncio.timeout(_DESCRIBE_S):
            description = await model.describe()
            starting = {"ready": False, "state": "STARTING"}
            return description if await model.is_reachable() else description.model_copy(update=starting)
    except (StriateError, TimeoutError):
        return ModelState(name=model.name, ready=False, state="UNREACHABLE")


async def await_answer(request: Request, settings: ServeSettings, call: Coroutine[Any, Any, _T]) -> _T:
    """Returns the result of `call`, which is cancelled when the client leaves or the time is over.

    Args:
        request: its body has been read.
        settings: with `timeout_s`.
        call: to the model.

    Raises:
        ClientDisconnect: the client has left.
        TimedOut: the answer took longer than `timeout_s`.
    """
    caller = asyncio.current_task()
    assert caller is not None
    ended: list[Exception] = []

    async def watch() -> None:
        try:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            ended.append(ClientDisconnect())
        except Problem as problem:  # a body that the route does not read breaks a limit
            ended.append(problem)
        caller.cancel()

    watcher = asyncio.create_task(watch())
    try:
        async with asyncio.timeout(settings.timeout_s):
            return await call
    except TimeoutError:
        raise TimedOut(f"no answer within {settings.timeout_s:g} s") from None
    except asyncio.CancelledError:
        if not ended:
            raise
        caller.uncancel()
        raise ended[0] from None
    finally:
        watcher.cancel()
