"""From what was asked for to Ray Serve: one application a model, and the gateway in front of them.

The same plain data goes to a Serve that this command starts and into Serve's config file, which `serve deploy` and
KubeRay's serveConfigV2 take. There the two functions below are what `import_path` names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pydantic

from serve.settings import ServeSettings

# Ray is imported inside: where it starts, its switches must be set first.

#: Name of the gateway's application; no model may have it.
GATEWAY = "striate"
#: What a model may be called: it stands in addresses, and in the names of Ray's metrics, which are ASCII.
NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
#: Beyond the longest request, in seconds.
_MARGIN_S = 5.0
MODEL_PATH, GATEWAY_PATH = "serve.launch.deploy:model", "serve.launch.deploy:gateway"


class ModelArgs(pydantic.BaseModel):
    """Arguments of a model's application in Serve's config file.

    Attributes:
        name: under which it is served.
        bundle: its folder or s3://.
        max_queued: pictures under way at once in a replica; more are refused.
        settings: the rest.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: str = pydantic.Field(pattern=f"^{NAME}$")
    bundle: str
    max_queued: int = pydantic.Field(128, ge=1)
    settings: ServeSettings = ServeSettings()


class GatewayArgs(pydantic.BaseModel):
    """Arguments of the gateway's application."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    settings: ServeSettings = ServeSettings()


class ActorOptions(pydantic.BaseModel):
    """What a replica takes."""

    num_cpus: float = pydantic.Field(default=1.0, ge=0)
    num_gpus: float = pydantic.Field(default=0.0, ge=0)


class Autoscaling(pydantic.BaseModel):
    """Fewest and most replicas."""

    min_replicas: int = pydantic.Field(default=1, ge=0)
    max_replicas: int = pydantic.Field(ge=1)


class Deployment(pydantic.BaseModel):
    """What we read of a deployment in Serve's config file; Serve checks the rest."""

    name: str
    num_replicas: int = pydantic.Field(default=1, ge=1)
    ray_actor_options: ActorOptions = ActorOptions()
    autoscaling_config: Autoscaling | None = None


def model(args: dict[str, Any]) -> Any:
    """The application of one model, from `ModelArgs`."""
    return _model(args, {})


def gateway(args: dict[str, Any]) -> Any:
    """The application in front, from `GatewayArgs`."""
    return _gateway(args, {})


@dataclass(frozen=True)
class Scale:
    """How much a model gets.

    Attributes:
        replicas: fewest and most; Serve adds and takes away by requests under way.
        cpus: of a replica.
        gpus: likewise.
        max_queued: pictures under way at once in a replica; more are refused.
    """

    replicas: tuple[int, int] = (1, 1)
    cpus: float = 1.0
    gpus: float = 0.0
    max_queued: int = 128


def model_options(scale: Scale, settings: ServeSettings) -> dict[str, Any]:
    """Of a model's deployment, as in Serve's config file."""
    at_least, at_most = scale.replicas
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        # The replica refuses by itself, by pictures and with a reason; Serve only where even that cannot keep up.
        "max_ongoing_requests": 2 * scale.max_queued,
        "max_queued_requests": 2 * scale.max_queued,
        # The new version runs before the old one ends.
        "max_surge_percent": 100,
        "health_check_period_s": 2.0,
        # A request that has begun is answered.
        "graceful_shutdown_timeout_s": settings.body_timeout_s + settings.timeout_s + _MARGIN_S,
    }
    if at_least == at_most:
        return options | {"num_replicas": at_least}
    autoscaling = {
        "min_replicas": at_least,
        "max_replicas": at_most,
        "target_ongoing_requests": max(1, scale.max_queued // 4),
    }
    return options | {"autoscaling_config": autoscaling}


def gateway_options(scale: Scale) -> dict[str, Any]:
    """Of the gateway's deployment, as in Serve's config file; where models stand twice, it does too."""
    return {
        "ray_actor_options": {"num_cpus": 0},
        "num_replicas": min(2, scale.replicas[0]),
        "max_ongoing_requests": 256,
        "max_surge_percent": 100,
        "health_check_period_s": 2.0,
    }


def applications(models: Mapping[str, str], settings: ServeSettings, scale: Scale) -> list[dict[str, Any]]:
    """The applications, as in Serve's config file.

    Args:
        models: URIs of bundles by name.
        settings: of all of them.
        scale: of each model.
    """
    told = settings.model_dump(mode="json", exclude_defaults=True)
    made = [
        _application(
            name,
            f"/models/{name}",
            MODEL_PATH,
            {"name": name, "bundle": uri, "max_queued": scale.max_queued, "settings": told},
            {"name": "Model", **model_options(scale, settings)},
        )
        for name, uri in models.items()
    ]
    in_front = {"name": "Gateway", **gateway_options(scale)}
    return [*made, _application(GATEWAY, "/", GATEWAY_PATH, {"settings": told}, in_front)]


def targets(applications: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The same applications for `serve.run_many`."""
    from ray import serve

    makers = {MODEL_PATH: _model, GATEWAY_PATH: _gateway}
    return [
        serve.RunTarget(
            makers[made["import_path"]](made["args"], _without(made["deployments"][0], "name")),
            name=made["name"],
            route_prefix=made["route_prefix"],
        )
        for made in applications
    ]


def _model(args: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    from serve.replica.replica import Model

    told = ModelArgs.model_validate(args)
    bound = (told.name, told.bundle, told.settings.model_dump(mode="json"), told.max_queued)
    return Model.options(**options).bind(*bound)


def _gateway(args: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    from serve.gateway.gateway import Gateway

    return Gateway.options(**options).bind(GatewayArgs.model_validate(args).settings.model_dump(mode="json"))


def _application(name: str, prefix: str, path: str, args: dict[str, Any], deployment: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "route_prefix": prefix,
        "import_path": path,
        "args": args,
        "deployments": [deployment],
    }


def _without(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name != key}
