"""Describes all steps and their parameters, for the command line, the web page and the API."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from library.grammar import format_value
from library.steps import REGISTRY
from library.steps.base import Kind, Step


@dataclass(frozen=True)
class ParameterHelp:
    """A parameter of a step; types and defaults are in the grammar of pipelines."""

    name: str
    type: str
    default: str | None
    required: bool
    help: str


@dataclass(frozen=True)
class StepHelp:
    """A step of pipelines, with an example of its use."""

    name: str
    kind: Kind
    help: str
    parameters: list[ParameterHelp]
    example: str


def ordered_steps() -> list[type[Step]]:
    """All steps: filters, then selectors, then augmentations, each sorted by name."""
    kinds: list[Kind] = ["filter", "selector", "augmentation"]
    return sorted(REGISTRY.values(), key=lambda cls: (kinds.index(cls.kind), cls.name))


def step_table() -> list[dict[str, str]]:
    """One row for every step: its name, kind, parameters with defaults, and summary."""
    return [
        {"name": cls.name, "kind": cls.kind, "parameters": _signature(cls), "summary": _summary(cls)}
        for cls in ordered_steps()
    ]


def step_help(cls: type[Step], example: str) -> StepHelp:
    """Describes one step from its fields and docstring."""
    hints, described = get_type_hints(cls), get_type_hints(cls, include_extras=True)
    parameters = [
        ParameterHelp(
            name=field.name,
            type=_type_name(hints[field.name]),
            default=None if _is_required(field) else _default(field),
            required=_is_required(field),
            help=_description(described[field.name], field),
        )
        for field in dataclasses.fields(cls)
    ]
    return StepHelp(cls.name, cls.kind, inspect.cleandoc(cls.__doc__ or ""), parameters, example)


def _summary(cls: type[Step]) -> str:
    return inspect.cleandoc(cls.__doc__ or "").splitlines()[0]


def _signature(cls: type[Step]) -> str:
    parts = [
        field.name if _is_required(field) else f"{field.name}={_default(field)}"
        for field in cls.__dataclass_fields__.values()
    ]
    return ", ".join(parts)


def _field_default(field: Any) -> Any:
    default = field.default
    # Pydantic stores the default inside its own field object if `Field(...)` was given as the default.
    return default.default if hasattr(default, "is_required") else default


def _is_required(field: Any) -> bool:
    default = field.default
    return default.is_required() if hasattr(default, "is_required") else default is dataclasses.MISSING


def _default(field: Any) -> str:
    return format_value(_field_default(field))


def _type_name(hint: Any) -> str:
    """A type as text, such as `int | "same" | "valid"`; tuples are shown as the grammar's lists."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(format_value(choice) for choice in inner)
    if origin in (Union, UnionType):
        return " | ".join(_type_name(part) for part in inner if part is not NoneType)
    if origin is tuple:
        return f"[{', '.join('...' if part is Ellipsis else _type_name(part) for part in inner)}]"
    return str(hint.__name__)


def _description(hint: Any, field: Any) -> str:
    for extra in getattr(hint, "__metadata__", ()):
        if getattr(extra, "description", None):
            return str(extra.description)
    return str(getattr(field.default, "description", "") or "")
