"""What models there are, and what is in one: `striate models`."""

from __future__ import annotations

import dataclasses
import re
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from library.errors import UsageError
from library.models import ModelCall, info, names, parse_call
from library.models.analysis import Analysis, Layer, analyse
from library.models.catalog import TIMM
from library.models.parameters import parameters_of

_FIGURES = ("layers", "parameters", "multiply_adds")


def model_table() -> list[dict[str, Any]]:
    """Every model of the table, oldest first: its facts, and what is computed from it."""
    return [describe_model(name) for name in names()]


def describe_model(
    text: str, *, size: tuple[int, int] | None = None, classes: int | None = None, layers: bool = False
) -> dict[str, Any]:
    """One model: its facts, and what is computed from it.

    Args:
        text: name or call.
        size: height and width of its input in pixels; None: the model's own.
        classes: outputs; None: as published.
        layers: with `per_layer`, a list of every layer.

    Raises:
        UsageError: no such model, or pictures that it cannot take.
    """
    call = parse_call(text)
    facts, found = info(call), analyse(call, num_classes=classes, size=size)
    computed = {"layers": found.depth, "parameters": found.parameters, "multiply_adds": found.multiply_adds}
    as_published = str(call) == facts.name and found.num_classes == facts.num_classes and size is None
    published = {name: value for name in _FIGURES if (value := getattr(facts.published, name)) is not None}
    described: dict[str, Any] = {
        "name": facts.name if call.name != TIMM else call.parameters["name"],
        "call": str(call),
        "year": facts.year,
        "authors": facts.authors,
        "title": facts.title,
        "paper": facts.paper,
        "source": facts.source,
        "library_name": facts.library_name,
        "weights_source": facts.weights_source,
        **computed,
        "flops": found.flops,
        "input_size": list(found.input_size),
        "num_classes": found.num_classes,
        "mean": list(facts.mean),
        "std": list(facts.std),
        "interpolation": facts.interpolation,
        "crop_fraction": facts.crop_fraction,
        "published": {name: int(value) for name, value in published.items()},
        "differs": [name for name, value in published.items() if as_published and not agrees(computed[name], value)],
        "note": facts.note,
        "stages": list(found.stages),
        "auxiliary_heads": dict(facts.auxiliary),
        "choices": _choices(call),
    }
    if layers:
        described["per_layer"] = [_layer(layer) for layer in found.layers]
        described["receptive_field"] = _largest_field(found)
    return described


def agrees(computed: int, published: Decimal) -> bool:
    """Whether a figure, rounded to the last digit of the published one, is the published one."""
    digits = published.as_tuple()
    unit = Decimal(1).scaleb(int(digits.exponent))
    return (Decimal(computed) / unit).to_integral_value(ROUND_HALF_UP) == published / unit


def parse_size(text: str) -> tuple[int, int]:
    """`200x320` or `224`: height and width in pixels.

    Raises:
        UsageError: for anything else.
    """
    matched = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text.strip().lower())
    if matched is None:
        raise UsageError(f"--input {text}: write height x width in pixels, e.g. 200x200")
    return int(matched[1]), int(matched[2] or matched[1])


def _choices(call: ModelCall) -> list[dict[str, Any]]:
    """Parameters of the call."""
    if call.name == TIMM:
        return [{"name": name, "value": value, "help": ""} for name, value in call.parameters.items()]
    fields = dataclasses.fields(parameters_of(call.name))
    helps = {field.name: _help(call.name, field.name) for field in fields}
    return [
        {"name": field.name, "value": call.parameters[field.name], "default": field.default, "help": helps[field.name]}
        for field in fields
    ]


def _help(model: str, parameter: str) -> str:
    described: Any = parameters_of(model).__pydantic_fields__[parameter]
    return str(described.description or "")


def _layer(layer: Layer) -> dict[str, Any]:
    return {**dataclasses.asdict(layer), "output": list(layer.output), "receptive_field": list(layer.receptive_field)}


def _largest_field(found: Analysis) -> list[int]:
    return [max(layer.receptive_field[axis] for layer in found.layers) for axis in range(2)]
