"""Tests that every benchmark can be imported and describes its arguments; none of them is run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
MODULES = sorted(
    ".".join(path.relative_to(BENCHMARKS.parent).with_suffix("").parts)
    for path in BENCHMARKS.rglob("*.py")
    # Those in `programs` import what has an environment of its own.
    if path.name != "__init__.py" and path.parent.name != "programs"
)
PROGRAMS = [name for name in MODULES if "__main__" in (BENCHMARKS.parent / f"{name.replace('.', '/')}.py").read_text()]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_of_the_benchmarks_can_be_imported(name: str) -> None:
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_benchmark_describes_its_arguments(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as exit_info:
        module.main()
    assert exit_info.value.code == 0
    assert str(module.__doc__).partition("\n")[0] in capsys.readouterr().out
