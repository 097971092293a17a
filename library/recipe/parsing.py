"""Reads YAML and overrides into a checked recipe, and reports all errors together in the words of the schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar, cast, get_origin

import pydantic
from pydantic.fields import FieldInfo

from library.errors import UsageError
from library.grammar import nearest
from library.recipe.contradictions import Contradictions, Problem
from library.recipe.fields import accepted, choices
from library.recipe.paths import Schema, field_at, fields_of, group_of, unknown_field, value_at
from library.recipe.yaml_text import load_yaml

_SHOWN_CHARS = 60

_SchemaT = TypeVar("_SchemaT", bound=pydantic.BaseModel)


def read(schema: type[_SchemaT], text: str, overrides: Sequence[str], where: str) -> _SchemaT:
    """Reads YAML text with overrides as an instance of `schema`.

    Raises:
        UsageError: with one line for each error.
    """
    try:
        data = load_yaml(text)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{where}: should be a table of fields, such as `model: lenet5`, not {_as_text(data)}")
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
        report = lines[0] if len(lines) == 1 else "\n".join(_indented(line) for line in lines)
        raise UsageError(f"{where}: {count}{report}")
    return checked


def _set(schema: Schema, data: dict[str, Any], override: str) -> None:
    """Applies one override `a.b=value` to the data."""
    path, equals, text = override.partition("=")
    path = path.strip()
    if not equals or not path:
        raise UsageError(f"--set {override}: should be FIELD=VALUE, e.g. optimizer.lr=0.1")
    field_path, field = field_at(schema, path.split("."))
    if field is None:
        raise UsageError(f"--set {override}: {field_path} {unknown_field(schema, field_path)}")
    try:
        value = load_yaml(text)
        rest = path[len(field_path) + 1 :]
        if rest:
            if get_origin(_without_none(field)) is not dict:
                raise UsageError(f"{field_path} takes {accepted(field)} and has no fields of its own")
            value = {**(value_at(data, field_path) or {}), load_yaml(rest): value}
    except UsageError as error:
        raise UsageError(f"--set {override}: {error}") from None
    _put(data, field_path, value)


def _without_none(field: FieldInfo) -> Any:
    """Returns the table among the types that a field accepts, else its whole type."""
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
    """Returns the instance, or None and all problems.

    pydantic checks for contradictions only if every single field is valid. So an invalid field is replaced by its
    default or an example, and the rest is checked again.
    """
    lines: list[str] = []
    failed: set[str] = set()
    repaired = cast(dict[str, Any], _copied(data))
    while True:
        try:
            checked = schema.model_validate(repaired)
        except pydantic.ValidationError as error:
            details = error.errors(include_url=False)
        else:
            return (None if lines else checked), lines
        contradicting = details[0].get("ctx", {}).get("error")
        if isinstance(contradicting, Contradictions):
            lines += [
                _line(data, problem)
                for problem in contradicting.problems
                if not any(_within(path, failed) for path in (problem.field, *problem.others))
            ]
            return None, lines
        for path, text in _by_field(schema, details).items():
            if not _within(path, failed):
                lines.append(_line(data, Problem(path, text)))
            failed.add(path)
            _repair(schema, repaired, path)


def _by_field(schema: Schema, details: Sequence[Any]) -> dict[str, str]:
    """Returns one message for each field: pydantic reports one error for each branch of a union."""
    texts: dict[str, str] = {}
    for detail in details:
        path, field = field_at(schema, detail["loc"])
        own_message = detail["type"] == "value_error"
        if path not in texts or own_message:
            texts[path] = str(detail["ctx"]["error"]) if own_message else _explained(schema, detail, path, field)
    return texts


def _explained(schema: Schema, detail: Any, path: str, field: FieldInfo | None) -> str:
    if field is None:
        return unknown_field(schema, path)
    group = group_of(field)
    takes = f"a table of {', '.join(group.model_fields)}" if group else accepted(field)
    if detail["type"] == "missing":
        example = f", e.g. {field.examples[0]}" if field.examples else ""
        return f"is missing; it takes {takes}{example}"
    value = detail["input"]
    close = nearest(value, choices(field)) if isinstance(value, str) and choices(field) else ""
    return f"should be {takes}{close if 'mean' in close else ''}"


def _line(data: Any, problem: Problem) -> str:
    """Returns `field: value text`; without the value where it is absent, or where a caret points into it."""
    value = value_at(data, problem.field)
    absent = value is None and problem.text.startswith("is missing")
    shown = "" if absent or "\n" in problem.text else f"{_as_text(value)} "
    return f"{problem.field}: {shown}{problem.text}"


def _repair(schema: Schema, data: dict[str, Any], path: str) -> None:
    """Removes an invalid value; a required field gets its example."""
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


def _as_text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))
