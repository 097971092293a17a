"""The models that the gateway knows, by name."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from fastapi import Request

from library.errors import StriateError
from serve.http.envelope import facts_of
from serve.http.problems import Problem
from serve.http.schemas import ModelDescription, ModelState
from serve.http.service import ModelService

#: How long a list of models waits for one that does not answer.
_SOON_S = 5.0


def find(request: Request, models: Mapping[str, ModelService], name: str) -> ModelService:
    """A model by name.

    Raises:
        Problem: 404, with the names there are.
    """
    model = models.get(name)
    if model is None:
        there = ", ".join(sorted(models)) or "none"
        raise Problem(
            404, "unknown_model", f"there is no model '{name[:80]}'", f"There are: {there}.", models=sorted(models)
        )
    facts_of(request.scope).model = name
    return model


async def describe_all(models: Mapping[str, ModelService]) -> list[ModelDescription | ModelState]:
    """What each says of itself, by name."""
    # One that goes while we look is not there.
    there = [model for name in sorted(models) if (model := models.get(name)) is not None]
    return await asyncio.gather(*(described_soon(model) for model in there))


async def described_soon(model: ModelService) -> ModelDescription | ModelState:
    """What a model says of itself; of one that does not, its name and that it is not ready."""
    try:
        async with asyncio.timeout(_SOON_S):
            described = await model.described()
            starting = {"ready": False, "state": "STARTING"}
            return described if await model.is_reached() else described.model_copy(update=starting)
    except (StriateError, TimeoutError):
        return ModelState(name=model.name, ready=False, state="UNREACHABLE")
