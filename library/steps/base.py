"""What a step is: a frozen dataclass whose fields are its parameters, checked when it is made.

    @register("filter")
    class Invert:
        '''One line for the table.'''

        amount: Annotated[float, Field(ge=0, le=1, description="what it means, with its unit")] = 1.0

        def __call__(self, pixels: Pixels) -> Pixels: ...

The class name in snake_case is the step's name in the grammar.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast, dataclass_transform, runtime_checkable

import numpy as np
import pydantic
from pydantic.dataclasses import dataclass as checked_dataclass

from library.grammar import format_call
from library.imaging.picture import Picture, Pixels

Kind = Literal["filter", "selector", "augmentation"]


class Step(Protocol):
    """Any step; `kind` and `name` are put there by `register`."""

    kind: ClassVar[Kind]
    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def columns(self) -> tuple[str, ...]:
        """The columns that it reads besides the picture."""
        ...

    def may_drop(self) -> bool:
        """Whether its parameters let it drop pictures, as a selector does."""
        ...


@runtime_checkable
class Filter(Protocol):
    """Pixels to pixels, the same result every time. Never writes to its input.

    A filter that needs other columns (a mask) overrides `Step.columns`; their values follow the pixels as positional
    arguments. One whose parameters let it drop pictures overrides `Step.may_drop`, and raises `library.errors.Dropped`.
    """

    def __call__(self, pixels: Pixels, /, *columns: Any) -> Pixels: ...


@runtime_checkable
class Selector(Protocol):
    """Keeps a picture (None), or drops it with a reason (a slug, counted in the report)."""

    def reason(self, picture: Picture, /) -> str | None: ...


@runtime_checkable
class Augmentation(Protocol):
    """Pixels to pixels of the same dtype, by chance: every choice comes from `rng`, and nothing else does.

    Never writes to its input; gives back the very same array where chance says to change nothing.
    """

    def __call__(self, pixels: Pixels, rng: np.random.Generator, /) -> Pixels: ...


@runtime_checkable
class Steps(Protocol):
    """Steps in order, as a parameter of another step; `library.pipeline.Pipeline` is one."""

    @property
    def steps(self) -> tuple[Step, ...]: ...


def augmented(step: Step, pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """One filter or augmentation over decoded pixels."""
    if step.kind == "augmentation":
        return cast(Augmentation, step)(pixels, rng)
    return cast(Filter, step)(pixels)


#: Every step by its name in the grammar.
REGISTRY: dict[str, type[Step]] = {}

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, field_specifiers=(pydantic.Field, dataclasses.field))
def register(kind: Kind) -> Callable[[type[_T]], type[_T]]:
    """Class decorator: makes a checked, frozen dataclass and enters it in the registry under its snake_case name."""

    def decorate(cls: type[_T]) -> type[_T]:
        made: Any = checked_dataclass(frozen=True, config=_STRICT)(cls)
        made.kind = kind
        made.name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        made.__str__ = _canonical
        for name, method in (("columns", _no_columns), ("may_drop", _never)):
            if not hasattr(made, name):
                setattr(made, name, method)
        if made.name in REGISTRY:
            raise ValueError(f"two steps are named {made.name!r}")
        REGISTRY[made.name] = made
        return made

    return decorate


_STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def parameters(step: Step) -> Mapping[str, object]:
    """A step's parameters in order; those that are None are absent."""
    values = ((field.name, getattr(step, field.name)) for field in dataclasses.fields(step))
    return {name: value for name, value in values if value is not None}


def _no_columns(self: Step) -> tuple[str, ...]:
    return ()


def _never(self: Step) -> bool:
    return False


def _canonical(self: Step) -> str:
    return format_call(self.name, parameters(self))
