"""What the base installation does without its extras, and what it says where one is missing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest

from library.extras import EXTRAS, MissingPackage, check_installed
from tests import ROOT

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

#: Runs before a command: the packages of the extras cannot be imported, as where they are not installed.
_BASE_ONLY = """
import contextlib, io, json, sys
from library.extras import EXTRAS
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from jobs.cli.app import run
"""
_NEEDS = {
    "train recipe.yaml --out out": "train",
    "plan recipe.yaml": "train",
    "evaluate bundle dataset": "train",
    "predict bundle dataset out": "train",
    "models": "train",
    "demo": "train",
    "serve bundle": "serve",
    "export bundle": "serve",
}


def _without_extras(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", _BASE_ONLY + code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _distribution(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=;! ]", requirement)[0]).lower()


@pytest.mark.parametrize("extra", ["train", "serve"])
def test_every_requirement_of_an_extra_is_named_by_its_advice(extra: str) -> None:
    base = {_distribution(requirement) for requirement in _PROJECT["dependencies"]}
    requirements = {_distribution(each) for each in _PROJECT["optional-dependencies"][extra]} - base
    named = {
        _distribution(distribution)
        for package, distributions in packages_distributions().items()
        if package in EXTRAS
        for distribution in distributions
    }
    assert requirements <= named
    assert not base & named


def test_filtering_imports_no_package_of_an_extra() -> None:
    modules = "jobs.ingest, jobs.filter, jobs.augment, jobs.show, jobs.info, jobs.shards.runner, jobs.shards.worker"
    shown = _without_extras(f"import {modules}, library.steps\nrun(['--help'])\nrun(['steps'])\n")
    assert "ingest" in shown
    assert "gaussian_blur(" in shown


def test_the_command_line_starts_without_slow_imports() -> None:
    shown = _without_extras("print(sorted({'ray', 'torch', 'cv2', 'pyarrow'} & {*sys.modules}))")
    assert shown == "[]\n"


def test_a_command_whose_extra_is_missing_says_what_to_install() -> None:
    code = f"""
def said(command):
    with contextlib.redirect_stderr(io.StringIO()) as text:
        code = run(command.split())
    return [code, text.getvalue()]
print(json.dumps({{command: said(command) for command in {list(_NEEDS)}}}))
"""
    answers = json.loads(_without_extras(code))
    for command, extra in _NEEDS.items():
        code, text = answers[command]
        assert code == 2, (command, text)
        name = command.split()[0]
        assert re.fullmatch(
            rf"striate: `striate {name}` needs the package \w+: pip install 'striate\[{extra}\]'\n", text
        )


def test_a_missing_package_is_named_before_any_work() -> None:
    check_installed("torch", "striate train")
    with pytest.raises(MissingPackage, match=r"`striate x` needs the package nothing: pip install 'striate\[train\]'"):
        raise MissingPackage("striate x", "nothing", "train")
