"""The base of all steps: frozen dataclasses whose fields are their parameters, checked on construction.

    @register("filter")
    class Invert:
        '''One line for the table of steps.'''

        amount: Annotated[float, Field(ge=0, le=1, description="what it means, with its unit")] = 1.0

        def __call__(self, pixels: Pixels) -> Pixels: ...

The class name in snake_case is the step's name in the grammar.

A filter or an augmentation also says what it does to places in the picture, so that masks and boxes can follow: it is
registered as `still`, or has the method `move` (`Moving`) or `traced` (`Tracing`). One that says nothing cannot be used
on pictures with masks or boxes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast, dataclass_transform, runtime_checkable

import numpy as np
import pydantic
from pydantic.dataclasses import dataclass as checked_dataclass

from library.errors import BadPicture
from library.grammar import format_call
from library.imaging.picture import Picture, Pixels
from library.steps.moves import Move, Moves, moved, size_of

Kind = Literal["filter", "selector", "augmentation"]


class Step(Protocol):
    """Any step; `register` sets `kind`, `name` and `still`.

    Attributes:
        kind: filter, selector or augmentation.
        name: in the grammar.
        still: whether it leaves everything in the picture where it is.
    """

    kind: ClassVar[Kind]
    name: ClassVar[str]
    still: ClassVar[bool]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def columns(self) -> tuple[str, ...]:
        """Names of the columns that it reads besides the picture."""
        ...

    def scores(self) -> tuple[str, ...]:
        """Names of the scores that it reads instead of pixels where they were measured before."""
        ...

    def may_drop(self) -> bool:
        """Whether its parameters allow it to drop pictures, as a selector does."""
        ...


@runtime_checkable
class Filter(Protocol):
    """Maps pixels to pixels, with the same result every time; never writes to its input.

    A filter that needs other columns (a mask) overrides `Step.columns`; their values follow the pixels as positional
    arguments. A filter that may drop pictures overrides `Step.may_drop` and raises `library.errors.Dropped`.
    """

    def __call__(self, pixels: Pixels, /, *columns: Any) -> Pixels: ...


@runtime_checkable
class Selector(Protocol):
    """Keeps a picture (returns None) or drops it (returns the reason, a slug that the report counts)."""

    def reason(self, picture: Picture, /) -> str | None:
        """Returns why the picture is dropped, or None to keep it; raises BadPicture if it cannot be used."""
        ...


@runtime_checkable
class Augmentation(Protocol):
    """Maps pixels randomly to pixels of the same dtype; all randomness comes from `rng`.

    Never writes to its input; returns the very same array if nothing is changed.
    """

    def __call__(self, pixels: Pixels, rng: np.random.Generator, /) -> Pixels: ...


@runtime_checkable
class Steps(Protocol):
    """Steps in order as a parameter of another step, such as a `library.pipeline.Pipeline`."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps, first to last."""
        ...


class Moving(Protocol):
    """A step that moves pixels."""

    def move(self, height: int, width: int, /, *rng: np.random.Generator) -> Move | None:
        """Returns where a picture of this size goes, or None if it stays; an augmentation draws it from its `rng`.

        The result of the step is `moved(pixels, move)`.
        """
        ...


class Tracing(Protocol):
    """A step that may move pixels several times, or only sometimes."""

    def traced(self, pixels: Pixels, /, *rng: np.random.Generator) -> tuple[Pixels, Moves]:
        """Returns the result, and how it was moved."""
        ...


def augmented(step: Step, pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Applies a filter or an augmentation to decoded pixels (height x width x channels)."""
    if step.kind == "augmentation":
        return cast(Augmentation, step)(pixels, rng)
    return cast(Filter, step)(pixels)


def traced(step: Step, pixels: Pixels, rng: np.random.Generator | None = None, *columns: Any) -> tuple[Pixels, Moves]:
    """Applies a step to decoded pixels (height x width x channels), and says how they were moved.

    Args:
        step: a filter, or with `rng` an augmentation.
        pixels: the picture.
        rng: the source of random numbers.
        columns: the values of the other columns that a filter needs.
    """
    drawn = (rng,) if step.kind == "augmentation" and rng is not None else ()
    if hasattr(step, "traced"):
        return cast(Tracing, step).traced(pixels, *drawn)
    if hasattr(step, "move"):
        move = cast(Moving, step).move(*size_of(pixels), *drawn)
        return moved(pixels, move), () if move is None else (move,)
    return cast(Any, step)(pixels, *drawn, *columns), ()


def says_where(step: Step) -> bool:
    """Whether a filter or an augmentation says what it does to places in the picture."""
    return step.still or hasattr(step, "move") or hasattr(step, "traced")


def leaves_in_place(step: Step) -> bool:
    """Whether a step with these parameters leaves everything in the picture where it is, and keeps its size.

    A `still` step does; another may, such as a convolution that keeps the size.
    """
    if step.still or not hasattr(step, "move") or step.kind != "filter":
        return step.still
    for size in ((97, 61), (33, 58)):  # two shapes, so that neither a resize nor a crop happens to keep both
        try:
            move = cast(Moving, step).move(*size)
        except BadPicture:
            return False
        if move is not None and (move.size != size or move.matrix != ((1, 0, 0), (0, 1, 0))):
            return False
    return True


def with_nested(steps: Iterable[Step]) -> Iterator[Step]:
    """Yields every step, and those nested as parameters of another."""
    for step in steps:
        yield step
        for name in step.__dataclass_fields__:
            value = getattr(step, name)
            if isinstance(value, Steps):
                yield from with_nested(value.steps)


#: All steps, by their name in the grammar.
REGISTRY: dict[str, type[Step]] = {}

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, field_specifiers=(pydantic.Field, dataclasses.field))
def register(kind: Kind, *, still: bool = False) -> Callable[[type[_T]], type[_T]]:
    """Class decorator: makes the class a checked, frozen dataclass and registers it under its snake_case name.

    Args:
        kind: filter, selector or augmentation.
        still: whether a filter or an augmentation leaves everything in the picture where it is; a selector always does.

    Raises:
        ValueError: another step has this name.
    """

    def decorate(cls: type[_T]) -> type[_T]:
        step_class: Any = checked_dataclass(frozen=True, config=_STRICT)(cls)
        step_class.kind = kind
        step_class.still = still or kind == "selector"
        step_class.name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        step_class.__str__ = _canonical
        for name, method in (("columns", _nothing), ("scores", _nothing), ("may_drop", _never)):
            if not hasattr(step_class, name):
                setattr(step_class, name, method)
        if step_class.name in REGISTRY:
            raise ValueError(f"two steps are named {step_class.name!r}")
        REGISTRY[step_class.name] = step_class
        return step_class

    return decorate


_STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def parameters(step: Step) -> Mapping[str, object]:
    """A step's parameters in order, without those that are None."""
    values = ((field.name, getattr(step, field.name)) for field in dataclasses.fields(step))
    return {name: value for name, value in values if value is not None}


def _nothing(self: Step) -> tuple[str, ...]:
    return ()


def _never(self: Step) -> bool:
    return False


def _canonical(self: Step) -> str:
    return format_call(self.name, parameters(self))
