"""Tests of what all benchmarks share: exit codes, result files, goals and rounds."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import command_line
from benchmarks.common.measuring import measured_rounds, ratios
from benchmarks.common.report import goal
from library.errors import UsageError


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, measure: Any, *arguments: str) -> int:
    def show(result: Mapping[str, Any]) -> None:
        print(result["figure"])

    parser = command_line.make_parser(command_line.__file__, "A benchmark.", "--photos 2")
    parser.add_argument("--photos", type=command_line.at_least(1), default=3)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--out", str(folder), *arguments])
    return command_line.run_benchmark("some_benchmark.py", parser, measure, show)


def test_a_result_file_has_machine_commit_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, tmp_path, lambda options: {"figure": options.photos}, "--photos", "7") == 0
    assert run(monkeypatch, tmp_path, lambda options: {"figure": options.photos}) == 0
    first, second = sorted(tmp_path.iterdir(), key=lambda path: len(path.name))
    assert second.stem == f"{first.stem}-2"
    result = json.loads(first.read_text())
    assert (result["benchmark"], result["figure"]) == ("some_benchmark", 7)
    assert {"cpu", "cores_used", "commit", "code_digest", "versions"} <= result["machine"].keys()
    assert "code_changed_meanwhile" in result


def test_a_failed_benchmark_writes_no_result_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(_: argparse.Namespace) -> dict[str, Any]:
        raise UsageError("no photos")

    assert run(monkeypatch, tmp_path, measure) == 2
    assert "some_benchmark: no photos" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_number_below_the_minimum_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, dict, "--photos", "0")
    assert "0 is too small; the minimum is 1" in capsys.readouterr().err


def test_a_goal_is_judged_by_the_median_over_the_rounds() -> None:
    assert goal("rate", [0.7, 0.9, 2.0], at_least=0.8)["reached"] is True
    assert goal("rate", [0.7, 0.7, 2.0], at_least=0.8)["reached"] is False
    assert goal("memory", [1.0, 3.0], at_most=2.5, judged_by=max)["reached"] is False
    assert goal("rate", [], at_least=0.8) == {"what": "rate", "at_least": 0.8, "ratio": None, "reached": None}
    assert goal("rate", [1.0])["reached"] is None


def test_contestants_take_turns_and_are_compared_by_round() -> None:
    order: list[str] = []

    def contestant(name: str, rates: list[float]) -> Any:
        def measure() -> dict[str, Any]:
            order.append(name)
            return {"rate": rates.pop(0)}

        return measure

    rounds = measured_rounds(
        {"striate": contestant("striate", [2.0, 3.0]), "limit": contestant("limit", [4.0, 4.0])}, 2
    )
    assert order == ["striate", "limit", "striate", "limit"]
    assert ratios(rounds["striate"], rounds["limit"], "rate") == [0.5, 0.75]
