"""The private parts of Ray that striate needs are checked before anything starts."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from cluster import ray_internals
from library.errors import StriateError
from tests import ROOT


@pytest.mark.parametrize(
    ("part", "name"),
    [("core", "ray.experimental.internal_kv._internal_kv_list"), ("cluster", "ray._private.node.Node.live_processes")],
)
def test_a_ray_that_lacks_a_private_name_is_refused(
    part: ray_internals.Part, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_internals.check(part)
    monkeypatch.delattr(name)
    with pytest.raises(StriateError, match=rf"Ray 2\.\d+\.\d+ lacks {name}, .*: install ray\[.*\][<>]"):
        ray_internals.check(part)


def test_another_version_of_ray_is_refused_with_those_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.59.0" if name == "ray" else version(name))
    with pytest.raises(StriateError, match=r"Ray 2\.59\.0 is too old or too new .*: install ray\[.*\][<>]"):
        ray_internals.check("core")


def test_importing_the_module_does_not_import_ray() -> None:
    code = "import sys, cluster.ray_internals; assert 'ray' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_private_parts_of_ray_are_imported_in_one_file() -> None:
    private = re.compile(r"ray\.(.*\._|experimental\.internal_kv|_)")
    importers: set[str] = set()
    for package in ("library", "cluster", "jobs", "serve", "tests", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            source = path.read_bytes()
            for node in ast.walk(ast.parse(source)) if b"ray." in source else ():
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                if any(private.match(module) for module in modules):
                    importers.add(str(path.relative_to(ROOT)))
    assert importers == {"cluster/ray_internals.py"}


def versions_tried(folder: Path, requirement: str, locked: str) -> subprocess.CompletedProcess[str]:
    """Runs `.ci/ray_versions` in a project with this requirement and this lock file."""
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/ray_versions", folder / ".ci")
    (folder / "pyproject.toml").write_text(f'dependencies = [\n  "{requirement}",\n]\n')
    (folder / "requirements.lock").write_text(f"{locked}\n")
    return subprocess.run([folder / ".ci/ray_versions"], capture_output=True, text=True, timeout=60)


def test_the_oldest_ray_is_not_tried_if_it_is_the_locked_one(tmp_path: Path) -> None:
    done = versions_tried(tmp_path, "ray[data,train]>=2.60.0,<2.61", "ray==2.60.0")
    assert done.returncode == 0, done.stderr
    assert "Ray 2.60.0 is the oldest and the newest" in done.stdout


@pytest.mark.parametrize(
    ("requirement", "locked", "file"),
    [
        ("ray[data,train]~=2.60", "ray==2.60.0", "pyproject.toml"),
        ("ray[data,train]>=2.60.0,<2.61", "ray @ https://example.org/ray.whl", "requirements.lock"),
    ],
)
def test_a_file_without_a_usable_version_of_ray_is_named(
    requirement: str, locked: str, file: str, tmp_path: Path
) -> None:
    done = versions_tried(tmp_path, requirement, locked)
    assert done.returncode == 1
    assert f"ray_versions: {file} " in done.stderr
