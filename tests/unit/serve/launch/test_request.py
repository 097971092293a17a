"""What `striate serve` refuses before anything starts, and what it makes of the rest."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from library.bundle.bundle import Bundle, ensemble
from library.errors import StriateError, UsageError
from serve.http.keys import new_key
from serve.launch.config_file import config_of, read_config, write_config
from serve.launch.deploy import Scale, applications
from serve.launch.exposure import check_reach, free_port, is_loopback
from serve.launch.request import make_settings, named_bundles, plan_serve, read_replicas, share_of_cpus, with_keys
from serve.settings import ServeSettings
from tests.bundles import make_bundle

KEY_LINE = new_key("ann")[1]


def test_a_bundle_is_served_under_its_folders_name_or_the_one_it_is_given() -> None:
    assert named_bundles(["/m/lenet/", "pets=/m/run=3/best", "s3://b/run=3/cats"]) == {
        "lenet": "/m/lenet",
        "pets": "/m/run=3/best",
        "cats": "s3://b/run=3/cats",
    }


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name at least one"),
        (["/a/lenet", "/b/lenet"], "two bundles would be served as 'lenet'"),
        (["a b=/m/lenet"], "write a-b=/m/lenet"),
        (["/m/über"], "write uber=/m/über"),
        (["/m/run=3/犬"], "write NAME=/m/run=3/犬"),
        (["%6Fne=/m/one"], "write 6Fne=/m/one"),
        (["..=/m/lenet"], "'..' cannot"),
        (["striate=/m/lenet"], "'striate' cannot"),
        (["/"], "cannot be a model's name"),
    ],
)
def test_a_name_that_no_address_can_have_is_refused(arguments: list[str], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        named_bundles(arguments)
    assert told in str(caught.value)


def test_replicas_are_a_number_or_a_range() -> None:
    assert [read_replicas(text) for text in ("2", "1-4")] == [(2, 2), (1, 4)]
    for wrong in ("0", "4-1", "many", "1-", "-3"):
        with pytest.raises(UsageError, match="--replicas"):
            read_replicas(wrong)


def test_this_machines_cpus_are_shared_between_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert [share_of_cpus(None, count) for count in (1, 3, 8, 16)] == [8, 2, 1, 0.5]
    assert share_of_cpus(3.5, 8) == 3.5


def test_settings_that_make_no_sense_are_told_by_their_option(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_keys_of_the_environment_let_in_beside_those_of_a_config_file() -> None:
    second = new_key("bob")[1]
    made = applications({"lenet": "/m/lenet"}, ServeSettings(keys=(KEY_LINE,)), Scale())
    assert [each["args"]["settings"]["keys"] for each in with_keys(made, [second])] == [[KEY_LINE, second]] * 2
    bare = applications({"lenet": "/m/lenet"}, ServeSettings(), Scale())
    assert all(ServeSettings.model_validate(each["args"]["settings"]).needs_key for each in with_keys(bare, [second]))
    assert with_keys(bare, []) == bare


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_needs_no_keys(host: str) -> None:
    assert is_loopback(host)
    check_reach(host, ServeSettings())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "127.0.0.1.example.org"])
def test_other_machines_need_keys(host: str) -> None:
    with pytest.raises(UsageError, match="striate keys"):
        check_reach(host, ServeSettings())
    check_reach(host, ServeSettings(keys=(KEY_LINE,)))


def test_a_key_file_that_is_not_there_is_refused_where_it_will_be_read() -> None:
    settings = ServeSettings(keys_file="/nowhere/keys.txt")
    check_reach("0.0.0.0", settings, here=False)
    with pytest.raises(UsageError, match=r"/nowhere/keys\.txt"):
        check_reach("127.0.0.1", settings)


def test_a_port_that_is_taken_is_refused_and_zero_finds_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="--port"):
            free_port("127.0.0.1", taken.getsockname()[1])
    assert free_port("127.0.0.1", 0) > 0


def served(*bundles: str) -> list[dict[str, Any]]:
    return applications(named_bundles(bundles), ServeSettings(), Scale())


def test_a_whole_bundle_and_an_ensemble_are_taken(tmp_path: Path) -> None:
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
def test_a_bundle_that_is_not_whole_is_refused_saying_which_file(tmp_path: Path, harm: Any, member: bool) -> None:
    folder = Path(make_bundle(tmp_path / "one"))
    if member:
        ensemble([Bundle.load(str(folder), "cpu")] * 2).save(str(tmp_path / "both"))
        folder = tmp_path / "both"
    told = harm(folder / "members" / "1" if member else folder)
    with pytest.raises(StriateError) as caught:
        plan_serve(served(str(folder)), host="127.0.0.1", port=0)
    assert told in str(caught.value)
    assert str(folder) in str(caught.value)


def written(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_a_config_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    settings = ServeSettings(keys_file="/etc/keys", top_k=3, batch_size=16)
    config = config_of(
        applications({"lenet": "s3://m/lenet", "pets": "s3://m/pets"}, settings, Scale((1, 4), 2.0, 1.0)),
        "0.0.0.0",
        8000,
    )
    write_config(str(tmp_path / "serve.yaml"), config)
    assert read_config(str(tmp_path / "serve.yaml")) == config == written(tmp_path / "serve.yaml")


def test_a_setting_that_was_not_changed_is_not_written() -> None:
    assert applications({"lenet": "/m/lenet"}, ServeSettings(), Scale())[0]["args"] == {
        "name": "lenet",
        "bundle": "/m/lenet",
        "max_queued": 128,
        "settings": {},
    }


def _edited(config: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    config["applications"][0] |= change
    return config


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"import_path": "os:system"}, "'os:system' is not ours"),
        ({"args": {"name": "lenet", "bundle": "/m", "max_qeued": 1}}, "max_qeued"),
        ({"args": {"name": "other", "bundle": "/m"}}, "'lenet' must have its model's name"),
        ({"route_prefix": "/"}, "/models/NAME"),
        ({"deployments": []}, "deployments"),
        ({"deployments": [{"name": "Model", "num_replicas": "auto"}]}, "deployments.0.num_replicas"),
        ({"import_path": "serve.launch.deploy:gateway", "args": {}}, "serves no model"),
    ],
)
def test_a_config_file_with_a_mistake_is_refused_saying_where(
    tmp_path: Path, change: Mapping[str, Any], told: str
) -> None:
    config = config_of(applications({"lenet": "/m/lenet"}, ServeSettings(), Scale()), "127.0.0.1", 8000)
    write_config(str(tmp_path / "serve.yaml"), _edited(config, change))
    with pytest.raises(UsageError) as caught:
        read_config(str(tmp_path / "serve.yaml"))
    assert told in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "applications: 3", "applications: [{}]", "{a: [", "applications: [x]"])
def test_what_is_no_config_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "serve.yaml").write_text(text)
    with pytest.raises(UsageError):
        read_config(str(tmp_path / "serve.yaml"))
    with pytest.raises(UsageError, match="--write-config"):
        read_config(str(tmp_path / "not-there.yaml"))
