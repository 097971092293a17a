"""What the doctor says of what it is shown, and of real storage."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.doctor import checks, examination
from cluster.doctor.checks import Check, worst
from cluster.doctor.facts import node_facts, storage_clock, storage_facts
from jobs.cli.app import run
from library import storage
from library.errors import UsageError
from tests.conftest import S3Server


def facts(**changed: Any) -> dict[str, Any]:
    here = node_facts()
    assert all(here["versions"].values())
    return here | {"memory_bytes": 16e9, "shm_bytes": 4 * 2**30, "open_token_files": []} | changed


def of_machine(**changed: Any) -> dict[str, Check]:
    return {check.name: check for check in checks.of_machine(facts(**changed))}


def test_a_sound_machine_is_ok() -> None:
    found = of_machine(gpus={"devices": 0, "usable": 0, "names": []})
    assert {check.verdict for check in found.values()} == {"ok"}
    assert "ray 2." in found["versions"].found


def test_a_token_that_other_users_can_read_is_told_until_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    (told,) = (check for check in checks.of_machine(node_facts()) if check.name == "token file")
    assert (told.verdict, told.advice) == ("warn", f"chmod 600 {token}")
    token.chmod(0o600)
    assert "token file" not in {check.name for check in checks.of_machine(node_facts())}


@pytest.mark.parametrize(
    ("changed", "name", "verdict", "advice"),
    [
        ({"memory_bytes": 2e9}, "machine", "warn", "--workers 1"),
        ({"shm_bytes": 64 * 2**20}, "shared memory", "warn", "--shm-size"),
        ({"gpus": {"devices": 2, "usable": 1, "names": ["T4"]}}, "GPUs", "warn", "nvidia-smi"),
        ({"versions": {"python": "3.11.9", "striate": "1", "ray": None, "torch": "2"}}, "versions", "fail", "(ray)"),
    ],
)
def test_what_is_amiss_is_told_with_what_to_do(changed: dict[str, Any], name: str, verdict: str, advice: str) -> None:
    found = of_machine(**changed)[name]
    assert found.verdict == verdict
    assert advice in found.advice


def test_the_package_that_differs_is_named_with_the_node() -> None:
    here = {"python": "3.11.9", "ray": "2.60.0", "torch": "2.14"}
    same = checks.of_versions(here, {"node a": here, "node b": here})
    assert (same.verdict, same.found) == ("ok", "the same on 2 nodes")
    other = checks.of_versions(here, {"node a": here, "node b": here | {"ray": "2.59.0"}})
    assert other.verdict == "fail"
    assert other.found == "ray 2.60.0 here, 2.59.0 on node b"


def test_a_clock_is_as_far_off_as_it_surely_is() -> None:
    assert checks.of_clock("clock", 2.5, 1.0).verdict == "ok"
    assert checks.of_clock("clock", -3.5, 1.0).verdict == "warn"
    assert checks.of_storage_clock((30, 1)).verdict == "ok"
    assert checks.of_storage_clock((-100, 1)).verdict == "warn"
    assert checks.of_storage_clock((1000, 1)).verdict == "fail"
    assert checks.of_storage_clock(None).verdict == "warn"


@pytest.mark.parametrize(
    ("error", "told", "verdicts"),
    [
        (None, (0, 1), ["ok", "ok"]),
        (None, None, ["ok", "warn"]),
        ("RequestTimeTooSkewed", (1000, 1), ["fail", "fail"]),
        ("no route to host", None, ["fail"]),
    ],
)
def test_the_clock_of_s3_is_looked_at_where_s3_lets_nobody_in_too(
    error: str | None, told: tuple[float, float] | None, verdicts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "storage_clock", lambda place: told)
    here = {"host": "here", "storage": {"error": error, "step": "written", "ms": 1}}
    assert [check.verdict for check in examination.of_storage_from_here(here, "s3://b/x")] == verdicts


def test_a_clock_is_known_as_exactly_as_the_quickest_answer() -> None:
    ahead_s, exactly_s = examination.ahead(lambda: time.time() + 100)
    assert abs(ahead_s - 100) <= exactly_s + 0.001


def test_the_worst_is_what_counts() -> None:
    ok, warn, fail = (Check("", verdict, "") for verdict in ("ok", "warn", "fail"))
    assert worst([]) == "ok"
    assert worst([ok, warn]) == "warn"
    assert worst([fail, warn, ok]) == "fail"


def test_a_bucket_is_written_and_read_and_left_as_it_was(bucket: str, s3_server: S3Server) -> None:
    found = storage_facts(f"{bucket}/deep/prefix")
    assert found["error"] is None
    assert storage.list_files(bucket) == []
    clock = storage_clock(bucket)
    assert clock is not None
    assert abs(clock[0]) <= clock[1] + 1


def test_a_bucket_that_is_not_there_is_told(bucket: str) -> None:
    found = storage_facts("s3://there-is-no-such-bucket/x")
    check = checks.of_storage("storage", "s3://there-is-no-such-bucket/x", found)
    assert check.verdict == "fail"
    assert "no such bucket" in check.found


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = checks.of_storage("storage", "x", storage_facts(str(tmp_path / "file")))
    assert (check.verdict, check.advice) == ("fail", "choose a folder of your own")


def test_a_dashboard_is_not_examined_from_outside() -> None:
    with pytest.raises(UsageError, match=r"striate submit --address http://head:8265 -- doctor"):
        list(examination.examine("http://head:8265"))


def test_a_cluster_that_does_not_answer_fails_and_the_rest_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--address", "127.0.0.1:9", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    verdicts = {check["name"]: check["verdict"] for check in told["checks"]}
    assert not told["ok"]
    assert verdicts["versions"] == "ok"
    assert verdicts["Ray"] == "fail"
