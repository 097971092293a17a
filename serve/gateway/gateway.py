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
from ray.serve.schema import ApplicationStatus

from cluster.ray_internals import keep_replica_on_loopback
from library.errors import StriateError
from serve.gateway.routes import gateway_app
from serve.http.counting import Counted
from serve.http.deferred import Notes
from serve.http.logs import write_logs
from serve.http.request_metrics import RequestMetrics
from serve.http.schemas import DriftReport, ModelDescription
from serve.http.service import Answers, Busy, ModelService
from serve.launch.exposure import answers
from serve.launch.on_cluster import proxy_here
from serve.settings import ServeSettings

_MODEL_PATH = re.compile("/v2/models/([^/]+)(?:/versions/1)?/infer|/models/([^/]+)(?:/.*)?")
_log = logging.getLogger("striate.serve")

#: The deployment of a model's application, by which it is known as one.
MODEL = "Model"
_LOOK_S = 2.0
#: Connections on which a model has to answer, one after the other.
_CONNECTIONS = 5


class RemoteModel:
    """A model in an application of its own (`serve.http.service.ModelService`).

    Args:
        name: under which it is served.
        door: where this node's proxy listens, host and port.
    """

    def __init__(self, name: str, door: tuple[str, int]) -> None:
        self._name, self._door = name, door
        self._handle: DeploymentHandle[Any] | None = None
        self._was_reached = False

    @property
    def name(self) -> str:
        """Under which it is served."""
        return self._name

    async def described(self) -> ModelDescription:
        """Describes it for `GET /models`."""
        try:
            return await self._ask("described")
        except Busy:
            self._was_reached = False
            raise

    async def drift(self) -> DriftReport | None:
        """Compares what was asked lately with what was trained on; None where that is not measured."""
        return await self._ask("drift")

    async def is_reached(self) -> bool:
        """Whether it answers through the proxy too, of which Serve tells a handle first.

        A model that has answered there is asked again only after it was gone: a proxy that refuses for a moment,
        because there is too much to do, takes no model out.
        """
        # While HAProxy is replaced by one that knows the replica, the old one still takes some connections.
        for _ in range(0 if self._was_reached else _CONNECTIONS):
            if not await answers(*self._door, f"/models/{self._name}"):
                return False
        self._was_reached = True
        return True

    async def predict(self, pictures: Sequence[bytes], *, top_k: int, explain: bool = False) -> Answers:
        """Classify encoded pictures."""
        return await self._ask("predict", pictures, top_k=top_k, explain=explain)

    async def predict_pixels(self, pictures: Sequence[NDArray[np.uint8]], *, top_k: int) -> Answers:
        """Classify decoded pictures."""
        return await self._ask("predict_pixels", pictures, top_k=top_k)

    async def view(self, data: bytes) -> bytes:
        """PNG of what the model sees."""
        return await self._ask("view", data)

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
        # What is being built may become a model: until that is known, not all models answer.
        names = {
            name
            for name, application in applications.items()
            if MODEL in application.deployments
            or (not application.deployments and application.status == ApplicationStatus.DEPLOYING)
        }
        if names - self._known.keys():
            door = proxy_here()
            self._known |= {name: RemoteModel(name, door) for name in names - self._known.keys()}
        self._known = {name: self._known[name] for name in sorted(names)}


class GatewayReplica:
    """What answers under /.

    Args:
        settings: of `ServeSettings`, as plain data.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        keep_replica_on_loopback()
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
        """Requests for a model that are answered here; its own replica counts the others."""
        found = _MODEL_PATH.fullmatch(path)
        name = found and (found[1] or found[2])
        if name and name in self._models:
            self._notes.add(self._metrics.answered, name, status, seconds)

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await asyncio.to_thread(self._models.look)
            except Exception:  # Ray raises many kinds while its parts are replaced; what is known stays
                _log.exception("the models that there are cannot be listed")


Gateway = serve.deployment(name="Gateway")(serve.ingress()(GatewayReplica))
