import ast
import io
import json
from pathlib import Path

import pytest
from rich.table import Table

from cluster.console import Terminal, json_text, say, visible
from tests import ROOT

HOSTILE = "cat\x1b[2K\x1b]0;title\x07\r\x9b31m\u202egpj\udcff"
SHOWN = "cat\\x1b[2K\\x1b]0;title\\x07\\x0d\\x9b31m\\u202egpj\\udcff"


def test_control_characters_of_a_name_are_shown_and_never_sent(capsys: pytest.CaptureFixture[str]) -> None:
    say("class", HOSTILE)
    assert capsys.readouterr().out == f"class {SHOWN}\n"
    assert visible(f"a\n{HOSTILE}\tb") == f"a\\x0a{SHOWN}\\x09b"


def test_letters_of_every_script_and_line_breaks_of_a_message_stay(capsys: pytest.CaptureFixture[str]) -> None:
    text = "Kätzchen 犬 نمی‌خواهم 👩‍🔬\n\tnext"
    say(text)
    assert capsys.readouterr().out == f"{text}\n"


def test_rich_sends_its_own_styles_but_no_escapes_from_names() -> None:
    out = io.StringIO()
    console = Terminal(file=out, force_terminal=True, color_system="standard", width=100)
    table = Table(box=None, title="[bold]classes[/]")
    table.add_column("class", style="red")
    table.add_row(HOSTILE[:-1])
    console.print(table)
    text = out.getvalue()
    assert "\x1b[31m" in text
    assert "cat\\x1b[2K\\x1b]0;title" in text
    assert "\x1b[2K" not in text
    assert "\x9b" not in text


def test_a_document_for_programs_is_valid_and_holds_no_control_character() -> None:
    text = json_text({"classes": {HOSTILE: 1, "犬\n": 2}})
    assert json.loads(text) == {"classes": {HOSTILE: 1, "犬\n": 2}}
    assert not [char for char in text if not char.isprintable() and char != "\n"]


def test_commands_print_only_through_the_console() -> None:
    other = set[str]()
    for path in (path for folder in ("jobs", "cluster", "serve") for path in (ROOT / folder).rglob("*.py")):
        if path.relative_to(ROOT) == Path("cluster/console.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("print", "Console", "rich.print", "typer.echo", "sys.stdout.write", "sys.stderr.write"):
                other.add(f"{path.relative_to(ROOT)}:{node.lineno}: {called}")  # pyright: ignore
    assert other == set()
