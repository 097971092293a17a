"""Serve applications: one for each model, and the gateway in front of them.

The same applications go to a Serve that this command starts, and into Serve's config file for `serve deploy` and
KubeRay's serveConfigV2. In that file the functions `model` and `gateway` below are the `import_path`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic

from library.steps.plugins import Plugin
from serve.http.service import MODEL_DEPLOYMENT
from serve.settings import ServeSettings

# Ray is imported within functions: where this command starts Ray, Ray's environment variables must be set before.

#: Name of the gateway's application; no model may have it.
GATEWAY = "striate"
#: Pattern of a model's name: it is part of URLs, and of the names of Ray's metrics, which are ASCII.
NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
#: Seconds that a replica has to stop, beyond its longest request.
_MARGIN_S = 5.0
MODEL_PATH, GATEWAY_PATH = "serve.launch.deploy:model", "serve.launch.deploy:gateway"


class ModelArgs(pydantic.BaseModel):
    """Arguments of a model's application in Serve's config file.

    Attributes:
        name: the name that the model is served under.
        bundle: URI of its bundle.
        max_queued: pictures in progress in a replica; more are refused with 503.
        settings: everything else.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: str = pydantic.Field(pattern=f"^{NAME}$")
    bundle: str
    max_queued: int = pydantic.Field(128, ge=1)
    settings: ServeSettings = ServeSettings()


class GatewayArgs(pydantic.BaseModel):
    """Arguments of the gateway's application in Serve's config file."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    settings: ServeSettings = ServeSettings()


class ActorOptions(pydantic.BaseModel):
    """Resources of a replica."""

    model_config = pydantic.ConfigDict(extra="allow")

    num_cpus: float = pydantic.Field(default=1.0, ge=0)
    num_gpus: float = pydantic.Field(default=0.0, ge=0)


class Autoscaling(pydantic.BaseModel):
    """Fewest and most replicas."""

    model_config = pydantic.ConfigDict(extra="allow")

    min_replicas: int = pydantic.Field(default=1, ge=0)
    max_replicas: int = pydantic.Field(ge=1)


class Deployment(pydantic.BaseModel):
    """A deployment in Serve's config file; options without a field here pass unchanged, and Serve checks them."""

    model_config = pydantic.ConfigDict(extra="allow")

    name: str
    num_replicas: int = pydantic.Field(default=1, ge=1)
    ray_actor_options: ActorOptions = ActorOptions()
    autoscaling_config: Autoscaling | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name, as Serve's `Deployment.options` takes it."""
        return self.model_dump(exclude={"name"}, exclude_unset=True)


@dataclass(frozen=True)
class Application:
    """An application of Serve: a model, or the gateway.

    Attributes:
        name: the name that Serve knows it by.
        route_prefix: path under which it answers.
        args: its arguments, which say which of the two it is.
        deployment: its only deployment.
    """

    name: str
    route_prefix: str
    args: ModelArgs | GatewayArgs
    deployment: Deployment

    def to_dict(self) -> dict[str, Any]:
        """Returns the application as in Serve's config file; settings that have their default are left out."""
        settings = self.args.settings.model_dump(mode="json", exclude_defaults=True)
        return {
            "name": self.name,
            "route_prefix": self.route_prefix,
            "import_path": MODEL_PATH if isinstance(self.args, ModelArgs) else GATEWAY_PATH,
            "args": self.args.model_dump(mode="json", exclude={"settings"}) | {"settings": settings},
            "deployments": [{"name": self.deployment.name, **self.deployment.options}],
        }


@dataclass(frozen=True)
class Scale:
    """Replicas and resources of a model.

    Attributes:
        replicas: fewest and most; Serve adds and removes replicas by the requests in progress.
        cpus: of a replica.
        gpus: of a replica.
        max_queued: pictures in progress in a replica; more are refused with 503.
    """

    replicas: tuple[int, int] = (1, 1)
    cpus: float = 1.0
    gpus: float = 0.0
    max_queued: int = 128


def model(args: dict[str, Any]) -> Any:
    """Returns the Serve application of one model, from `ModelArgs`."""
    return _bind_model(ModelArgs.model_validate(args), {}, ())


def gateway(args: dict[str, Any]) -> Any:
    """Returns the Serve application of the gateway, from `GatewayArgs`."""
    return _bind_gateway(GatewayArgs.model_validate(args), {}, ())


def applications(models: Mapping[str, str], settings: ServeSettings, scale: Scale) -> list[Application]:
    """Returns the applications of a server: its models, then the gateway.

    Args:
        models: URIs of bundles by name.
        settings: of all applications.
        scale: of each model.
    """
    return [
        *(
            Application(
                name,
                f"/models/{name}",
                ModelArgs(name=name, bundle=uri, max_queued=scale.max_queued, settings=settings),
                _model_deployment(scale, settings),
            )
            for name, uri in models.items()
        ),
        Application(GATEWAY, "/", GatewayArgs(settings=settings), _gateway_deployment(scale)),
    ]


def _model_deployment(scale: Scale, settings: ServeSettings) -> Deployment:
    at_least, at_most = scale.replicas
    options: dict[str, Any] = {
        "name": MODEL_DEPLOYMENT,
        "ray_actor_options": {"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        # The replica itself refuses, by pictures and with a reason; Serve refuses only where even that is too slow.
        "max_ongoing_requests": 2 * scale.max_queued,
        "max_queued_requests": 2 * scale.max_queued,
        # The new version runs before the old one ends.
        "max_surge_percent": 100,
        "health_check_period_s": 2.0,
        # A request that has begun is answered.
        "graceful_shutdown_timeout_s": settings.body_timeout_s + settings.timeout_s + _MARGIN_S,
    }
    if at_least == at_most:
        return Deployment.model_validate(options | {"num_replicas": at_least})
    autoscaling = {
        "min_replicas": at_least,
        "max_replicas": at_most,
        "target_ongoing_requests": max(1, scale.max_queued // 4),
    }
    return Deployment.model_validate(options | {"autoscaling_config": autoscaling})


def _gateway_deployment(scale: Scale) -> Deployment:
    options = {
        "name": "Gateway",
        "ray_actor_options": {"num_cpus": 0},
        # Two where each model has two, so that the loss of one node leaves a gateway too.
        "num_replicas": min(2, scale.replicas[0]),
        "max_ongoing_requests": 256,
        "max_surge_percent": 100,
        "health_check_period_s": 2.0,
    }
    return Deployment.model_validate(options)


def targets(applications: Iterable[Application], plugins: Sequence[Plugin]) -> list[Any]:
    """Returns the applications for `serve.run_many`; their replicas get the plugins."""
    from ray import serve

    return [
        serve.RunTarget(_bind(application, plugins), name=application.name, route_prefix=application.route_prefix)
        for application in applications
    ]


def _bind(application: Application, plugins: Sequence[Plugin]) -> Any:
    args, options = application.args, application.deployment.options
    if isinstance(args, ModelArgs):
        return _bind_model(args, options, plugins)
    return _bind_gateway(args, options, plugins)


def _bind_model(args: ModelArgs, options: Mapping[str, Any], plugins: Sequence[Plugin]) -> Any:
    from serve.replica.replica import Model

    settings = args.settings.model_dump(mode="json")
    return Model.options(**options).bind(args.name, args.bundle, settings, args.max_queued, plugins)


def _bind_gateway(args: GatewayArgs, options: Mapping[str, Any], plugins: Sequence[Plugin]) -> Any:
    from serve.gateway.gateway import Gateway

    return Gateway.options(**options).bind(args.settings.model_dump(mode="json"), plugins)
