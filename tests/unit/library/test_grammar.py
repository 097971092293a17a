"""The grammar of pipelines: accepted and refused texts, and where the caret points."""

from __future__ import annotations

import math
import pickle
import string
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from library.errors import GrammarError, UsageError
from library.grammar import MAX_TEXT_CHARS, Chain, format_call, format_value, nearest, parse

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.binary()
SCALARS |= st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8)
# `_` avoids Python's keywords, which cannot be names of steps.
NAMES = st.text(string.ascii_lowercase + "_", max_size=8).map(lambda name: f"{name}_")
CALLS = st.tuples(NAMES, st.dictionaries(NAMES, VALUES, max_size=4))


def marked(error: GrammarError) -> str:
    """The text above the caret and its tail, taken from the message as a person reads it."""
    line, marks = str(error).split("\n")[-2:]
    start = marks.index("^")
    assert marks.strip() == "^" + "~" * (len(marks) - start - 1)
    return line[start : len(marks)]


def refused(text: str) -> GrammarError:
    with pytest.raises(GrammarError) as raised:
        parse(text)
    return raised.value


@given(st.lists(CALLS, min_size=1, max_size=5))
def test_the_canonical_text_is_read_back_as_the_same_calls(calls: list[tuple[str, dict[str, object]]]) -> None:
    chain = parse(" | ".join(format_call(name, arguments) for name, arguments in calls))
    assert [(call.name, call.args, dict(call.kwargs)) for call in chain.calls] == [(name, (), kw) for name, kw in calls]


@given(VALUES)
@example(-0.0)
@example(5e-324)
@example("\u2028\x85\x0b\x00'\"\\\r\n\t\U0001f600")
@example(True)
@example(())
def test_every_value_survives_its_text_with_its_type(value: object) -> None:
    (call,) = parse(f"step({format_value(value)})").calls
    assert call.args == (value,)
    assert repr(call.args) == repr((value,)), "1, 1.0 and True are equal but not the same"


@pytest.mark.filterwarnings("ignore:.*invalid escape sequence")
@given(st.text(max_size=60) | st.text("()[]|=,'\"# \\\n\r\t*-.ab1_{}:", max_size=40))
@example("a) | (b")
@example("a)\n(b")
@example("\\")
@example("\x00")
@example("a\ud800")
def test_any_text_is_parsed_or_refused_at_a_place_in_it(text: str) -> None:
    try:
        chain = parse(text)
    except GrammarError as error:
        refusal = error
    else:
        for call in chain.calls:
            assert text[call.span.offset : call.span.offset + call.span.length].isidentifier()
        return
    assert refusal.text == text
    assert 0 <= refusal.offset <= len(text)
    assert refusal.length >= 1
    assert refusal.message
    marked(refusal)


def test_names_spaces_lines_and_comments_are_as_in_python() -> None:
    text = """
        grayscale            # to one channel
        | blur(2,
               border="wrap")
        | resize([224, 0x10])
    """
    calls = parse(text).calls
    assert [call.name for call in calls] == ["grayscale", "blur", "resize"]
    assert (calls[1].args, calls[1].kwargs) == ((2,), {"border": "wrap"})
    assert calls[2].args == ((224, 16),)


def test_an_argument_may_be_a_call_or_a_chain_of_calls() -> None:
    (call,) = parse("sometimes(0.5, blur(sigma=1) | invert, other=sharpen)").calls
    assert call.args[0] == 0.5
    assert isinstance(call.args[1], Chain)
    assert [inner.name for inner in call.args[1].calls] == ["blur", "invert"]
    assert isinstance(call.kwargs["other"], Chain)


def test_three_hundred_steps_are_parsed() -> None:
    assert len(parse(" | ".join(["grayscale"] * 300)).calls) == 300


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("a | b.c", "b.c", "expected a step"),
        ("a & b", "a & b", "expected a step"),
        ("a | 5", "5", "expected a step"),
        ("a | b(x={1: 2})", "{1: 2}", "dict is not allowed"),
        ("a | b({1, 2})", "{1, 2}", "set is not allowed"),
        ("a(1j)", "1j", "complex is not allowed"),
        ("a(...)", "...", "ellipsis is not allowed"),
        ("a(x=-b)", "-b", "not a plain value"),
        ("a(x=1, x=2)", "x=2", "'x' is given twice"),
        ("a(**{'x': 1})", "**{'x': 1}", "'**' is not allowed"),
        ("a(*[1])", "*[1]", "not a plain value"),
        ("a(f'{b}')", "f'{b}'", "not a plain value"),
        ("a(1 + 1)", "1 + 1", "not a plain value"),
        ("a('\\ud800')", "'\\ud800'", "surrogate"),
        (f"a({hex(2**64)})", hex(2**64), "more than 64 bits"),
        ("naïve('日本', x={1})", "{1}", "set is not allowed"),
        ("a('é日本\U0001f600')\n | b('ü', y=b'x' + 1)", "b'x' + 1", "not a plain value"),
        ("a\r\n| b.c", "b.c", "expected a step"),
        ("a\r| b.c", "b.c", "expected a step"),
        ("a\t|\tb.c", "b.c", "expected a step"),
        ("a('\U0001f600') || b", "|", "not a pipeline"),
        ("a | b(c(1) | d", "(", "'(' was never closed"),
        ("a(x=1, 2)", ")", "positional argument follows keyword"),
    ],
)
def test_the_caret_points_at_the_mistake(text: str, place: str, message: str) -> None:
    error = refused(text)
    assert message in str(error)
    assert marked(error) == place


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("a |", 3),
        ("a || b", 3),
        ("| a", 0),
        ("a b", 0),
        ("a(", 1),
        ("a) | (b", 1),
        ("a)\n(b", 3),
        ("a; b", 1),
        ("a\ud800", 1),
    ],
)
def test_text_that_is_not_an_expression_is_refused_at_the_mistake(text: str, offset: int) -> None:
    error = refused(text)
    assert "not a pipeline" in error.message
    assert error.offset == offset


@pytest.mark.parametrize("text", ["", "   ", "\n\t\n"])
def test_an_empty_text_says_what_to_write(text: str) -> None:
    assert "write at least one step, e.g. 'grayscale'" in str(refused(text))


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch {marker}')",
        "a(__import__('pathlib').Path('{marker}').touch())",
        "a(x=open('{marker}', 'w'))",
        "(lambda: open('{marker}', 'w'))()",
        "a(x=[open('{marker}', 'w') for _ in [1]])",
        "a(*[open('{marker}', 'w')])",
        "a(**{{'x': open('{marker}', 'w')}})",
        "a(f\"{{open('{marker}', 'w')}}\")",
        "a(x := open('{marker}', 'w'))",
        "a if open('{marker}', 'w') else b",
        "a or open('{marker}', 'w')",
        "(yield open('{marker}', 'w'))",
        "a[open('{marker}', 'w')]",
        "a @ open('{marker}', 'w')",
    ],
)
def test_code_is_never_run(text: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    try:
        chain = parse(text.format(marker=marker))
    except GrammarError:
        pass
    else:  # a call as an argument is parsed as a step named `open`
        assert isinstance(chain.calls[0].kwargs["x"], Chain)
    assert not marker.exists()


@pytest.mark.parametrize(
    "text",
    [
        "(" * 50_000,
        "(" * 50_000 + ")" * 50_000,
        "(" * 9_000 + "a" + ")" * 9_000,
        "a(" + "[" * 9_000 + "]" * 9_000 + ")",
        "a(" + "-" * 9_000 + "1)",
        "-" * 9_000 + "1",
        "a" + ".a" * 9_000,
        "a(" + "1+" * 9_000 + "1)",
        "a" * (MAX_TEXT_CHARS + 1),
        "a(1" + "0" * 9_000 + ")",
        "a(0x" + "f" * 9_000 + ")",
    ],
    ids=lambda text: f"{text[:6]} {len(text)}",
)
def test_too_deep_or_too_long_text_is_refused_with_a_short_message(text: str) -> None:
    assert len(str(refused(text))) < 800


def test_a_very_long_line_is_shown_only_around_the_mistake() -> None:
    error = refused("grayscale | " * 500 + "mistake.here" + " | grayscale" * 500)
    assert marked(error) == "mistake.here"
    assert max(map(len, str(error).split("\n"))) < 200


def test_a_pickled_error_keeps_its_parts() -> None:
    error = refused("a | b(x={})")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, UsageError)
    assert (type(again), str(again)) == (GrammarError, str(error))
    assert (again.message, again.text, again.offset, again.length) == (error.message, error.text, 8, 2)


def test_the_nearest_name_is_suggested_or_a_few_are_listed() -> None:
    assert nearest("gausian_blur", ["gaussian_blur", "canny"]) == " (did you mean 'gaussian_blur'?)"
    assert nearest("zzz", ["b", "a"]) == " (one of: a, b)"
    assert nearest("zzz", map(str, range(50))) == ""


def test_numbers_are_written_with_all_their_digits() -> None:
    assert format_call("a", {"x": 0.1 + 0.2, "y": math.pi, "z": [1, (2.0, None)]}) == (
        "a(x=0.30000000000000004, y=3.141592653589793, z=[1, [2.0, None]])"
    )
