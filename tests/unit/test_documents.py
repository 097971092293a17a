"""Documents and messages name files, tests, options and commands that exist."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import typer.main

from jobs.cli.app import app
from tests import ROOT

DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "k8s/README.md", ROOT / "benchmarks/README.md"]
)


#: Where the paths of a document may start: the repository, its tests (security.md), or the document's own folder.
PATHS = re.compile(
    r"(?<![\w./-])((?:\.ci|benchmarks|cluster|docs|e2e|jobs|k8s|library|ray|serve|tests|unit)/[\w.*/-]*[\w*])"
)
#: A folder that kubernetes.md has the reader make.
READERS_OWN = "k8s/overlays/mine"
COMMANDS = cast("Any", typer.main.get_command(app)).commands
MODULES = re.compile(r"`((?:library|cluster|jobs|serve)(?:\.\w+)+)`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_test_that_a_document_names_exists(document: Path) -> None:
    named = re.findall(r"`(?:tests/)?([a-z0-9_/]+\.py)::(test_\w+)`", document.read_text("utf-8"))
    assert len(named) > 50 or document.name != "security.md"
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text("utf-8"), f"{file}::{name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_to_files_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text("utf-8"))
    for link in links:
        assert "://" in link or (document.parent / link).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_paths_and_modules_that_a_document_names_exist(document: Path) -> None:
    text = document.read_text("utf-8")
    starts = (ROOT, ROOT / "tests", document.parent)
    added = re.findall(r"^```python\n# (\S+)$", text, flags=re.MULTILINE)  # by the commits of CONTRIBUTING.md
    paths = {path for path in PATHS.findall(text) if not path.startswith(READERS_OWN)} - {*added}
    missing = {path for path in paths if not any(any(start.glob(path)) for start in starts)}
    missing |= {name for name in MODULES.findall(text) if not _is_module_or_attribute(name)}
    assert missing == set()


def _is_module_or_attribute(name: str) -> bool:
    if name.endswith(".py"):
        return True  # a file's name, which the paths cover
    parent, _, last = name.rpartition(".")
    module = ROOT / name.replace(".", "/")
    if module.is_dir() or module.with_suffix(".py").exists():
        return True
    holder = ROOT / parent.replace(".", "/")
    file = holder / "__init__.py" if holder.is_dir() else holder.with_suffix(".py")
    return file.exists() and re.search(rf"\b{last}\b", file.read_text("utf-8")) is not None


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    reference = runpy.run_path(str(ROOT / "docs/hooks/cli.py"))["reference"]
    written = (ROOT / "docs/cli.md").read_text("utf-8")
    assert written == reference(), "write it again: .venv/bin/python docs/hooks/cli.py"


def test_the_step_of_the_page_on_plugins_works_as_written(tmp_path: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/plugins.md").read_text("utf-8"), re.M | re.S)
    (tmp_path / "my_steps.py").write_text(code, "utf-8")
    script = """
import numpy as np
from library.pipeline import Pipeline
from library.steps.plugins import load
load(["my_steps.py"])
assert Pipeline.parse("darken(by=4)").apply(np.full((2, 2, 3), 255, np.uint8)).max() == 63
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)


def test_the_page_on_plugins_names_every_command_that_takes_them() -> None:
    (listed,) = re.findall(r"^(`[^.]*?) take `--plugin`", (ROOT / "docs/plugins.md").read_text("utf-8"), re.M | re.S)
    taking = [name for name, command in COMMANDS.items() if any("--plugin" in option.opts for option in command.params)]
    assert sorted(re.findall(r"`([a-z-]+)`", listed)) == sorted(taking)


def test_the_page_on_performance_names_what_make_bench_runs() -> None:
    (listed,) = re.findall(r"`make bench` runs ([^;]*);", (ROOT / "docs/performance.md").read_text("utf-8"))
    run = re.findall(r"\$\(BIN\)/python benchmarks/\w+/(\w+)\.py", (ROOT / "Makefile").read_text("utf-8"))
    assert re.findall(r"`(\w+)`", listed) == run


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 8_000


def test_every_variable_that_is_read_or_set_is_listed() -> None:
    listed = (ROOT / "docs/environment.md").read_text("utf-8")
    code = "".join(
        path.read_text("utf-8") for folder in ("cluster", "jobs", "serve") for path in (ROOT / folder).rglob("*.py")
    )
    used = set(re.findall(r"""["']((?:RAY|STRIATE)_\w+|OMP_WAIT_POLICY)["']""", code))
    assert len(used) > 25
    missing = {name for name in used if f"`{name}`" not in listed and not name.startswith("RAY_SERVE_HAPROXY_")}
    assert missing == set()


def test_every_option_that_a_message_names_is_one_of_its_command() -> None:
    named = 0
    for path in (path for folder in ("cluster", "jobs", "library", "serve") for path in (ROOT / folder).rglob("*.py")):
        for text in _texts(ast.parse(path.read_text("utf-8"))):
            named += _check_options(text, path)
    assert named > 20


def test_every_option_that_a_document_names_is_one_of_its_command() -> None:
    named = sum(_check_options(path.read_text("utf-8").replace("\\\n", " "), path) for path in DOCUMENTS)
    assert named > 50


def _check_options(text: str, path: Path) -> int:
    """Checks the options of each `striate COMMAND ...` in a text; returns how many there are."""
    named = 0
    for name, line in re.findall(r"\bstriate ([a-z]+)\b((?: (?!-- )[^`;\n]*)?)", text):
        command = COMMANDS.get(name)
        options = re.findall(r"(?<![\w-])--[a-z][a-z-]*", line.partition(" -- ")[0])
        if command is None or hasattr(command, "commands"):
            continue
        assert {*options} <= {each for option in command.params for each in option.opts}, f"{path}: {line}"
        named += len(options)
    return named


def _texts(code: ast.AST) -> Iterator[str]:
    """Strings as they are when the code runs; what is filled in is left out."""
    for node in ast.walk(code):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
