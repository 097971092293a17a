"""The arguments of `striate serve`: parsed, and checked before anything starts."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pydantic

from library import storage
from library.bundle.description import BundleRecord, checked_record
from library.errors import UsageError
from library.steps.plugins import Plugin, loaded
from serve.endpoint import is_loopback
from serve.http.keys import Keys
from serve.launch.deploy import GATEWAY, NAME, Application, ModelArgs
from serve.settings import ServeSettings


@dataclass(frozen=True)
class Replicas:
    """Number of replicas of an application, and what each needs."""

    application: str
    fewest: int
    most: int
    cpus: float
    gpus: float


@dataclass(frozen=True)
class ServePlan:
    """A server that can be started.

    Attributes:
        applications: the models' and the gateway's.
        bundles: URIs of the bundles, by the name each is served under.
        records: the bundles' descriptions, by the same names.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        explicit: which of `host` and `port` the user has set; the others are defaults.
        plugins: those that the replicas get.
    """

    applications: Sequence[Application]
    bundles: Mapping[str, str]
    records: Mapping[str, BundleRecord]
    host: str
    port: int
    explicit: frozenset[str] = frozenset()
    plugins: Sequence[Plugin] = ()

    @property
    def body_timeout_s(self) -> float:
        """The longest `body_timeout_s` of all applications."""
        return max(settings.body_timeout_s for settings in self._settings)

    @property
    def max_body_bytes(self) -> int:
        """The largest `max_body_bytes` of all applications."""
        return max(settings.max_body_bytes for settings in self._settings)

    @property
    def needs_key(self) -> bool:
        """Whether every application needs a key."""
        return all(settings.needs_key for settings in self._settings)

    @property
    def key_files(self) -> list[str]:
        """Paths of the key files that replicas read."""
        return [settings.keys_file for settings in self._settings if settings.keys_file is not None]

    @property
    def replicas(self) -> list[Replicas]:
        """Number and needs of the replicas, by application."""
        replicas: list[Replicas] = []
        for application in self.applications:
            deployment = application.deployment
            scaling, needs = deployment.autoscaling_config, deployment.ray_actor_options
            fewest = deployment.num_replicas if scaling is None else scaling.min_replicas
            most = deployment.num_replicas if scaling is None else scaling.max_replicas
            replicas.append(Replicas(application.name, fewest, most, needs.num_cpus, needs.num_gpus))
        return replicas

    @property
    def models(self) -> list[ModelArgs]:
        """Arguments of the models' applications."""
        return _models(self.applications)

    @property
    def _settings(self) -> list[ServeSettings]:
        return [application.args.settings for application in self.applications]


def parse_bundles(arguments: Sequence[str]) -> dict[str, str]:
    """Returns URIs of bundles by name, from arguments NAME=BUNDLE, or BUNDLE for the name of its folder.

    Raises:
        UsageError: for a name that cannot be a model's, a name given twice, or no argument.
    """
    if not arguments:
        raise UsageError("there is nothing to serve: name at least one bundle, as in `striate serve out/lenet`")
    bundles: dict[str, str] = {}
    for argument in arguments:
        first, equals, rest = argument.partition("=")
        # A later '=' belongs to the URI: s3://bucket/run=3/lenet.
        name, location = (first, rest) if equals and "/" not in first else ("", argument)
        uri = storage.normalize(location)
        name = name or PurePosixPath(uri).name
        if not re.fullmatch(NAME, name) or name == GATEWAY:
            raise UsageError(
                f"'{name}' is not a valid model name: use up to 64 letters from A to Z, digits, '.', '_' and '-', "
                f"not beginning with a sign, and not '{GATEWAY}'; for example {_suggest(name)}={location}"
            )
        if name in bundles:
            raise UsageError(
                f"two bundles would be served as '{name}': {bundles[name]} and {uri}; write NAME=BUNDLE for one of them"
            )
        bundles[name] = uri
    return bundles


def _suggest(name: str) -> str:
    """Returns a valid model name similar to `name`."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    allowed = re.sub("[^A-Za-z0-9._-]+", "-", plain).strip("._-")[:64]
    return allowed if re.fullmatch(NAME, allowed) and allowed != GATEWAY else "NAME"


def parse_replicas(text: str) -> tuple[int, int]:
    """Returns the fewest and the most replicas, from `2` or `1-4`."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    at_least, at_most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= at_least <= at_most:
        raise UsageError(f"--replicas '{text}' is not valid: write a number from 1, or a range such as 1-4")
    return at_least, at_most


def cpus_of_replica(option: float | None, replicas: int) -> float:
    """Returns the CPUs of each replica: the option's, else an equal share of this machine's."""
    if option is not None:
        return option
    cores = os.cpu_count() or 1
    return float(max(1, cores // replicas)) if replicas <= cores else round(cores / replicas, 2)


def environment_keys() -> tuple[str, ...]:
    """Returns the key lines in STRIATE_API_KEYS."""
    lines = re.split(r"[,\n]", os.environ.get("STRIATE_API_KEYS", ""))
    return tuple(line.strip() for line in lines if line.strip())


def with_keys(applications: Sequence[Application], keys: Sequence[str]) -> list[Application]:
    """Returns the same applications, which also accept `keys`."""
    if not keys:
        return list(applications)
    extended: list[Application] = []
    for application in applications:
        settings = application.args.settings
        settings = settings.model_copy(update={"keys": (*(settings.keys or ()), *keys)})
        extended.append(replace(application, args=application.args.model_copy(update={"settings": settings})))
    return extended


def make_settings(options: Mapping[str, Any], api_keys: str | None) -> ServeSettings:
    """Returns settings from the command line's options and STRIATE_API_KEYS.

    Raises:
        UsageError: for the first option whose value is not valid.
    """
    values = {name: value for name, value in options.items() if value is not None}
    if api_keys is not None:
        values["keys_file"] = str(Path(api_keys).absolute())
    if lines := environment_keys():
        values["keys"] = lines
    try:
        return ServeSettings.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"{option}: {first['msg']}") from None


def plan_serve(applications: Sequence[Application], *, host: str, port: int, explicit: Iterable[str] = ()) -> ServePlan:
    """Checks the applications and returns the plan to serve them, with the plugins that are loaded here.

    Args:
        applications: the models' and the gateway's.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        explicit: as in `ServePlan`.

    Raises:
        UsageError: for a missing bundle, a wrong key file, or an address that other machines reach without keys.
        StriateError: for a bundle whose files do not belong together.
    """
    bundles = {model.name: model.bundle for model in _models(applications)}
    for application in applications:
        check_exposure(host, application.args.settings)
    records = {name: checked_record(uri) for name, uri in bundles.items()}
    return ServePlan(applications, bundles, records, host, port, frozenset(explicit), loaded())


def check_exposure(host: str, settings: ServeSettings, here: bool = True) -> None:
    """Refuses an address that other machines reach where no keys are needed.

    Args:
        host: address to listen on.
        settings: with or without keys.
        here: whether to read the key file too, which must then be on this machine.

    Raises:
        UsageError: says how to make keys; also for a wrong key file.
    """
    if settings.needs_key:
        if here:
            Keys(settings.keys or (), settings.keys_file)
    elif not is_loopback(host):
        raise UsageError(
            f"--host {host} can be reached from other machines, and there are no API keys: anyone could use the server."
            " Make a key with `striate keys NAME --file keys.txt` and serve with --api-keys keys.txt, or leave --host "
            "out"
        )


def _models(applications: Sequence[Application]) -> list[ModelArgs]:
    return [application.args for application in applications if isinstance(application.args, ModelArgs)]
