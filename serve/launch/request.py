"""What `striate serve` was asked for, checked before anything starts."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pydantic

from library import storage
from library.bundle.description import BundleRecord, checked_record
from library.errors import UsageError
from serve.launch.deploy import GATEWAY, MODEL_PATH, NAME, Deployment, ModelArgs
from serve.launch.exposure import check_reach
from serve.settings import ServeSettings


@dataclass(frozen=True)
class Replicas:
    """How many of an application there may be, and what each takes."""

    application: str
    fewest: int
    most: int
    cpus: float
    gpus: float


@dataclass(frozen=True)
class ServePlan:
    """A server that can be started.

    Attributes:
        applications: as in Serve's config file, models first.
        bundles: where they lie, by the name each is served under.
        records: what the bundles say of themselves, by the same names.
        host: address to listen on.
        port: likewise; 0 takes a free one.
        asked: those of `host` and `port` that were asked for; the others are defaults.
    """

    applications: Sequence[Mapping[str, Any]]
    bundles: Mapping[str, str]
    records: Mapping[str, BundleRecord]
    host: str
    port: int
    asked: frozenset[str] = frozenset()

    @property
    def body_timeout_s(self) -> float:
        """The longest of all applications."""
        return max(settings.body_timeout_s for settings in _settings(self.applications))

    @property
    def max_body_bytes(self) -> int:
        """The largest of all applications."""
        return max(settings.max_body_bytes for settings in _settings(self.applications))

    @property
    def needs_key(self) -> bool:
        """Whether every application asks for keys."""
        return all(settings.needs_key for settings in _settings(self.applications))

    @property
    def key_files(self) -> list[str]:
        """Files of keys that replicas read."""
        return [settings.keys_file for settings in _settings(self.applications) if settings.keys_file is not None]

    @property
    def replicas(self) -> list[Replicas]:
        """Of each application."""
        found: list[Replicas] = []
        for application in self.applications:
            for deployment in map(Deployment.model_validate, application["deployments"]):
                scaled, takes = deployment.autoscaling_config, deployment.ray_actor_options
                fewest = deployment.num_replicas if scaled is None else scaled.min_replicas
                most = deployment.num_replicas if scaled is None else scaled.max_replicas
                found.append(Replicas(application["name"], fewest, most, takes.num_cpus, takes.num_gpus))
        return found


def named_bundles(arguments: Sequence[str]) -> dict[str, str]:
    """Bundles by name, from NAME=BUNDLE or a BUNDLE that is named as its folder.

    Raises:
        UsageError: for a name that no address can have, one that is there twice, or none at all.
    """
    if not arguments:
        raise UsageError("nothing to serve: name at least one bundle, as in `striate serve out/lenet`")
    named: dict[str, str] = {}
    for argument in arguments:
        given, equals, rest = argument.partition("=")
        # An '=' further on belongs to the address: s3://bucket/run=3/lenet.
        name, place = (given, rest) if equals and "/" not in given else ("", argument)
        uri = storage.normalize(place)
        name = name or PurePosixPath(uri).name
        if not re.fullmatch(NAME, name) or name == GATEWAY:
            raise UsageError(
                f"'{name}' cannot be a model's name, which has letters from A to Z, digits, '.', '_' and '-', "
                f"64 at most, and is not '{GATEWAY}'; write {_suggested(name)}={place}"
            )
        if name in named:
            raise UsageError(f"two bundles would be served as '{name}': {named[name]} and {uri}; write NAME=BUNDLE")
        named[name] = uri
    return named


def _suggested(name: str) -> str:
    """A name much like one that cannot be a model's."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    allowed = re.sub("[^A-Za-z0-9._-]+", "-", plain).strip("._-")[:64]
    return allowed if re.fullmatch(NAME, allowed) and allowed != GATEWAY else "NAME"


def read_replicas(text: str) -> tuple[int, int]:
    """Fewest and most replicas, from `2` or `1-4`."""
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    at_least, at_most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= at_least <= at_most:
        raise UsageError(f"--replicas '{text}': write a number from 1, or a range such as 1-4")
    return at_least, at_most


def share_of_cpus(wanted: float | None, replicas: int) -> float:
    """CPUs of a replica: `wanted`, else this machine's shared between so many."""
    if wanted is not None:
        return wanted
    cores = os.cpu_count() or 1
    return float(max(1, cores // replicas)) if replicas <= cores else round(cores / replicas, 2)


def environment_keys() -> tuple[str, ...]:
    """Lines of keys in STRIATE_API_KEYS."""
    lines = re.split(r"[,\n]", os.environ.get("STRIATE_API_KEYS", ""))
    return tuple(line.strip() for line in lines if line.strip())


def with_keys(applications: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """The same applications, which let in who has one of `keys` as well."""
    made: list[dict[str, Any]] = []
    for application in applications:
        settings: Mapping[str, Any] = application["args"].get("settings", {})
        more = {"keys": [*(settings.get("keys") or ()), *keys]} if keys else {}
        made.append({**application, "args": {**application["args"], "settings": {**settings, **more}}})
    return made


def make_settings(options: Mapping[str, Any], api_keys: str | None) -> ServeSettings:
    """Settings from the command line's options and STRIATE_API_KEYS.

    Raises:
        UsageError: for values that make no sense, saying which.
    """
    told = {name: value for name, value in options.items() if value is not None}
    if api_keys is not None:
        told["keys_file"] = str(Path(api_keys).absolute())
    if lines := environment_keys():
        told["keys"] = lines
    try:
        return ServeSettings.model_validate(told)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"{option}: {first['msg']}") from None


def plan_serve(
    applications: Sequence[Mapping[str, Any]], *, host: str, port: int, asked: Iterable[str] = ()
) -> ServePlan:
    """Check what is to be served.

    Args:
        applications: as in Serve's config file.
        host: address to listen on.
        port: likewise; 0 takes a free one.
        asked: of `ServePlan`.

    Raises:
        UsageError: for a bundle that is not there, a wrong key file, or an address that others reach without keys.
        StriateError: for a bundle whose files do not belong together, saying which.
    """
    models = [ModelArgs.model_validate(made["args"]) for made in applications if made["import_path"] == MODEL_PATH]
    bundles = {model.name: model.bundle for model in models}
    for settings in _settings(applications):
        check_reach(host, settings)
    records = {name: checked_record(uri) for name, uri in bundles.items()}
    return ServePlan(applications, bundles, records, host, port, frozenset(asked))


def _settings(applications: Sequence[Mapping[str, Any]]) -> list[ServeSettings]:
    return [ServeSettings.model_validate(made["args"].get("settings", {})) for made in applications]
