"""The verdicts of `striate doctor` on given facts, and on real storage."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, cast

import pytest

from cluster.doctor import checks, examination
from cluster.doctor.checks import Check, worst
from cluster.doctor.facts import NodeFacts, StorageFacts, node_facts, storage_clock, storage_facts
from jobs.cli.app import run
from library import storage
from library.errors import UsageError
from tests.conftest import S3Server


def facts(**changed: Any) -> NodeFacts:
    here = node_facts()
    assert all(here["versions"].values())
    sound = {"memory_bytes": 16e9, "shm_bytes": 4 * 2**30, "open_token_files": []}
    return cast(NodeFacts, {**here, **sound, **changed})


def of_machine(**changed: Any) -> dict[str, Check]:
    return {check.name: check for check in checks.of_machine(facts(**changed))}


def test_a_healthy_machine_passes_all_checks() -> None:
    checks_by_name = of_machine(gpus={"devices": 0, "usable": 0, "names": []})
    assert {check.verdict for check in checks_by_name.values()} == {"ok"}
    assert "ray 2." in checks_by_name["versions"].facts


def test_a_token_file_is_reported_while_other_users_can_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    (check,) = (check for check in checks.of_machine(node_facts()) if check.name == "token file")
    assert (check.verdict, check.advice) == ("warn", f"chmod 600 {token}")
    token.chmod(0o600)
    assert "token file" not in {check.name for check in checks.of_machine(node_facts())}


@pytest.mark.parametrize(
    ("changed", "name", "verdict", "advice"),
    [
        ({"memory_bytes": 2e9}, "machine", "warn", "--workers 1"),
        ({"shm_bytes": 64 * 2**20}, "shared memory", "warn", "--shm-size"),
        ({"gpus": {"devices": 2, "usable": 1, "names": ["T4"]}}, "GPUs", "warn", "nvidia-smi"),
        (
            {"versions": {"python": "3.11.9", "striate": "1", "ray": None, "torch": "2"}},
            "versions",
            "fail",
            "install ray",
        ),
        (
            {"versions": {"python": "3.11.9", "striate": "1", "ray": "2", "torch": None, "timm": None}},
            *("versions", "ok", "pip install 'striate[train,serve]'"),
        ),
    ],
)
def test_a_problem_is_reported_with_advice(changed: dict[str, Any], name: str, verdict: str, advice: str) -> None:
    check = of_machine(**changed)[name]
    assert check.verdict == verdict
    assert advice in check.advice


def test_a_package_with_another_version_is_named_with_its_node() -> None:
    here = {"python": "3.11.9", "ray": "2.60.0", "torch": "2.14"}
    same = checks.of_versions(here, {"node a": here, "node b": here})
    assert (same.verdict, same.facts) == ("ok", "the same on 2 nodes")
    other = checks.of_versions(here, {"node a": here, "node b": here | {"ray": "2.59.0"}})
    assert other.verdict == "fail"
    assert other.facts == "ray 2.60.0 here, 2.59.0 on node b"


def test_a_clock_is_judged_by_its_error_minus_the_uncertainty() -> None:
    assert checks.of_clock("clock", 2.5, 1.0).verdict == "ok"
    assert checks.of_clock("clock", -3.5, 1.0).verdict == "warn"
    assert checks.of_storage_clock((30, 1)).verdict == "ok"
    assert checks.of_storage_clock((-100, 1)).verdict == "warn"
    assert checks.of_storage_clock((1000, 1)).verdict == "fail"
    assert checks.of_storage_clock(None).verdict == "warn"


@pytest.mark.parametrize(
    ("error", "difference", "verdicts"),
    [
        (None, (0, 1), ["ok", "ok"]),
        (None, None, ["ok", "warn"]),
        ("RequestTimeTooSkewed", (1000, 1), ["fail", "fail"]),
        ("no route to host", None, ["fail"]),
    ],
)
def test_the_clock_of_s3_is_checked_even_if_s3_refuses_access(
    error: str | None, difference: tuple[float, float] | None, verdicts: list[str]
) -> None:
    result = StorageFacts(error=error, step="written", ms=1)
    storage_checks = examination.of_storage_from_here("here", "s3://b/x", result, difference)
    assert [check.verdict for check in storage_checks] == verdicts


def test_the_uncertainty_of_a_clock_covers_its_error() -> None:
    ahead_s, uncertainty_s = examination.ahead(lambda: time.time() + 100)
    assert abs(ahead_s - 100) <= uncertainty_s + 0.001


def test_the_worst_verdict_decides() -> None:
    ok, warn, fail = (Check("", verdict, "") for verdict in ("ok", "warn", "fail"))
    assert worst([]) == "ok"
    assert worst([ok, warn]) == "warn"
    assert worst([fail, warn, ok]) == "fail"


def test_a_bucket_is_written_and_read_and_left_as_it_was(bucket: str, s3_server: S3Server) -> None:
    result = storage_facts(f"{bucket}/deep/prefix")
    assert result["error"] is None
    assert storage.list_files(bucket) == []
    clock = storage_clock(bucket)
    assert clock is not None
    assert abs(clock[0]) <= clock[1] + 1


def test_a_missing_bucket_is_reported(bucket: str) -> None:
    result = storage_facts("s3://there-is-no-such-bucket/x")
    check = checks.of_storage("storage", "s3://there-is-no-such-bucket/x", result)
    assert check.verdict == "fail"
    assert "no such bucket" in check.facts


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = checks.of_storage("storage", "x", storage_facts(str(tmp_path / "file")))
    assert (check.verdict, check.advice) == ("fail", "choose a folder of your own")


def test_the_address_of_a_dashboard_is_refused_with_advice() -> None:
    with pytest.raises(UsageError, match=r"striate submit --address http://head:8265 -- doctor"):
        list(examination.examine("http://head:8265"))


def test_an_unreachable_cluster_fails_but_other_checks_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--address", "127.0.0.1:9", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    verdicts = {check["name"]: check["verdict"] for check in report["checks"]}
    assert not report["ok"]
    assert verdicts["versions"] == "ok"
    assert verdicts["Ray"] == "fail"
