"""Serve's own config file: written by `--write-config`; read by `--config`, by `serve deploy` and by KubeRay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic
import yaml

from library import storage
from library.errors import UsageError
from serve.launch.deploy import GATEWAY_PATH, MODEL_PATH, Application, Deployment, GatewayArgs, ModelArgs

_MAX_BYTES = 2**20
_HEADER = "# Written by `striate serve --write-config`: for `striate serve --config`, `serve deploy`, serveConfigV2.\n"


class HttpOptions(pydantic.BaseModel):
    """Where Serve listens; other HTTP options in the file are ignored here."""

    host: str = "127.0.0.1"
    port: int = pydantic.Field(default=8000, ge=0, le=65535)


@dataclass(frozen=True)
class ServeConfig:
    """The parts of a config file that `striate serve` uses."""

    applications: Sequence[Application]
    http: HttpOptions


def config_of(applications: Sequence[Application], host: str, port: int) -> dict[str, Any]:
    """Returns the document: `applications` behind proxies that listen on `host` and `port`."""
    return {
        # A proxy on every node with replicas: a node that is ready can answer.
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        # Our own access log has more facts, and never what a client sent.
        "logging_config": {"enable_access_log": False},
        "applications": [application.to_dict() for application in applications],
    }


def write_config(uri: str, config: Mapping[str, Any]) -> None:
    """Writes the document to a file, on this machine or in object storage."""
    text = _HEADER + yaml.safe_dump(dict(config), sort_keys=False, width=110)
    storage.write_bytes(storage.normalize(uri), text.encode())


def read_config(uri: str) -> ServeConfig:
    """Reads a document that `write_config` has written, possibly edited.

    Raises:
        UsageError: when the file is missing or not valid, or has an application that is not striate's.
    """
    path = storage.normalize(uri)
    if not storage.exists(path):
        raise UsageError(f"there is no file {uri}; `striate serve BUNDLE --write-config {uri}` writes one")
    try:
        config: Any = yaml.safe_load(storage.read_bytes(path, max_bytes=_MAX_BYTES))
        http = HttpOptions.model_validate(config.get("http_options", {}))
        applications = [_read_application(document, uri) for document in config["applications"]]
    except yaml.YAMLError as error:
        raise UsageError(f"{uri} is not YAML: {error}") from None
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"{uri}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{uri} is not a config file of Serve: {type(error).__name__} {error}") from None
    if not any(isinstance(application.args, ModelArgs) for application in applications):
        raise UsageError(f"{uri} has no model: add an application with the import_path {MODEL_PATH}")
    return ServeConfig(applications, http)


class _Document(pydantic.BaseModel):
    """An application in the file."""

    name: str
    route_prefix: str
    import_path: str
    args: dict[str, Any] = pydantic.Field(default_factory=dict)
    deployments: list[Deployment] = pydantic.Field(min_length=1, max_length=1)


def _read_application(document: Any, uri: str) -> Application:
    path = document["import_path"]
    if path not in (MODEL_PATH, GATEWAY_PATH):
        raise UsageError(
            f"{uri}: the import_path '{path}' is not striate's ({MODEL_PATH}, {GATEWAY_PATH}); use `serve deploy` for "
            "other applications"
        )
    read = _Document.model_validate(document)
    args = (ModelArgs if path == MODEL_PATH else GatewayArgs).model_validate(read.args)
    if isinstance(args, ModelArgs) and (args.name, f"/models/{args.name}") != (read.name, read.route_prefix):
        raise UsageError(
            f"{uri}: the application '{read.name}' must have the model's name '{args.name}' and the route_prefix "
            f"/models/{args.name}"
        )
    return Application(read.name, read.route_prefix, args, read.deployments[0])
