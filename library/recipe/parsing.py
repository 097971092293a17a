"""YAML and overrides into a checked recipe; all that is wrong is told at once, in the words of the schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar, cast, get_origin

import pydantic
from pydantic.fields import FieldInfo

from library.errors import UsageError
from library.grammar import nearest
from library.recipe.contradictions import Contradictions, Problem
from library.recipe.fields import choices, wanted
from library.recipe.paths import Schema, field_at, fields_of, group_of, unknown, value_at
from library.recipe.yaml_text import load_yaml

_SHOWN_CHARS = 60

_SchemaT = TypeVar("_SchemaT", bound=pydantic.BaseModel)


def read(schema: type[_SchemaT], text: str, overrides: Sequence[str], where: str) -> _SchemaT:
    """YAML text with overrides as an instance of `schema`.

    Raises:
        UsageError: one line for each thing that is wrong.
    """
    try:
        data = load_yaml(text)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{where}: should be a table of fields, such as `model: lenet5`; it is {_shown(data)}")
    lines: list[str] = []
    for override in overrides:
        try:
            _set(schema, cast(dict[str, Any], data), override)
        except UsageError as error:
            lines.append(str(error))
    checked, problems = _checked(schema, cast(dict[str, Any], data))
    lines += problems
    if checked is None or lines:
        count = "" if len(lines) == 1 else f"{len(lines)} problems\n"
        told = "\n".join(lines) if len(lines) == 1 else "\n".join(_indented(line) for line in lines)
        raise UsageError(f"{where}: {count}{told}")
    return checked


def _set(schema: Schema, data: dict[str, Any], override: str) -> None:
    """Put one `a.b=value` into the data."""
    path, equals, text = override.partition("=")
    path = path.strip()
    if not equals or not path:
        raise UsageError(f"--set {override}: should be FIELD=VALUE, e.g. optimizer.lr=0.1")
    found, field = field_at(schema, path.split("."))
    if field is None:
        raise UsageError(f"--set {override}: {found} {unknown(schema, found)}")
    try:
        value = load_yaml(text)
        rest = path[len(found) + 1 :]
        if rest:
            if get_origin(_without_none(field)) is not dict:
                raise UsageError(f"{found} takes {wanted(field)}, and has no fields of its own")
            value = {**(value_at(data, found) or {}), load_yaml(rest): value}
    except UsageError as error:
        raise UsageError(f"--set {override}: {error}") from None
    _put(data, found, value)


def _without_none(field: FieldInfo) -> Any:
    """The table in a field's type, where it takes one."""
    args = getattr(field.annotation, "__args__", ())
    return next((arg for arg in args if get_origin(arg) is dict), field.annotation)


def _put(data: dict[str, Any], path: str, value: Any) -> None:
    *groups, name = path.split(".")
    for group in groups:
        inner = data.get(group)
        if not isinstance(inner, dict):
            inner = data[group] = {}
        data = cast(dict[str, Any], inner)
    data[name] = value


def _checked(schema: type[_SchemaT], data: dict[str, Any]) -> tuple[_SchemaT | None, list[str]]:
    """The instance, or all problems.

    pydantic looks for contradictions only where every field is right by itself. So a wrong field is mended, by its
    default or an example, and what is left is looked at again.
    """
    lines: list[str] = []
    failed: set[str] = set()
    mended = cast(dict[str, Any], _copied(data))
    while True:
        try:
            checked = schema.model_validate(mended)
        except pydantic.ValidationError as error:
            details = error.errors(include_url=False)
        else:
            return (None if lines else checked), lines
        contradicting = details[0].get("ctx", {}).get("error")
        if isinstance(contradicting, Contradictions):
            lines += [
                _told(data, problem)
                for problem in contradicting.problems
                if not any(_within(path, failed) for path in (problem.field, *problem.others))
            ]
            return None, lines
        for path, text in _by_field(schema, details).items():
            if not _within(path, failed):
                lines.append(_told(data, Problem(path, text)))
            failed.add(path)
            _mend(schema, mended, path)


def _by_field(schema: Schema, details: Sequence[Any]) -> dict[str, str]:
    """One text a field: a type of several branches reports one error for each."""
    texts: dict[str, str] = {}
    for detail in details:
        path, field = field_at(schema, detail["loc"])
        said = detail["type"] == "value_error"
        if path not in texts or said:
            texts[path] = str(detail["ctx"]["error"]) if said else _explained(schema, detail, path, field)
    return texts


def _explained(schema: Schema, detail: Any, path: str, field: FieldInfo | None) -> str:
    if field is None:
        return unknown(schema, path)
    group = group_of(field)
    takes = f"a table of {', '.join(group.model_fields)}" if group else wanted(field)
    if detail["type"] == "missing":
        example = f", e.g. {field.examples[0]}" if field.examples else ""
        return f"is missing; it takes {takes}{example}"
    value = detail["input"]
    close = nearest(value, choices(field)) if isinstance(value, str) and choices(field) else ""
    return f"should be {takes}{close if 'mean' in close else ''}"


def _told(data: Any, problem: Problem) -> str:
    """`field: value text`; without the value where there is none, or where a caret shows the place in it."""
    value = value_at(data, problem.field)
    absent = value is None and problem.text.startswith("is missing")
    shown = "" if absent or "\n" in problem.text else f"{_shown(value)} "
    return f"{problem.field}: {shown}{problem.text}"


def _mend(schema: Schema, data: dict[str, Any], path: str) -> None:
    """Take a wrong value out; a field that must be there gets its example."""
    field = dict(fields_of(schema)).get(path)
    if field is not None and field.is_required():
        _put(data, path, field.examples[0] if field.examples else {})
        return
    *groups, name = path.split(".")
    for group in groups:
        data = data[group]
    data.pop(name, None)


def _within(path: str, failed: set[str]) -> bool:
    return any(path == other or path.startswith(f"{other}.") for other in failed)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in cast(dict[Any, Any], value).items()}
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))
