"""The types of a recipe's fields, and the values that each accepts, in words for errors and docs/recipes.md.

A type is written once, as an annotation; `accepted` puts it into words.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

import annotated_types
from pydantic import AfterValidator, Field
from pydantic.fields import FieldInfo

from library import storage
from library.errors import GrammarError, UsageError
from library.grammar import nearest
from library.models.call import parse_call
from library.pipeline import Pipeline
from library.steps.base import Kind

# What timm's optimizers take, by name: enough to check a recipe without importing torch. The names are those of timm
# 1.0 (`timm.optim.list_optimizers`), and a test compares the tables with the installed timm. Left out: `adahessian`,
# which needs second derivatives, and those that need apex or bitsandbytes.
_MOMENTUM = frozenset(
    {"adafactorbv", "cadafactorbv", "crmsproptf", "csgdc", "csgdp", "csgdw", "kron", "kronw", "larc", "lars", "madgrad"}
    | {"madgradw", "momentum", "nlarc", "nlars", "rmsprop", "rmsproptf", "rmsproptfw", "sgd", "sgdp", "sgdw"}
)
_MOMENTUM_AND_BETAS = frozenset({"adamuon", "muon", "nadamuon", "nmuon"})
_BETAS = frozenset(
    {"adabelief", "adafactor", "adam", "adamax", "adamp", "adamw", "adan", "adanw", "adopt", "adoptw", "cadafactor"}
    | {"cadamp", "cadamw", "cadan", "cadanw", "cadopt", "cadoptw", "clamb", "clambw", "claprop", "clion", "cmars"}
    | {"cnadamw", "lamb", "lambc", "lambcw", "lambw", "laprop", "lion", "mars", "nadam", "nadamw", "novograd"}
    | {"radabelief", "radam", "radamw"}
)
_NEITHER = frozenset({"adadelta", "adagrad"})
_NO_EPS = frozenset({"clion", "csgdc", "csgdw", "kron", "kronw", "lion", "momentum", "sgd", "sgdw"})

#: All optimizers that a recipe can name.
OPTIMIZERS = _MOMENTUM | _MOMENTUM_AND_BETAS | _BETAS | _NEITHER

#: Optimizers that take `momentum`.
WITH_MOMENTUM = _MOMENTUM | _MOMENTUM_AND_BETAS

#: Optimizers that take `eps`.
WITH_EPS = OPTIMIZERS - _NO_EPS

#: The number of `betas` of each optimizer that takes them.
BETAS = {name: 3 if name.removeprefix("c").startswith("adan") else 2 for name in _MOMENTUM_AND_BETAS | _BETAS}


@dataclass(frozen=True)
class Words:
    """Part of an annotation: describes the value where the type alone does not."""

    text: str


def _pipeline(*kinds: Kind) -> Callable[[str], str]:
    """Returns a function that checks a pipeline and returns its canonical text, so that spacing changes no digest."""

    def read(text: str) -> str:
        try:
            pipeline = Pipeline.parse(text)
        except GrammarError as error:
            raise ValueError(str(error)) from None
        for step in pipeline.steps:
            if step.kind not in kinds:
                raise ValueError(f"has a step of another field: {step.name} is {_FIELDS_OF_KIND[step.kind]}")
        return str(pipeline)

    return read


_FIELDS_OF_KIND: Mapping[Kind, str] = {
    "filter": "a filter, for input.steps or input.fit",
    "selector": "a selector, for input.steps or for `striate filter` before training",
    "augmentation": "an augmentation, for augment",
}


def _augmentation(text: str) -> str:
    canonical = _pipeline("filter", "augmentation")(text)
    if all(step.kind == "filter" for step in Pipeline.parse(canonical).steps):
        raise ValueError(
            "has no random step, so validation would see other pictures than training; filters belong to input.steps"
        )
    return canonical


def _model(text: str) -> str:
    try:
        return str(parse_call(text))
    except GrammarError as error:
        raise ValueError(str(error)) from None


def _uri(text: str) -> str:
    try:
        storage.normalize(text)
    except UsageError:
        raise ValueError(
            "should be a local path or an address such as s3://bucket/prefix, gs://, az:// or hf://"
        ) from None
    return text


def _weights(text: str) -> str:
    if text.lower() in ("none", "random"):
        raise ValueError("would be read as a file of that name; leave weights out to start from random weights")
    return text if text == "pretrained" else _uri(text)


def _optimizer(name: str) -> str:
    if name not in OPTIMIZERS:
        # The most common ones, as a list of all eighty would not help.
        common = {"sgd", "momentum", "adam", "adamw", "nadamw", "rmsprop", "lamb", "lars", "lion", "muon"}
        choices = nearest(name, OPTIMIZERS) or nearest(name, common)
        raise ValueError(f"is not a timm optimizer that a recipe can use{choices}; docs/recipes.md lists all")
    return name


def _different(names: tuple[str, ...]) -> tuple[str, ...]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"should name every class once; repeated: {', '.join(repeated)}")
    return names


Text: TypeAlias = Annotated[str, Field(min_length=1)]
Uri: TypeAlias = Annotated[Text, AfterValidator(_uri), Words("a folder or s3://bucket/prefix")]
Steps: TypeAlias = Annotated[
    str, AfterValidator(_pipeline("filter", "selector")), Words("a pipeline of filters and selectors")
]
Fit: TypeAlias = Annotated[str, AfterValidator(_pipeline("filter")), Words("a pipeline of filters")]
Augment: TypeAlias = Annotated[
    str, AfterValidator(_augmentation), Words("a pipeline of augmentations, filters between them")
]
Model: TypeAlias = Annotated[str, AfterValidator(_model), Words("a model's call, e.g. resnet18(in_chans=3)")]
Weights: TypeAlias = Annotated[
    Text, AfterValidator(_weights), Words("pretrained, or a bundle, .safetensors or .pth (a path or s3://)")
]
OptimizerName: TypeAlias = Annotated[
    Text, AfterValidator(_optimizer), Words("an optimizer of timm: sgd (with Nesterov momentum), momentum, adamw, ...")
]
Classes: TypeAlias = Annotated[
    tuple[Text, ...],
    Field(min_length=2),
    AfterValidator(_different),
    Words("a list of two or more class names, each in quotes if it looks like a number"),
]

#: Larger numbers are mistakes: such a training could not begin, or would not end.
MOST = 1_000_000
Count: TypeAlias = Annotated[int, Field(ge=1, le=MOST)]
#: Batches of a training.
Batches: TypeAlias = Annotated[int, Field(ge=1, le=1_000_000_000)]
#: Widths of layers.
Units: TypeAlias = Annotated[int, Field(ge=1, le=65536)]
Copies: TypeAlias = Annotated[int, Field(ge=1, le=10_000)]
Pixels: TypeAlias = Annotated[int, Field(ge=1, le=65535)]
Above0: TypeAlias = Annotated[float, Field(gt=0, le=MOST)]
AtLeast0: TypeAlias = Annotated[float, Field(ge=0, le=MOST)]
#: For MixUp, CutMix and weight decay, which are rarely above 1.
Strength: TypeAlias = Annotated[float, Field(ge=0, le=100)]
#: At least 0, below 1.
Share: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
#: Above 0, below 1.
Between: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**63), Words("a whole number from 0")]
Metric: TypeAlias = Literal["val_top1", "val_top5", "val_f1", "val_loss"]
BestMetric: TypeAlias = Literal["val_top1", "val_top5", "val_f1", "val_loss", "train_loss"]


def accepted(field: FieldInfo) -> str:
    """Returns what a field accepts, in words."""
    return _accepted(field.annotation, field.metadata)


def choices(field: FieldInfo) -> list[str]:
    """Returns the names that a field accepts; empty where it accepts no names."""
    return [choice for choice in _literals(field.annotation) if isinstance(choice, str)]


def _accepted(annotation: Any, metadata: Sequence[Any]) -> str:
    words = next((item.text for item in metadata if isinstance(item, Words)), None)
    if words is not None:
        return words
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _accepted(args[0], [*args[1:], *metadata])
    if origin in (Union, types.UnionType):
        # null comes last.
        parts = [_accepted(arg, metadata) for arg in args if arg is not type(None)]
        return ", or ".join([*parts, "null"] if type(None) in args else parts)
    if origin is Literal:
        return _or(list(map(str, args)))
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"a list, each {_accepted(args[0], ())}"
        return "[height, width]"
    if origin is dict:
        return f"a table {{{_accepted(args[0], ())}: {_accepted(args[1], ())}}}"
    return _NAMES[annotation] + _range(metadata)


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _range(metadata: Sequence[Any]) -> str:
    lower = upper = ""
    for item in metadata:
        for constraint in item.metadata if isinstance(item, FieldInfo) else (item,):
            match constraint:
                case annotated_types.Ge(ge=bound):
                    lower = f" from {bound:,}"
                case annotated_types.Gt(gt=bound):
                    lower = f" above {bound:,}"
                case annotated_types.Le(le=bound):
                    upper = f" to {bound:,}" if "from" in lower else f" and at most {bound:,}"
                case annotated_types.Lt(lt=bound):
                    upper = f" and below {bound:,}"
                case _:
                    pass
    return lower + upper


def _or(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _literals(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for arg in get_args(annotation) for choice in _literals(arg)]
