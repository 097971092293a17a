"""Parses the language of pipelines and models: `name(arg, key=value) | name | ...`.

The text is parsed as a Python expression and never evaluated: `|` is `ast.BitOr`, a name or a call is a call, and every
other argument is read by `ast.literal_eval`. An argument may be a call or a chain of calls itself, as in
`sometimes(0.5, gaussian_blur(sigma=1))`.
"""

from __future__ import annotations

import ast
import difflib
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from library.errors import GrammarError

MAX_TEXT_CHARS = 20_000

Value: TypeAlias = "bool | int | float | str | bytes | tuple[Value, ...] | Chain | None"


@dataclass(frozen=True)
class Span:
    """A part of the text: its offset and length, in characters."""

    offset: int
    length: int


@dataclass(frozen=True)
class Call:
    """One call as written, with the spans of its name and arguments."""

    name: str
    args: tuple[Value, ...]
    kwargs: Mapping[str, Value]
    span: Span
    arg_spans: tuple[Span, ...]
    kwarg_spans: Mapping[str, Span]


@dataclass(frozen=True)
class Chain:
    """Calls joined by `|`, with the whole text they were parsed from (for error messages)."""

    calls: tuple[Call, ...]
    text: str


def parse(text: str) -> Chain:
    """Parses `text` into calls.

    Raises:
        GrammarError: points at the first part that is not `name(...) | name(...)`.
    """
    if not text.strip():
        raise GrammarError("the pipeline is empty; write at least one step, e.g. 'grayscale'", text, 0)
    if len(text) > MAX_TEXT_CHARS:
        message = f"the pipeline is {len(text)} characters long; the limit is {MAX_TEXT_CHARS}"
        raise GrammarError(message, text[:80], 0)
    surrogate = re.search("[\ud800-\udfff]", text)
    if surrogate:
        raise GrammarError("not a pipeline: this byte is not valid UTF-8", text, surrogate.start())
    return _Reader(text).chain()


def format_call(name: str, arguments: Mapping[str, object]) -> str:
    """The canonical text of a call: all arguments by keyword, in the order of `arguments`."""
    if not arguments:
        return name
    return f"{name}({', '.join(f'{key}={format_value(value)}' for key, value in arguments.items())})"


def format_value(value: object) -> str:
    """The canonical text of an argument, which `parse` reads back as an equal value."""
    if isinstance(value, str):
        return '"' + value.translate(_ESCAPES) + '"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(format_value(item) for item in value) + "]"  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, None | bool | int | float | bytes):
        return repr(value)
    return str(value)  # a nested step or pipeline


def nearest(name: str, choices: Iterable[str]) -> str:
    """An error message's suffix: ` (did you mean 'x'?)` for a close choice, else all choices if at most 12."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f" (one of: {', '.join(known)})" if 0 < len(known) <= 12 else ""


_ESCAPES = {code: f"\\x{code:02x}" for code in range(32)} | {34: '\\"', 92: "\\\\", 10: "\\n", 9: "\\t", 13: "\\r"}


class _Reader:
    """Turns Python's syntax tree into calls, with errors that point into the text."""

    def __init__(self, text: str) -> None:
        self.text = text
        # The parentheses let a pipeline span several lines, as in YAML.
        # Python also ends a line at "\r".
        lines = re.split("(?<=\n)|(?<=\r)(?!\n)", f"({text}\n)")
        self._lines = [line.encode() for line in lines]
        self._line_starts = [0, *itertools.accumulate(map(len, lines))]

    def chain(self) -> Chain:
        try:
            tree = ast.parse(f"({self.text}\n)", mode="eval")
        except SyntaxError as error:
            error = self._innermost(error)
            offset = self._offset(error.lineno or 1, None, error.offset or 1)
            problem = error.msg.removesuffix(
                ". Perhaps you forgot a comma?"
            )  # misleading: a comma does not make it a pipeline
            message = f"not a pipeline: {problem}; steps are joined by '|', e.g. 'grayscale | canny'"
            raise GrammarError(message, self.text, offset) from None
        except (ValueError, MemoryError, RecursionError):
            raise GrammarError("not a pipeline: nested too deeply, or it has a null character", self.text, 0) from None
        if (tree.body.lineno, tree.body.col_offset) == (1, 0):  # the text closes our own parenthesis
            raise GrammarError("not a pipeline: unmatched ')'", self.text, max(0, self.text.find(")")))
        try:
            return self._chain(tree.body)
        except RecursionError:
            raise GrammarError("not a pipeline: nested too deeply", self.text, 0) from None

    def _innermost(self, error: SyntaxError) -> SyntaxError:
        """The error without our closing parenthesis if it would point at our opening one: the text leaves one open."""
        if (error.lineno, error.offset) == (1, 1):
            try:
                ast.parse(f"({self.text}", mode="eval")
            except SyntaxError as inner:
                return inner
        return error

    def _chain(self, node: ast.expr) -> Chain:
        calls: list[Call] = []
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            calls.append(self._call(node.right))
            node = node.left
        calls.append(self._call(node))
        return Chain(tuple(reversed(calls)), self.text)

    def _call(self, node: ast.expr) -> Call:
        if isinstance(node, ast.Name):
            return Call(node.id, (), {}, self._span(node), (), {})
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            message = f"expected a step such as 'grayscale' or 'resize(224)', found '{self._source(node)}'"
            raise GrammarError(message, self.text, *self._place(node))
        kwargs: dict[str, Value] = {}
        spans: dict[str, Span] = {}
        for keyword in node.keywords:
            if keyword.arg is None or keyword.arg in kwargs:
                problem = "'**' is not allowed" if keyword.arg is None else f"'{keyword.arg}' is given twice"
                raise GrammarError(problem, self.text, *self._place(keyword))
            kwargs[keyword.arg] = self._value(keyword.value)
            spans[keyword.arg] = self._span(keyword)
        return Call(
            node.func.id,
            tuple(self._value(arg) for arg in node.args),
            kwargs,
            self._span(node.func),
            tuple(self._span(arg) for arg in node.args),
            spans,
        )

    def _value(self, node: ast.expr) -> Value:
        if isinstance(node, ast.Name | ast.Call) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr)):
            return self._chain(node)
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            message = f"'{self._source(node)}' is not a plain value; use a number, 'text', True, False or a list"
            raise GrammarError(message, self.text, *self._place(node)) from None
        try:
            return _frozen(value)
        except TypeError as error:
            raise GrammarError(str(error), self.text, *self._place(node)) from None

    def _source(self, node: ast.expr) -> str:
        offset, length = self._place(node)
        return re.sub(r"\s+", " ", self.text[offset : offset + min(length, 40)])

    def _span(self, node: ast.expr | ast.keyword) -> Span:
        return Span(*self._place(node))

    def _place(self, node: ast.expr | ast.keyword) -> tuple[int, int]:
        start = self._offset(node.lineno, node.col_offset, None)
        end = self._offset(node.end_lineno or node.lineno, node.end_col_offset or node.col_offset, None)
        return start, max(1, end - start)

    def _offset(self, line: int, byte_column: int | None, char_column: int | None) -> int:
        """The offset in the text, in characters.

        Python counts lines from 1, columns of nodes in bytes from 0, and columns of syntax errors in characters from 1.
        """
        line = min(line, len(self._lines))
        if byte_column is not None:
            column = len(self._lines[line - 1][:byte_column].decode(errors="replace"))
        else:
            column = (char_column or 1) - 1
        offset = self._line_starts[line - 1] + column - 1  # the opening parenthesis is ours
        return max(0, min(offset, len(self.text.rstrip())))


def _frozen(value: object) -> Value:
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, int) and value.bit_length() > 64:
        raise TypeError("a whole number of more than 64 bits is not allowed")
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        raise TypeError("text with half a surrogate pair is not allowed because it cannot be stored as UTF-8")
    if isinstance(value, None | bool | int | float | str | bytes):
        return value
    raise TypeError(f"a {type(value).__name__} is not allowed; use a number, 'text', True, False or a list")
