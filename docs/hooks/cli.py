"""Writes docs/cli.md from the commands themselves: `.venv/bin/python docs/hooks/cli.py`.

tests/unit/test_documents.py compares the page with what `reference` returns.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer.main

from jobs.cli.app import app

_PAGE = Path(__file__).parents[1] / "cli.md"
_KINDS = {str: "TEXT", int: "INTEGER", float: "NUMBER", Path: "PATH"}
_INTRODUCTION = """# Commands

Every command of `striate` with its arguments and options. `striate COMMAND --help` shows the same in a terminal.

`--json` prints one JSON document on stdout; everything else goes to stderr. Exit codes: 0 for success, 1 for a failure,
2 for misuse, 130 for Ctrl-C, 143 for SIGTERM; `striate serve` ends with 0 at both.

This page is written by `docs/hooks/cli.py`; change the commands, not the page.
"""


def reference() -> str:
    """The whole page as Markdown: one section a command, in alphabetical order."""
    group: Any = typer.main.get_command(app)
    sections = [_INTRODUCTION]
    for path, command in _commands(group, "striate"):
        sections.append(_section(path, command))
    return "\n".join(sections)


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _section(path: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    usage = " ".join([path, *(_metavar(each) for each in arguments), *(["[OPTIONS]"] if options else [])])
    lines = [f"## {path}", "", f"    {usage}", "", *_help(command)]
    if arguments:
        lines += ["", "| argument | |", "|---|---|"]
        lines += [f"| `{_cell(_metavar(each))}` | {_cell(each.help)} |" for each in arguments]
    if options:
        lines += ["", "| option | default | |", "|---|---|---|"]
        lines += [f"| {_names(each)} | {_default(each)} | {_cell(each.help)} |" for each in options]
    return "\n".join(lines) + "\n"


def _help(command: Any) -> list[str]:
    """The docstring, with its examples (lines that begin with `striate`) as code."""
    lines = inspect.cleandoc(command.help or "").splitlines()
    return [f"    {line}" if line.startswith("striate ") else line for line in lines]


def _metavar(argument: Any) -> str:
    if argument.metavar:
        return str(argument.metavar)
    name = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _names(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in sorted([*option.opts, *option.secondary_opts], key=len, reverse=True))
    if option.is_flag:
        return names
    return f"{names} {_takes(option.type_descriptor.annotation)}" + (", may be repeated" if option.multiple else "")


def _takes(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) is list:
        return _takes(get_args(annotation)[0])
    return _KINDS[annotation]


def _default(option: Any) -> str:
    if isinstance(option.show_default, str):
        return _cell(option.show_default)
    if option.required:
        return "(required)"
    default = option.default
    if default is None or default is False or default == () or default == "" or callable(default):
        return ""
    return f"`{getattr(default, 'value', default)}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    _PAGE.write_text(reference(), encoding="utf-8")
