"""Serve's own config file: written by `--write-config`; read by `--config`, by `serve deploy` and by KubeRay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pydantic
import yaml

from library import storage
from library.errors import UsageError
from serve.launch.deploy import GATEWAY_PATH, MODEL_PATH, Deployment, GatewayArgs, ModelArgs

_MAX_BYTES = 2**20
_HEADER = "# Written by `striate serve --write-config`: for `striate serve --config`, `serve deploy`, serveConfigV2.\n"


def config_of(applications: Sequence[Mapping[str, Any]], host: str, port: int) -> dict[str, Any]:
    """The document: `applications` behind proxies that listen on `host` and `port`."""
    return {
        # A proxy on every node with replicas: a node that is ready can answer.
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        # Our own access log says more, and never what was sent.
        "logging_config": {"enable_access_log": False},
        "applications": list(applications),
    }


def write_config(uri: str, config: Mapping[str, Any]) -> None:
    """Write the document to a file, here or in a store."""
    text = _HEADER + yaml.safe_dump(dict(config), sort_keys=False, width=110)
    storage.write_bytes(storage.normalize(uri), text.encode())


def read_config(uri: str) -> dict[str, Any]:
    """A document that `write_config` has written, also when it was edited.

    Raises:
        UsageError: when it is none, or serves something that is not ours; `serve deploy` takes any.
    """
    path = storage.normalize(uri)
    if not storage.exists(path):
        raise UsageError(f"there is no file {uri}; `striate serve BUNDLE --write-config {uri}` makes one")
    try:
        config: Any = yaml.safe_load(storage.read_bytes(path, max_bytes=_MAX_BYTES))
        _check(config, uri)
    except yaml.YAMLError as error:
        raise UsageError(f"{uri} is not YAML: {error}") from None
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"{uri}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{uri} is no config file of Serve: {type(error).__name__} {error}") from None
    return config


class HttpOptions(pydantic.BaseModel):
    """Where Serve listens, of what its config file says of that."""

    host: str = "127.0.0.1"
    port: int = pydantic.Field(default=8000, ge=0, le=65535)


class _Application(pydantic.BaseModel):
    name: str
    route_prefix: str
    import_path: str
    deployments: list[Deployment] = pydantic.Field(min_length=1, max_length=1)


def _check(config: Any, uri: str) -> None:
    HttpOptions.model_validate(config.get("http_options", {}))
    arguments = {MODEL_PATH: ModelArgs, GATEWAY_PATH: GatewayArgs}
    for made in config["applications"]:
        path = made["import_path"]
        if path not in arguments:
            raise UsageError(f"{uri}: '{path}' is not ours ({', '.join(arguments)}); `serve deploy` takes any")
        _Application.model_validate(made)
        arguments[path].model_validate(made.setdefault("args", {}))
        if path == MODEL_PATH and (made["args"]["name"], f"/models/{made['args']['name']}") != (
            made["name"],
            made["route_prefix"],
        ):
            raise UsageError(f"{uri}: the application '{made['name']}' must have its model's name and /models/NAME")
    if not any(made["import_path"] == MODEL_PATH for made in config["applications"]):
        raise UsageError(f"{uri} serves no model: an application with import_path {MODEL_PATH} is one")
