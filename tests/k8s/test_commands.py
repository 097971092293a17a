"""The commands of the jobs and the applications of the service exist in Striate, with these options."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex

import pytest
import typer.main
import yaml
from ray.serve.schema import ServeDeploySchema

from jobs.cli.app import app
from library.pipeline import Pipeline
from library.recipe import Recipe
from serve.launch.config_file import config_of
from serve.launch.deploy import Scale, applications
from serve.settings import ServeSettings
from tests.k8s.manifests import ENVIRONMENTS, ROOT, of_kind, ray_jobs

_COMMANDS = [(environment, name) for environment in ENVIRONMENTS for name in ray_jobs(environment)]


def _words(environment: str, name: str) -> list[str]:
    return shlex.split(ray_jobs(environment)[name]["entrypoint"])


def _options(words: list[str], option: str) -> list[str]:
    return [value for word, value in itertools.pairwise(words) if word == option]


@pytest.mark.parametrize(("environment", "name"), _COMMANDS)
def test_an_entry_point_is_a_valid_striate_command(environment: str, name: str) -> None:
    program, command, *arguments = _words(environment, name)
    assert program == "striate"
    group = typer.main.get_command(app)
    click_command = group.commands[command]  # type: ignore[attr-defined]  # typer's own type is a plain command
    # Parses the arguments and refuses unknown or missing ones; runs nothing.
    click_command.make_context(command, arguments)


@pytest.mark.parametrize(("environment", "name"), _COMMANDS)
def test_an_entry_point_has_no_characters_that_shells_replace(environment: str, name: str) -> None:
    # Two shells parse it: the submitter's and the job's.
    assert not re.search(r"[$`\\!]", ray_jobs(environment)[name]["entrypoint"])


@pytest.mark.parametrize(("environment", "name"), _COMMANDS)
def test_pipelines_and_recipes_of_an_entry_point_are_valid(environment: str, name: str) -> None:
    words = _words(environment, name)
    for steps in _options(words, "--steps"):
        assert str(Pipeline.parse(steps))
    for recipe in [word for word in words if word.endswith(".yaml")]:
        assert Recipe.load(str(ROOT / recipe), overrides=_options(words, "--set"))


@pytest.mark.parametrize(("environment", "name"), _COMMANDS)
def test_a_job_reads_and_writes_only_in_buckets(environment: str, name: str) -> None:
    words = _words(environment, name)
    assert [word for word in words if word.startswith("s3://")]
    assert not [word for word in words if word.startswith(("/", "./", "file:", "out/"))]
    assert "--address" not in words


def test_jobs_of_a_laptop_follow_each_other() -> None:
    jobs = {name: _words("dev", name) for name in ray_jobs("dev")}
    dataset = jobs["ingest"][3]
    bundle = _options(jobs["train"], "--out")[0]
    assert jobs["filter"][2].startswith(dataset)
    assert jobs["evaluate"][2] == jobs["predict"][2] == bundle
    assert {f"data.train={dataset}/train", f"data.val={dataset}/test"} == set(_options(jobs["train"], "--set"))


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_configuration_of_serve_follows_serves_schema(environment: str) -> None:
    for service in of_kind(environment, "RayService"):
        written = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
        for application in written.applications:
            for deployment in application.deployments:
                scaling = deployment.autoscaling_config
                # Otherwise no replica is ever added: replicas are full before the target is reached.
                if isinstance(scaling, dict):
                    assert scaling["target_ongoing_requests"] <= deployment.max_ongoing_requests


_KEYS = "/etc/striate/api-keys/api-keys"
_LENET = ("lenet", Scale((2, 16), 1.0), ServeSettings(keys_file=_KEYS, access_log="-"))
_RESNET = (
    "resnet50",
    Scale((2, 8), 6.0, 1.0, max_queued=256),
    ServeSettings(keys_file=_KEYS, access_log="-", device="cuda"),
)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_configuration_of_serve_equals_that_of_write_config(environment: str) -> None:
    for service in of_kind(environment, "RayService"):
        written = yaml.safe_load(service["spec"]["serveConfigV2"])
        expected = [
            config_of(applications({name: f"s3://striate/models/{name}"}, settings, scale), "0.0.0.0", 8000)
            for name, scale, settings in (_LENET, _RESNET)
        ]
        assert written in expected


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_classifiers_import(environment: str) -> None:
    for service in of_kind(environment, "RayService"):
        for application in yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]:
            module, _, attribute = application["import_path"].partition(":")
            assert callable(getattr(importlib.import_module(module), attribute))
