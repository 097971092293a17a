"""The Serve deployment in front of the models: the page, and all routes that are not about one model alone."""

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
from library.steps.plugins import Plugin, install, load_installed
from serve.endpoint import answers, local_proxy
from serve.gateway.routes import gateway_app
from serve.http.logs import write_logs
from serve.http.request_metrics import BackgroundCalls, CountRequests, RequestMetrics
from serve.http.schemas import DriftReport, InsidePart, ModelDescription
from serve.http.service import MODEL_DEPLOYMENT, Answers, Busy, ModelService
from serve.settings import ServeSettings

_MODEL_PATH = re.compile("/v2/models/([^/]+)(?:/versions/1)?/infer|/models/([^/]+)(?:/.*)?")
_log = logging.getLogger("striate.serve")

_REFRESH_S = 2.0
#: Connections on which a model must answer, one after the other, before it counts as reachable.
_CONNECTIONS = 5


class RemoteModel:
    """A model in an application of its own (`serve.http.service.ModelService`).

    Args:
        name: the name it is served under.
        proxy: host and port where this node's proxy listens.
    """

    def __init__(self, name: str, proxy: tuple[str, int]) -> None:
        self._name, self._proxy = name, proxy
        self._handle: DeploymentHandle[Any] | None = None
        self._was_reached = False

    @property
    def name(self) -> str:
        """The name it is served under."""
        return self._name

    async def describe(self) -> ModelDescription:
        """Describes it for `GET /models`."""
        try:
            return await self._ask("describe")
        except Busy:
            self._was_reached = False
            raise

    async def drift(self) -> DriftReport | None:
        """Compares recent requests with the training data; None where drift is not measured."""
        return await self._ask("drift")

    async def is_reachable(self) -> bool:
        """Whether it answers through the proxy too, which learns of a new model later than this process does.

        A model that has answered is probed again only after it was lost: a proxy that refuses for a moment, under
        overload, does not make a model unreachable.
        """
        # While a new HAProxy that knows the replica replaces the old one, the old one still accepts some connections.
        for _ in range(0 if self._was_reached else _CONNECTIONS):
            if not await answers(*self._proxy, f"/models/{self._name}"):
                return False
        self._was_reached = True
        return True

    async def predict(self, pictures: Sequence[bytes], *, top_k: int, explain: bool = False) -> Answers:
        """Classifies encoded pictures."""
        return await self._ask("predict", pictures, top_k=top_k, explain=explain)

    async def predict_pixels(self, pictures: Sequence[NDArray[np.uint8]], *, top_k: int) -> Answers:
        """Classifies decoded pictures."""
        return await self._ask("predict_pixels", pictures, top_k=top_k)

    async def inside(self, data: bytes, part: InsidePart, class_name: str | None) -> bytes:
        """Draws, as PNG, what happens inside the model for a picture."""
        return await self._ask("inside", data, part, class_name)

    async def view(self, data: bytes) -> bytes:
        """Returns, as PNG, what the model sees of a picture."""
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
            # The next call gets a new handle: an application of that name may have been deployed again.
            self._handle = None
            raise Busy(f"the model '{self._name}' does not answer at the moment") from error


class _Models(Mapping[str, ModelService]):
    """The applications of models that Serve runs, by name."""

    def __init__(self) -> None:
        self._known: dict[str, RemoteModel] = {}

    def __getitem__(self, name: str) -> ModelService:
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._known))

    def __len__(self) -> int:
        return len(self._known)

    def refresh(self) -> None:
        """Asks Serve for its applications."""
        applications = serve.status().applications
        # An application without deployments is still being built and may be a model: /readyz counts it as not ready.
        names = {
            name
            for name, application in applications.items()
            if MODEL_DEPLOYMENT in application.deployments
            or (not application.deployments and application.status == ApplicationStatus.DEPLOYING)
        }
        if names - self._known.keys():
            proxy = local_proxy()
            self._known |= {name: RemoteModel(name, proxy) for name in names - self._known.keys()}
        self._known = {name: self._known[name] for name in sorted(names)}


class GatewayReplica:
    """Answers under the route prefix /.

    Args:
        settings: `ServeSettings` as plain data.
        plugins: those that the command line named; those of installed packages are loaded too.
    """

    def __init__(self, settings: Mapping[str, Any], plugins: Sequence[Plugin]) -> None:
        keep_replica_on_loopback()
        self._settings = ServeSettings.model_validate(settings)
        write_logs(self._settings.access_log)
        load_installed()
        install(plugins)
        self._background, self._metrics = BackgroundCalls(), RequestMetrics()
        self._models = _Models()
        self._models.refresh()
        self._refreshing = asyncio.get_running_loop().create_task(self._refresh_for_ever())

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = gateway_app(self._models, self._settings)
        app.add_middleware(CountRequests, report=self._count)
        return app

    def _count(self, path: str, status: int, seconds: float) -> None:
        """Counts requests for a model that are answered here; the model's own replica counts the others."""
        match = _MODEL_PATH.fullmatch(path)
        name = match and (match[1] or match[2])
        if name and name in self._models:
            self._background.add(self._metrics.answered, name, status, seconds)

    async def _refresh_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_S)
            try:
                await asyncio.to_thread(self._models.refresh)
            except Exception:  # Ray raises many kinds while its parts are replaced; the last list stays
                _log.exception("the list of models cannot be refreshed")


Gateway = serve.deployment(name="Gateway")(serve.ingress()(GatewayReplica))
