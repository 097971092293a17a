"""The files for `ray up`, against Ray's own schema and against what they promise."""

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
def test_ray_takes_the_file(name: str) -> None:
    jsonschema.validate(as_ray_reads(name), SCHEMA)


def test_a_mistake_would_be_found() -> None:
    made = as_ray_reads("aws")
    made["docker"]["imagee"] = "striate"
    with pytest.raises(jsonschema.ValidationError, match="imagee"):
        jsonschema.validate(made, SCHEMA)


@pytest.mark.parametrize("name", FILES)
def test_no_work_runs_on_the_head(name: str) -> None:
    made = as_ray_reads(name)
    head = made.get("available_node_types", {}).get(made.get("head_node_type"), {"resources": {}})
    starts = " ".join(made["head_start_ray_commands"])
    assert head["resources"].get("CPU") == 0 or "--num-cpus=0" in starts


@pytest.mark.parametrize("name", FILES)
def test_no_key_and_no_secret_is_in_the_file_and_a_token_is_asked_for(name: str) -> None:
    text = (ROOT / "cluster" / "examples" / f"{name}.yaml").read_text("utf-8")
    assert not re.search(r"ssh_private_key|KeyName|AKIA|SECRET_ACCESS_KEY|RAY_AUTH_TOKEN=", text)
    made = load(name)
    assert "--env RAY_AUTH_MODE=token" in made["docker"]["run_options"]
    assert made["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize("name", FILES)
def test_images_are_pinned_and_the_dashboard_stays_on_loopback(name: str) -> None:
    made = load(name)
    types = made.get("available_node_types", {}).values()
    images = [value for key, value in made["docker"].items() if key.endswith("image")]
    images += [kind["docker"]["worker_image"] for kind in types if "docker" in kind]
    assert images
    for image in images:
        assert re.fullmatch(rf".+/striate:{re.escape(VERSIONS['striate'])}-(cpu|gpu)", image)
    assert "--dashboard-host=127.0.0.1" in " ".join(made["head_start_ray_commands"])


def test_nodes_on_aws_are_closed_to_the_world_and_only_workers_are_spot() -> None:
    made = as_ray_reads("aws")
    assert made["provider"]["use_internal_ips"]
    # Without a group of its own a node gets one of Ray's, which lets the world in at port 22.
    for name, kind in made["available_node_types"].items():
        config = kind["node_config"]
        assert config["SecurityGroupIds"], name
        assert config["ImageId"].startswith("ami-"), name
        assert config["IamInstanceProfile"] == {"Name": "striate-head" if name == "head" else "striate-worker"}
        assert config["MetadataOptions"]["HttpTokens"] == "required"
        assert ("InstanceMarketOptions" in config) == (name != "head")
        assert all(disk["Ebs"]["Encrypted"] for disk in config["BlockDeviceMappings"])


def test_aws_has_cpu_and_gpu_workers_that_come_and_go() -> None:
    made = as_ray_reads("aws")
    workers = {name: kind for name, kind in made["available_node_types"].items() if name != made["head_node_type"]}
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in workers.values())
    assert sum(kind["max_workers"] for kind in workers.values()) == made["max_workers"]
    assert {"GPU" in kind["resources"] for kind in workers.values()} == {True, False}


def test_the_autoscaler_gets_the_boto3_that_goes_with_the_locked_botocore() -> None:
    locked = re.search(r"^botocore==(\S+)", (ROOT / "requirements.lock").read_text("utf-8"), re.MULTILINE)
    assert locked is not None
    assert f" boto3=={locked[1]} " in " ".join(load("aws")["head_setup_commands"])


def test_the_image_has_what_ray_up_copies_files_and_reaches_nodes_with() -> None:
    installed = (ROOT / "Dockerfile").read_text("utf-8").split("AS build")[0].split()
    assert {"openssh-client", "rsync"} <= set(installed)
