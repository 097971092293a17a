"""Prints everything that commands print, so that no name in it can control the terminal.

Classes, keys and files may have any name, and archives and bundles may come from strangers. An escape sequence in a
name could colour, overwrite or hide lines, so control characters are written as `\\x1b` and never sent.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from typing import IO, Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# Control characters of both ranges, line separators, marks that change the direction of writing, and lone surrogates,
# which no terminal's encoding can hold.
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_IN_TEXT = re.compile(f"[{_CONTROLS}]")
_IN_A_NAME = re.compile(f"[\t\n{_CONTROLS}]")

#: The option that every command has.
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; the rest goes to stderr.")]


def visible(name: str) -> str:
    """Returns a name on one line; control characters and line breaks are written as `\\x1b` and `\\x0a`."""
    return _IN_A_NAME.sub(_written_out, name)


def say(*values: object, file: IO[str] | None = None, end: str = "\n", flush: bool = False) -> None:
    """Prints like `print`, but writes control characters as `\\x1b`; line breaks and tabs are kept.

    Args:
        values: values to print, separated by spaces.
        file: where to print; standard output when None.
        end: text printed after the values.
        flush: whether to flush the file.
    """
    text = _IN_TEXT.sub(_written_out, " ".join(map(str, values)))
    print(text, end=end, file=sys.stdout if file is None else file, flush=flush)


def json_text(value: object) -> str:
    """Returns a JSON document in which all control characters are escaped."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return _IN_TEXT.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class Terminal(Console):
    """Rich's console with control characters written as `\\x1b`; Rich's own styles still work."""

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, highlight=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        # Before its width is measured; `render` handles everything that is not a string.
        return super().render_str(_IN_TEXT.sub(_written_out, text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=_IN_TEXT.sub(_written_out, segment.text))


def encode_anything() -> None:
    """Makes standard output and error escape characters that their encoding cannot hold, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
