"""`striate serve` refuses invalid options before anything starts, and parses valid ones."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli.app import run
from library.bundle.bundle import Bundle
from library.bundle.ensemble import ensemble
from library.errors import StriateError, UsageError
from serve.endpoint import free_port, is_loopback
from serve.http.keys import new_key
from serve.launch.arguments import (
    check_exposure,
    cpus_of_replica,
    make_settings,
    parse_bundles,
    parse_replicas,
    plan_serve,
    with_keys,
)
from serve.launch.config_file import config_of, read_config, write_config
from serve.launch.deploy import Application, Scale, applications
from serve.settings import ServeSettings
from tests.bundles import make_bundle

KEY_LINE = new_key("ann")[1]


def test_a_bundle_is_served_under_its_folders_name_or_a_given_one() -> None:
    assert parse_bundles(["/m/lenet/", "pets=/m/run=3/best", "s3://b/run=3/cats"]) == {
        "lenet": "/m/lenet",
        "pets": "/m/run=3/best",
        "cats": "s3://b/run=3/cats",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one"),
        (["/a/lenet", "/b/lenet"], "two bundles would be served as 'lenet'"),
        (["a b=/m/lenet"], "for example a-b=/m/lenet"),
        (["/m/über"], "for example uber=/m/über"),
        (["/m/run=3/犬"], "for example NAME=/m/run=3/犬"),
        (["%6Fne=/m/one"], "for example 6Fne=/m/one"),
        (["..=/m/lenet"], "'..' is not a valid model name"),
        (["striate=/m/lenet"], "'striate' is not a valid model name"),
        (["/"], "not a valid model name"),
    ],
)
def test_a_name_that_a_url_cannot_have_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_bundles(arguments)
    assert message in str(caught.value)


def test_replicas_are_a_number_or_a_range() -> None:
    assert [parse_replicas(text) for text in ("2", "1-4")] == [(2, 2), (1, 4)]
    for wrong in ("0", "4-1", "many", "1-", "-3"):
        with pytest.raises(UsageError, match="--replicas"):
            parse_replicas(wrong)


def test_this_machines_cpus_are_shared_between_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert [cpus_of_replica(None, count) for count in (1, 3, 8, 16)] == [8, 2, 1, 0.5]
    assert cpus_of_replica(3.5, 8) == 3.5


def test_an_invalid_setting_is_refused_by_its_options_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STRIATE_API_KEYS", raising=False)
    with pytest.raises(UsageError, match="--runtime"):
        make_settings({"runtime": "fast"}, None)
    with pytest.raises(UsageError, match="--cors-origins"):
        make_settings({"cors_origins": ["example.org"]}, None)
    assert not make_settings({"top_k": None}, None).needs_key


def test_keys_come_from_a_file_and_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    second = new_key("bob")[1]
    monkeypatch.setenv("STRIATE_API_KEYS", f"{KEY_LINE}, {second}\n")
    settings = make_settings({}, "keys.txt")
    assert settings.keys == (KEY_LINE, second)
    assert settings.keys_file == str(Path("keys.txt").absolute())


def test_keys_of_the_environment_are_accepted_beside_a_config_files() -> None:
    second = new_key("bob")[1]
    keyed = applications({"lenet": "/m/lenet"}, ServeSettings(keys=(KEY_LINE,)), Scale())
    assert [each.args.settings.keys for each in with_keys(keyed, [second])] == [(KEY_LINE, second)] * 2
    bare = applications({"lenet": "/m/lenet"}, ServeSettings(), Scale())
    assert all(each.args.settings.needs_key for each in with_keys(bare, [second]))
    assert with_keys(bare, []) == bare


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_needs_no_keys(host: str) -> None:
    assert is_loopback(host)
    check_exposure(host, ServeSettings())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "127.0.0.1.example.org"])
def test_other_machines_need_keys(host: str) -> None:
    with pytest.raises(UsageError, match="striate keys"):
        check_exposure(host, ServeSettings())
    check_exposure(host, ServeSettings(keys=(KEY_LINE,)))


def test_a_missing_key_file_is_refused_on_the_machine_that_reads_it() -> None:
    settings = ServeSettings(keys_file="/nowhere/keys.txt")
    check_exposure("0.0.0.0", settings, here=False)
    with pytest.raises(UsageError, match=r"/nowhere/keys\.txt"):
        check_exposure("127.0.0.1", settings)


def test_a_port_in_use_is_refused_and_zero_takes_a_free_one() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(UsageError, match="--port"):
            free_port("127.0.0.1", listener.getsockname()[1])
    assert free_port("127.0.0.1", 0) > 0


def served(*bundles: str) -> list[Application]:
    return applications(parse_bundles(bundles), ServeSettings(), Scale())


def test_a_complete_bundle_and_an_ensemble_are_accepted(tmp_path: Path) -> None:
    one, two = make_bundle(tmp_path / "one"), make_bundle(tmp_path / "two", seed=1)
    joined = ensemble([Bundle.load(one, "cpu"), Bundle.load(two, "cpu")])
    joined.save(str(tmp_path / "both"))
    plan = plan_serve(served(one, str(tmp_path / "both")), host="127.0.0.1", port=0)
    assert {name: record.id for name, record in plan.records.items()} == {
        "one": Bundle.load(one, "cpu").id,
        "both": joined.id,
    }


def _missing(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    return "model.safetensors is missing"


def _changed(folder: Path) -> str:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    return "model.safetensors is damaged"


def _no_record(folder: Path) -> str:
    (folder / "bundle.json").unlink()
    return "has no bundle.json"


def _cut_record(folder: Path) -> str:
    path = folder / "bundle.json"
    path.write_bytes(path.read_bytes()[:50])
    return "bundle.json is damaged"


@pytest.mark.parametrize("harm", [_missing, _changed, _no_record, _cut_record])
@pytest.mark.parametrize("member", [False, True])
def test_an_incomplete_bundle_is_refused_with_the_files_name(tmp_path: Path, harm: Any, member: bool) -> None:
    folder = Path(make_bundle(tmp_path / "one"))
    if member:
        ensemble([Bundle.load(str(folder), "cpu")] * 2).save(str(tmp_path / "both"))
        folder = tmp_path / "both"
    message = harm(folder / "members" / "1" if member else folder)
    with pytest.raises(StriateError) as caught:
        plan_serve(served(str(folder)), host="127.0.0.1", port=0)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_config_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    settings = ServeSettings(keys_file="/etc/keys", top_k=3, batch_size=16)
    served = applications({"lenet": "s3://m/lenet", "pets": "s3://m/pets"}, settings, Scale((1, 4), 2.0, 1.0))
    config = config_of(served, "0.0.0.0", 8000)
    path = tmp_path / "serve.yaml"
    write_config(str(path), config)
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == config
    read = read_config(str(path))
    assert read.applications == served
    assert (read.http.host, read.http.port) == ("0.0.0.0", 8000)


def test_replicas_may_share_a_gpu(tmp_path: Path) -> None:
    bundle, file = make_bundle(tmp_path / "small"), tmp_path / "serve.yaml"
    options = ["--replicas", "4", "--gpus-per-replica", "0.25", "--cpus-per-replica", "4", "--write-config", str(file)]
    assert run(["serve", bundle, *options]) == 0
    model = yaml.safe_load(file.read_text("utf-8"))["applications"][0]
    assert model["deployments"][0]["ray_actor_options"] == {"num_cpus": 4.0, "num_gpus": 0.25}
    assert model["args"]["settings"]["device"] == "cuda"
    assert run(["serve", bundle, "--gpus-per-replica", "2"]) == 2


def test_an_option_that_only_serve_knows_is_kept(tmp_path: Path) -> None:
    config = config_of(applications({"lenet": "/m/lenet"}, ServeSettings(), Scale()), "127.0.0.1", 8000)
    deployment = config["applications"][0]["deployments"][0]
    deployment |= {"max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 1.0, "resources": {"disk": 1}}}
    write_config(str(tmp_path / "serve.yaml"), config)
    read = read_config(str(tmp_path / "serve.yaml")).applications[0]
    assert {"name": "Model", **read.deployment.options} == deployment


def test_a_setting_with_its_default_is_not_written() -> None:
    assert applications({"lenet": "/m/lenet"}, ServeSettings(), Scale())[0].to_dict()["args"] == {
        "name": "lenet",
        "bundle": "/m/lenet",
        "max_queued": 128,
        "settings": {},
    }


def _edited(config: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    config["applications"][0] |= change
    return config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"import_path": "os:system"}, "'os:system' is not striate's"),
        ({"args": {"name": "lenet", "bundle": "/m", "max_qeued": 1}}, "max_qeued"),
        ({"args": {"name": "other", "bundle": "/m"}}, "'lenet' must have the model's name 'other'"),
        ({"route_prefix": "/"}, "the route_prefix /models/lenet"),
        ({"deployments": []}, "deployments"),
        ({"deployments": [{"name": "Model", "num_replicas": "auto"}]}, "deployments.0.num_replicas"),
        ({"import_path": "serve.launch.deploy:gateway", "args": {}}, "has no model"),
    ],
)
def test_a_config_file_with_a_mistake_is_refused_saying_where(
    tmp_path: Path, change: Mapping[str, Any], message: str
) -> None:
    config = config_of(applications({"lenet": "/m/lenet"}, ServeSettings(), Scale()), "127.0.0.1", 8000)
    write_config(str(tmp_path / "serve.yaml"), _edited(config, change))
    with pytest.raises(UsageError) as caught:
        read_config(str(tmp_path / "serve.yaml"))
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "applications: 3", "applications: [{}]", "{a: [", "applications: [x]"])
def test_a_file_that_is_not_a_config_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "serve.yaml").write_text(text)
    with pytest.raises(UsageError):
        read_config(str(tmp_path / "serve.yaml"))
    with pytest.raises(UsageError, match="--write-config"):
        read_config(str(tmp_path / "not-there.yaml"))
