"""What striate needs of Ray's private parts is checked before anything starts."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from cluster import ray_internals
from library.errors import StriateError

ROOT = Path(__file__).parents[3]


def test_a_ray_that_lacks_a_private_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_internals.check("core")
    monkeypatch.delattr("ray.experimental.internal_kv._internal_kv_list")
    with pytest.raises(StriateError, match=r"Ray 2\.\d+\.\d+ lacks .*_internal_kv_list.*: install ray\[.*\][<>]"):
        ray_internals.check("core")


def test_a_ray_of_another_version_is_refused_with_those_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.59.0" if name == "ray" else version(name))
    with pytest.raises(StriateError, match=r"Ray 2\.59\.0 is too old or too new .*: install ray\[.*\][<>]"):
        ray_internals.check("core")


def test_importing_the_internals_imports_no_ray() -> None:
    code = "import sys, cluster.ray_internals; assert 'ray' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_private_parts_of_ray_are_imported_in_one_file() -> None:
    private = re.compile(r"ray\.(.*\._|experimental\.internal_kv|_)")
    found: set[str] = set()
    for package in ("library", "cluster", "jobs", "serve", "tests", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            source = path.read_bytes()
            for node in ast.walk(ast.parse(source)) if b"ray." in source else ():
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                if any(private.match(module) for module in modules):
                    found.add(str(path.relative_to(ROOT)))
    assert found == {"cluster/ray_internals.py"}
