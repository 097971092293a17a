"""The GPU benchmark's own rules, without a GPU: its time, its failures, and a machine without an installed Striate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import answering, gpu_suite, prepare, training
from benchmarks.gpu.gpu_suite import PARTS, Part
from benchmarks.gpu.settings import Settings
from library.dataset.manifest import load_manifest

PROGRAM = """
import json, os, signal, sys, time
name = sys.argv[1]
if name == "prepare":
    print("a line of a library"); print(json.dumps({"seconds": 1.0}))
elif name == "streamed":
    sys.exit("no pictures")
elif name == "serve":
    open(sys.argv[3] + "/child", "w").write(str(os.getpid()))
    time.sleep(600)
else:
    print(json.dumps({"pictures_per_s": 10.0 if name == "synthetic" else 5.0}))
"""


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Parts that end at once, fail, or hang; returns the folder that they are run in."""
    (tmp_path / "some_parts.py").write_text(PROGRAM)
    names = ("prepare", "synthetic", "streamed", "serve", "resident")
    monkeypatch.setattr(gpu_suite, "PARTS", [Part(name, "some_parts", 5.0) for name in names])
    monkeypatch.setattr(gpu_suite, "_RESERVE_S", 0.0)
    monkeypatch.setattr(gpu_suite, "_END_S", 5.0)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    monkeypatch.setattr(
        sys, "argv", ["gpu_suite", "--device", "cpu", "--work", str(folder), "--out", str(folder / "out"), *arguments]
    )
    code = gpu_suite.main()
    (path,) = (folder / "out").iterdir()
    return code, json.loads(path.read_text()) | {"path": path.name}


def test_a_part_that_fails_or_hangs_stops_no_other(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, result = run(monkeypatch, parts)
    assert code == 1
    assert result["path"].startswith("gpu_suite-cpu-")
    assert result["parts"]["prepare"]["seconds"] == 1.0
    assert "exit code 1: no pictures" in result["parts"]["streamed"]["not_measured"]
    assert "took longer than 5 s" in result["parts"]["serve"]["not_measured"]
    assert result["ratios"] == {"resident / synthetic": 0.5}


def test_a_part_that_hangs_is_ended(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    gpu_suite._end(process)
    assert process.poll() is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_parts_for_which_no_time_is_left_are_named(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic()
    code, result = run(monkeypatch, parts, "--minutes", "0")
    assert code == 1
    assert time.monotonic() - start < 60
    assert all("no time left" in figures["not_measured"] for figures in list(result["parts"].values())[:1])
    assert all("not_measured" in figures for figures in result["parts"].values())


def test_all_parts_fit_into_the_time_when_each_takes_half_of_its_limit() -> None:
    assert sum(part.limit_s for part in PARTS) / 2 < 8 * 60 - gpu_suite._RESERVE_S
    assert PARTS[0].name == "prepare"
    measured = {part.name for part in PARTS[1:]}
    assert measured == {*training._PARTS, *answering._PARTS}


def test_a_checkout_that_is_not_installed_still_has_its_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise gpu_suite.importlib.metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(gpu_suite.importlib.metadata, "version", missing)
        environment = gpu_suite._environment(Namespace(packages=[tmp_path]), tmp_path)
    folder = environment["PYTHONPATH"].split(os.pathsep)[2]
    (written,) = (one for one in Distribution.discover(path=[folder]) if one.name == "striate")
    installed = Distribution.from_name("striate")
    assert written.version == installed.version
    names = {(point.group, point.name, point.value) for point in installed.entry_points}
    assert {(point.group, point.name, point.value) for point in written.entry_points} == names


def test_pictures_like_cifar_have_the_same_classes_in_both_splits(tmp_path: Path) -> None:
    source = prepare._make_small(tmp_path, Settings.choose("cpu", smoke=True))
    assert "says nothing about CIFAR-10" in source
    train, test = (load_manifest(str(tmp_path / name)) for name in ("train", "test"))
    assert (train.rows, test.rows) == (256, 51)
    assert list(train.tally.classes) == list(test.tally.classes)
    assert len(train.tally.classes) == 10
    pictures = [prepare._like_cifar(number)[0] for number in range(40)]
    assert len(set(pictures)) == 40
