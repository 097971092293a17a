"""Parses a model's call, such as `resnet50(in_chans=4)`, in the grammar of pipelines; does not import torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import pydantic

from library import grammar
from library.errors import GrammarError
from library.grammar import Call, Chain, Span, format_call, format_value, nearest
from library.models.catalog import CATALOG, TIMM
from library.models.parameters import MAX_CHANNELS, parameters_of

#: Arguments of timm's constructors that are set elsewhere: in `num_classes`, `weights` and the recipe.
_RESERVED = (
    "num_classes",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "features_only",
    "exportable",
    "scriptable",
)


#: Limit for numbers of layers, channels or pixels: the time and memory to build a network grow with them.
_MAX_NUMBER = 2**20


@dataclass(frozen=True)
class ModelCall:
    """A model and all of its parameters, including those at their defaults.

    Attributes:
        name: a name in the catalogue, or `timm`.
        parameters: values by name; with `timm`, `parameters["name"]` is the name of timm's model.
    """

    name: str
    parameters: Mapping[str, Any] = dataclasses.field(hash=False)

    def __str__(self) -> str:
        """The canonical text, with the parameters that differ from their defaults; `parse_call` parses it."""
        defaults = {"in_chans": 3} if self.name == TIMM else _defaults(self.name)
        non_default = {
            name: value
            for name, value in self.parameters.items()
            if name not in defaults or (value != defaults[name] or type(value) is not type(defaults[name]))
        }
        return format_call(self.name, non_default)

    @property
    def in_chans(self) -> int:
        """Channels of the input."""
        return int(self.parameters["in_chans"])


def parse_call(text: str) -> ModelCall:
    """Parses a model's call.

    Whether timm has the model of `timm("name")` is checked when the model is looked up or built.

    Raises:
        GrammarError: the text is not a valid call; points at the first mistake and says what would work.
    """
    chain = _chain(text)
    call = chain.calls[0]
    if len(chain.calls) > 1:
        second = chain.calls[1].span
        raise GrammarError("expected one model, not several joined by '|'", text, second.offset, second.length)
    if call.name == TIMM:
        return _timm_call(call, text)
    if call.name not in CATALOG:
        message = (
            f"unknown model '{call.name}'{nearest(call.name, CATALOG)}; `striate models` lists them all, and "
            f'timm("{call.name}") asks timm for one of that name'
        )
        raise GrammarError(message, text, call.span.offset, call.span.length)
    cls = parameters_of(call.name)
    values, spans = _bound(call, list(_defaults(call.name)), text)
    try:
        parameters = cls(**values)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        problem = str(first["msg"]).replace("Input should", "should").replace("Tuple should", "should")
        problem = problem.replace(" after validation", "").replace("valid tuple", "list").replace("tuple", "list")
        message = f"{call.name}: '{name}' {problem}; got {format_value(values[name])}"
        raise GrammarError(message, text, spans[name].offset, spans[name].length) from None
    return ModelCall(
        call.name, {field.name: getattr(parameters, field.name) for field in dataclasses.fields(parameters)}
    )


def _chain(text: str) -> Chain:
    if not text.strip():
        raise GrammarError("no model is named; write e.g. 'resnet18' or 'lenet5(in_chans=3)'", text, 0)
    try:
        return grammar.parse(text)
    except GrammarError as error:
        if "pipeline" not in error.message and "step" not in error.message:
            raise
        message = (
            "not a model's call; write a name, or a name with parameters, e.g. 'resnet18' or 'resnet18(in_chans=1)'"
        )
        raise GrammarError(message, error.text, error.offset, error.length) from None


def _defaults(name: str) -> dict[str, Any]:
    # All defaults are plain values, which Pydantic leaves in the dataclass's fields.
    return {field.name: field.default for field in dataclasses.fields(parameters_of(name))}


def _bound(
    call: Call, names: list[str], text: str, *, open_ended: bool = False
) -> tuple[dict[str, Any], dict[str, Span]]:
    """Arguments by parameter name, and the position of each in the text."""
    if len(call.args) > len(names):
        span = call.arg_spans[len(names)]
        message = f"{call.name} takes at most {len(names)} arguments without a name: {', '.join(names)}"
        raise GrammarError(message, text, span.offset, span.length)
    values: dict[str, Any] = dict(zip(names, call.args, strict=False))
    spans = dict(zip(names, call.arg_spans, strict=False))
    for name, value in call.kwargs.items():
        span = call.kwarg_spans[name]
        if name not in names and not open_ended:
            raise GrammarError(
                f"{call.name} has no parameter '{name}'{nearest(name, names)}", text, span.offset, len(name)
            )
        if name in values:
            raise GrammarError(f"{call.name}: '{name}' is given twice", text, span.offset, span.length)
        values[name], spans[name] = value, span
    for name, value in values.items():
        if isinstance(value, Chain):
            span = value.calls[0].span
            message = f"{call.name}: '{name}' takes a plain value; text needs quotes: {name}=\"{value.calls[0].name}\""
            raise GrammarError(message, text, span.offset, span.length)
    return values, spans


def _timm_call(call: Call, text: str) -> ModelCall:
    values, spans = _bound(call, ["name"], text, open_ended=True)
    name = values.get("name")
    if not isinstance(name, str) or not name:
        message = 'timm needs the name of one of its models: timm("convnext_tiny")'
        raise GrammarError(message, text, call.span.offset, call.span.length)
    if ":" in name or "/" in name:
        # With such a name timm would fetch the description of a network from elsewhere.
        message = "timm takes a name from timm's own list; to use weights from elsewhere, set weights"
        raise GrammarError(message, text, spans["name"].offset, spans["name"].length)
    for reserved in _RESERVED:
        if reserved in values:
            message = f"timm: '{reserved}' is not a parameter of the model; it is set outside the call"
            raise GrammarError(message, text, spans[reserved].offset, spans[reserved].length)
    channels = values.setdefault("in_chans", 3)
    if type(channels) is not int or not 1 <= channels <= MAX_CHANNELS:
        span = spans["in_chans"]
        message = f"timm: 'in_chans' should be a whole number from 1 to {MAX_CHANNELS}; got {format_value(channels)}"
        raise GrammarError(message, text, span.offset, span.length)
    for key, value in values.items():
        if _largest(value) > _MAX_NUMBER:
            message = f"timm: '{key}' should have no number beyond {_MAX_NUMBER:,}"
            raise GrammarError(message, text, spans[key].offset, spans[key].length)
    rest = {key: values[key] for key in sorted(values) if key not in ("name", "in_chans")}
    return ModelCall(TIMM, {"name": name, "in_chans": channels, **rest})


def _largest(value: Any) -> float:
    if isinstance(value, tuple):
        return max(map(_largest, cast("tuple[Any, ...]", value)), default=0)
    return abs(value) if isinstance(value, (int, float)) else 0
