"""What the base installation does without its extras, and what it says where one is missing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from library.extras import EXTRAS, check_installed
from tests import ROOT
from tests.bundles import make_bundle
from tests.datasets import bar
from tests.picture_examples import ingest, measure, write_files

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

#: Runs before a command: some packages cannot be found, as where they are not installed.
_HIDING = """
import contextlib, io, json, sys
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
from jobs.cli.app import run
def said(command):
    with contextlib.redirect_stderr(io.StringIO()) as text:
        code = run(command.split())
    return [code, text.getvalue()]
"""
#: What the other extra brings and this one does not, neither directly nor through its packages.
_LACKS = {
    "train": {package for package, extra in EXTRAS.items() if extra == "serve"} - {"anyio"},
    "serve": {"sklearn", "matplotlib", "tensorboard", "tensorboardX"},
}
_NEEDS = {
    "train recipe.yaml --out out": "train",
    "plan recipe.yaml": "train",
    "evaluate bundle dataset": "train",
    "predict bundle dataset out": "train",
    "models": "train",
    "demo": "train,serve",
    "serve bundle": "serve",
    "export bundle": "serve",
}


def _without(packages: Iterable[str], code: str) -> str:
    script = _HIDING.replace("{hidden}", repr(sorted(packages))) + code
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


def _without_extras(code: str) -> str:
    return _without(EXTRAS, code)


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


def test_the_extra_that_is_advised_brings_the_package() -> None:
    extras = {
        name: {_distribution(each) for each in requirements}
        for name, requirements in _PROJECT["optional-dependencies"].items()
    }
    for package, distributions in packages_distributions().items():
        names = {_distribution(distribution) for distribution in distributions}
        if package in EXTRAS and names & (extras["train"] | extras["serve"]):
            assert names & extras[EXTRAS[package]], package


def test_filtering_imports_no_package_of_an_extra() -> None:
    inspection = "jobs.inspection.show, jobs.inspection.info"
    modules = f"jobs.ingest, jobs.filter, jobs.augment, {inspection}, jobs.shards.runner, jobs.shards.worker"
    shown = _without_extras(f"import {modules}, library.steps\nrun(['--help'])\nrun(['steps'])\n")
    assert "ingest" in shown
    assert "gaussian_blur(" in shown


def test_choosing_imports_no_package_of_an_extra(tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    pictures = {f"{kind}/{seed}.png": bar(kind, seed) for kind in range(2) for seed in range(2)}
    measure(dataset, ingest(write_files(tmp_path / "pictures", pictures), dataset))
    shown = _without_extras(f"""
import jobs.choosing.ablate, jobs.choosing.dedup, library.work.measure_shard, library.work.select_shard
import jobs.exchange.convert, jobs.exchange.merge, jobs.exchange.remove, jobs.exchange.trace
from library.evaluation.report.templates import template
for folder, page in (("duplicates", "gallery.html"), ("labels", "audit.html"), ("measures", "measures.html")):
    print(template("library.choosing." + folder, page).name)
for command in ("measure {dataset} --dry-run", "split {dataset} {tmp_path}/parts --folds 2 --dry-run",
                "audit {dataset} --model patches --report {tmp_path}/audit --dry-run"):
    print(said(command))
print(said("measure {dataset} --report {tmp_path}/page"))
""")
    assert {"gallery.html", "audit.html", "measures.html"} <= {*shown.split()}
    assert shown.count("[0, '']") == 3, shown
    assert "`striate measure --report` needs the package matplotlib: pip install 'striate[train]'" in shown


def test_the_command_line_starts_without_slow_imports() -> None:
    shown = _without_extras("print(sorted({'ray', 'torch', 'cv2', 'pyarrow'} & {*sys.modules}))")
    assert shown == "[]\n"


def test_a_command_whose_extra_is_missing_says_what_to_install() -> None:
    code = f"print(json.dumps({{command: said(command) for command in {list(_NEEDS)}}}))"
    answers = json.loads(_without_extras(code))
    for command, extra in _NEEDS.items():
        code, text = answers[command]
        assert code == 2, (command, text)
        name = command.split()[0]
        assert re.fullmatch(
            rf"striate: `striate {name}` needs the package \w+: pip install 'striate\[{extra}\]'\n", text
        )


def test_a_missing_package_is_named_before_any_work() -> None:
    shown = _without_extras("""
from library.extras import MissingPackage, check_installed
try:
    check_installed("torch", "striate x")
except MissingPackage as error:
    print(error)
""")
    assert shown == "`striate x` needs the package torch: pip install 'striate[train]'\n"
    check_installed("torch", "striate train")


def test_a_large_median_of_uint16_needs_no_extra() -> None:
    shown = _without_extras("""
import numpy as np
from library.pipeline import Pipeline
print(Pipeline.parse("median_blur(size=7)").apply(np.ones((8, 8, 1), np.uint16)).max())
""")
    assert shown == "1\n"


def test_train_alone_has_what_the_runtime_of_a_cpu_needs(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    shown = _without(
        _LACKS["train"],
        f"""
import jobs.predict
from library.bundle.bundle import Bundle
from library.runtimes.graph import onnx_model
from library.runtimes import onnx_session
print(type(onnx_model(Bundle.load({bundle!r}))[1]).__name__)
print(said("serve bundle")[1])
print(said("demo out")[1])
""",
    )
    assert "ModelProto" in shown
    assert "`striate serve` needs the package fastapi: pip install 'striate[serve]'" in shown
    assert "`striate demo` needs the package fastapi: pip install 'striate[train,serve]'" in shown


def test_serve_alone_imports_all_that_serving_needs() -> None:
    shown = _without(
        _LACKS["serve"],
        """
import serve.gateway.gateway, serve.launch.deploy, serve.launch.server, serve.replica.replica
from library.runtimes import export, onnx_session
print(said("evaluate bundle dataset")[1])
""",
    )
    assert "pip install 'striate[train]'" in shown
