"""The commits that CONTRIBUTING.md shows work: they are applied to a copy of the tree, and their tests run there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
SECTIONS = re.findall(r"^## (Add an? \w+)\n(.*?)(?=^## )", CONTRIBUTING, flags=re.MULTILINE | re.DOTALL)


def test_the_map_names_every_sub_package() -> None:
    packages = [
        path.parent.relative_to(ROOT).as_posix()
        for top in ("library", "cluster", "jobs", "serve")
        for path in (ROOT / top).glob("*/__init__.py")
    ]
    assert len(packages) > 20
    assert [package for package in packages if f"`{package}/`" not in CONTRIBUTING] == []


def test_every_extension_point_has_its_section() -> None:
    assert [title for title, _ in SECTIONS] == ["Add a step", "Add a model", "Add a source", "Add a runtime"]


@pytest.mark.parametrize(("title", "section"), SECTIONS, ids=[title for title, _ in SECTIONS])
def test_a_commit_of_contributing_passes_its_own_test(title: str, section: str, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    for package in ("library", "cluster", "jobs", "serve"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for helper in (ROOT / "tests").glob("*.py"):
        if helper.name != "conftest.py":
            shutil.copy(helper, tmp_path / "tests")
    for diff in re.findall(r"^```diff\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL):
        apply(diff, tmp_path)
    new = re.findall(r"^```python\n# (\S+)\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    for path, code in new:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(code, "utf-8")
    tests = [path for path, _ in new if path.startswith("tests/")]
    assert tests, f"{title} shows no test"
    # Its properties run over the new step; the other sections test all that they add.
    tests += ["tests/unit/library/steps/test_every_filter.py"] if title == "Add a step" else []
    for path in tests:
        if not (tmp_path / path).exists():
            shutil.copy(ROOT / path, tmp_path / path)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        "/dev/null",
        "--rootdir",
        ".",
        "-p",
        "no:cacheprovider",
        *tests,
    ]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def apply(diff: str, folder: Path) -> None:
    """Applies a diff without line numbers: each hunk's old lines must stand exactly once below the hunk before."""
    for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        path = folder / name
        text, begin = path.read_text("utf-8"), 0
        for hunk in body.split("@@\n"):
            lines = [line or " " for line in hunk.splitlines()]
            old = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
            new = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
            at = f"\n{text}".find(f"\n{old}", begin)
            assert at >= 0, f"CONTRIBUTING.md expects other lines in {name}:\n{old}"
            text = text[:at] + new + text[at + len(old) :]
            begin = at + len(new)
        path.write_text(text, "utf-8")
