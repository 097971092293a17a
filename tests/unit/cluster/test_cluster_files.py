"""The files for `ray up` follow Ray's own schema and keep what their comments promise."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler.sdk import fillout_defaults

from library.dataset.manifest import VERSIONS
from tests import ROOT

SCHEMA = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_bytes())
FILES = ("aws", "local")


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster" / "examples" / f"{name}.yaml").read_text("utf-8"))


def as_ray_reads(name: str) -> dict[str, Any]:
    return fillout_defaults(load(name))


@pytest.mark.parametrize("name", FILES)
def test_the_file_follows_rays_schema(name: str) -> None:
    jsonschema.validate(as_ray_reads(name), SCHEMA)


def test_rays_schema_detects_a_mistake() -> None:
    config = as_ray_reads("aws")
    config["docker"]["imagee"] = "striate"
    with pytest.raises(jsonschema.ValidationError, match="imagee"):
        jsonschema.validate(config, SCHEMA)


@pytest.mark.parametrize("name", FILES)
def test_no_work_runs_on_the_head(name: str) -> None:
    config = as_ray_reads(name)
    head = config.get("available_node_types", {}).get(config.get("head_node_type"), {"resources": {}})
    starts = " ".join(config["head_start_ray_commands"])
    assert head["resources"].get("CPU") == 0 or "--num-cpus=0" in starts


@pytest.mark.parametrize("name", FILES)
def test_the_file_holds_no_secret_and_requires_a_token(name: str) -> None:
    text = (ROOT / "cluster" / "examples" / f"{name}.yaml").read_text("utf-8")
    assert not re.search(r"ssh_private_key|KeyName|AKIA|SECRET_ACCESS_KEY|RAY_AUTH_TOKEN=", text)
    config = load(name)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize("name", FILES)
def test_images_are_pinned_and_the_dashboard_stays_on_loopback(name: str) -> None:
    config = load(name)
    types = config.get("available_node_types", {}).values()
    images = [value for key, value in config["docker"].items() if key.endswith("image")]
    images += [kind["docker"]["worker_image"] for kind in types if "docker" in kind]
    assert images
    for image in images:
        assert re.fullmatch(rf".+/striate:{re.escape(VERSIONS['striate'])}-(cpu|gpu)", image)
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])


def test_nodes_on_aws_are_closed_to_the_world_and_only_workers_are_spot() -> None:
    config = as_ray_reads("aws")
    assert config["provider"]["use_internal_ips"]
    # Without a security group, a node gets one from Ray whose port 22 is open to the world.
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        assert node["SecurityGroupIds"], name
        assert node["ImageId"].startswith("ami-"), name
        assert node["IamInstanceProfile"] == {"Name": "striate-head" if name == "head" else "striate-worker"}
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert ("InstanceMarketOptions" in node) == (name != "head")
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])


def test_aws_has_autoscaled_cpu_and_gpu_workers() -> None:
    config = as_ray_reads("aws")
    workers = {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in workers.values())
    assert sum(kind["max_workers"] for kind in workers.values()) == config["max_workers"]
    assert {"GPU" in kind["resources"] for kind in workers.values()} == {True, False}


def test_the_autoscalers_boto3_matches_the_locked_botocore() -> None:
    locked = re.search(r"^botocore==(\S+)", (ROOT / "requirements.lock").read_text("utf-8"), re.MULTILINE)
    assert locked is not None
    assert f" boto3=={locked[1]} " in " ".join(load("aws")["head_setup_commands"])


def test_the_image_has_the_programs_that_ray_up_needs() -> None:
    installed = (ROOT / "Dockerfile").read_text("utf-8").split("AS build")[0].split()
    assert {"openssh-client", "rsync"} <= set(installed)
