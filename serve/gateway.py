"""The Serve deployment in front of the models: the page, and everything that is not of one model alone."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from library.errors import BadPicture, StriateError
from serve.counted import Counted
from serve.gateway_api import gateway_app
from serve.logs import write_logs
from serve.loopback import keep_to_loopback
from serve.metrics import RequestMetrics
from serve.notes import Notes
from serve.service import Answer, Busy, ModelService, Timing
from serve.settings import ServeSettings

_INFER = re.compile("/v2/models/([^/]+)(?:/versions/1)?/infer")
_log = logging.getLogger("striate.serve")

#: The deployment of a model's application, by which it is known as one.
MODEL = "Model"
_LOOK_S = 2.0


class RemoteModel:
    """A model in an application of its own (`serve.service.ModelService`)."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._handle: DeploymentHandle[Any] | None = None

    @property
    def name(self) -> str:
        """Under which it is served."""
        return self._name

    async def described(self) -> dict[str, Any]:
        """What `GET /models` says of it."""
        return await self._ask("described")

    async def predict(
        self, pictures: Sequence[bytes], *, top_k: int, explain: bool = False
    ) -> tuple[list[Answer | BadPicture], Timing]:
        """Classify encoded pictures."""
        return await self._ask("predict", pictures, top_k=top_k, explain=explain)

    async def predict_pixels(
        self, pictures: Sequence[NDArray[np.uint8]], *, top_k: int
    ) -> tuple[list[Answer | BadPicture], Timing]:
        """Classify decoded pictures."""
        return await self._ask("predict_pixels", pictures, top_k=top_k)

    async def view(self, data: bytes) -> bytes:
        """PNG of what the model sees."""
        return await self._ask("view", data)

    async def drift(self) -> dict[str, Any] | None:
        """How far what was asked lately is from what was trained on."""
        return await self._ask("drift")

    async def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        try:
            if self._handle is None:
                self._handle = serve.get_app_handle(self._name)
            return await getattr(self._handle, method).remote(*arguments, **options)
        except RayTaskError as error:
            if isinstance(error.cause, StriateError):
                raise error.cause from None
            raise
        except (BackPressureError, DeploymentUnavailableError, RayActorError, RayServeException) as error:
            # Asked anew next time: an application of that name may have been made again.
            self._handle = None
            raise Busy(f"the model '{self._name}' does not answer at the moment") from error


class _Models(Mapping[str, ModelService]):
    """The applications that are models, as Serve knows them; looked up anew every few seconds."""

    def __init__(self) -> None:
        self._known: dict[str, RemoteModel] = {}

    def __getitem__(self, name: str) -> ModelService:
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._known))

    def __len__(self) -> int:
        return len(self._known)

    def look(self) -> None:
        applications = serve.status().applications
        names = {name for name, application in applications.items() if MODEL in application.deployments}
        self._known = {name: self._known.get(name) or RemoteModel(name) for name in sorted(names)}


class GatewayReplica:
    """What answers under /.

    Args:
        settings: of `ServeSettings`, as plain data.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        keep_to_loopback()
        self._settings = ServeSettings.model_validate(settings)
        write_logs(self._settings.access_log)
        self._notes, self._metrics = Notes(), RequestMetrics()
        self._models = _Models()
        self._models.look()
        self._looking = asyncio.get_running_loop().create_task(self._look_for_ever())

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = gateway_app(self._models, self._settings)
        app.add_middleware(Counted, told=self._count)
        return app

    def _count(self, path: str, status: int, seconds: float) -> None:
        """Questions to a model that come in here, by the Open Inference Protocol; others its own replica counts."""
        found = _INFER.fullmatch(path)
        if found is not None and found[1] in self._models:
            self._notes.add(self._metrics.answered, found[1], status, seconds)

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await asyncio.to_thread(self._models.look)
            except Exception:  # Ray raises many kinds while its parts are replaced; what is known stays
                _log.exception("the models that there are cannot be listed")


Gateway = serve.deployment(name="Gateway")(serve.ingress()(GatewayReplica))
