"""Pipelines: parsed from text, written as canonical text, identified by a digest, run over pictures.

pipeline = Pipeline.parse("grayscale | gaussian_blur(sigma=1.5)")
pipeline.apply(pixels)                                                    # one array
ray.data.read_parquet(uri).map_batches(pipeline, batch_format="pyarrow")  # in your own Ray Data program
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import pyarrow as pa
import pydantic

from library.errors import GrammarError
from library.grammar import Call, Chain, Span, format_value, nearest, parse
from library.imaging.codec import Encoding
from library.imaging.picture import Pixels
from library.pipeline.annotations import find_annotations
from library.pipeline.batch import run_batch
from library.steps import REGISTRY, plugins
from library.steps.base import Filter, Kind, Step

_Refusable: TypeAlias = Literal["selector", "augmentation"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pipeline:
    """Steps in order. Two pipelines are equal if their canonical texts are.

    Attributes:
        steps: applied to each picture, first to last; empty for a plain copy.
    """

    steps: tuple[Step, ...] = ()

    @classmethod
    def parse(cls, text: str, refuse: _Refusable | None = None) -> Pipeline:
        """Parses a pipeline such as `grayscale | edges(direction="vertical")`.

        Args:
            text: the pipeline.
            refuse: the kind of step that is not allowed: "augmentation" where the result must be the same every time,
                "selector" where pictures are augmented.

        Raises:
            GrammarError: points at the first mistake and says what would work.
        """
        return cls.from_chain(parse(text), refuse)

    @classmethod
    def from_chain(cls, chain: Chain, refuse: _Refusable | None = None) -> Pipeline:
        """Builds the pipeline of a parsed text; raises the same errors as `parse`."""
        steps = tuple(_build(call, chain.text) for call in chain.calls)
        for step, call in zip(steps, chain.calls, strict=True):
            if step.kind == refuse:
                raise GrammarError(
                    _REFUSED[step.kind].format(step.name), chain.text, call.span.offset, call.span.length
                )
        return cls(steps)

    def __reduce__(self) -> tuple[Any, tuple[str, tuple[plugins.Plugin, ...]]]:
        # As text, with the plugins that it needs: a worker cannot import the classes of a user's own file.
        return _unpickled, (str(self), plugins.used_by(self.steps))

    def __str__(self) -> str:
        """The canonical text. It has every parameter, so a later change of a default does not change old pipelines."""
        return " | ".join(map(str, self.steps))

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical text, in hex."""
        return hashlib.sha256(str(self).encode()).hexdigest()

    def apply(self, pixels: Pixels) -> Pixels:
        """Runs the filters over one decoded picture.

        Args:
            pixels: height x width x channels, uint8, uint16 or float32.

        Raises:
            TypeError: if a step is not a filter or needs other columns than the picture.
        """
        for step in self.steps:
            if step.kind == "augmentation":
                raise TypeError(
                    f"'{step.name}' is random and needs a seed; use library.pipeline.augmentation.Augmenter"
                )
            if step.kind != "filter" or step.columns():
                raise TypeError(f"'{step.name}' needs the whole record, not only the pixels; use run_batch")
            pixels = cast(Filter, step)(pixels)
        return pixels

    def __call__(self, table: pa.Table, encode: str = "keep", *, rejects: bool = False) -> pa.Table:
        """Runs one batch of a dataset through the pipeline, for `map_batches(..., batch_format="pyarrow")`.

        Args:
            table: rows of a dataset, with at least `key` and `image`.
            encode: how changed pictures are stored, as in `--encode`.
            rejects: whether to append the pictures that cannot be used, with their bytes unchanged. Two more columns,
                `reason` and `detail`, are then added, which are null for the other pictures.

        Returns:
            The kept pictures, with the same columns, without those that a selector dropped. Pictures that cannot be
            used are left out and their reasons logged, unless `rejects` is true. Columns `mask` and `boxes` follow the
            pictures.

        Raises:
            TypeError: if a step is an augmentation.
            UsageError: if masks or boxes cannot follow.
        """
        for step in self.steps:
            if step.kind == "augmentation":
                raise TypeError(
                    f"'{step.name}' is random and needs a seed; use library.pipeline.augmentation.Augmenter"
                )
        annotations = find_annotations(table.schema, self.steps)
        result = run_batch(self.steps, table, Encoding.parse(encode), annotations=annotations)
        if rejects:
            return pa.concat_tables([result.table, result.rejects], promote_options="default")
        if result.rejects.num_rows:
            _log.warning("left out %d pictures that cannot be used: %s", result.rejects.num_rows, dict(result.rejected))
        return result.table


_REFUSED: dict[Kind, str] = {
    "selector": "'{}' drops pictures, which an augmentation cannot do; run it with `striate filter` before",
    "augmentation": "'{}' is random, but a filter must give the same result every time; use `striate augment`",
}


def _unpickled(text: str, needed: tuple[plugins.Plugin, ...]) -> Pipeline:
    plugins.install(needed)
    return Pipeline.parse(text) if text else Pipeline()


def _build(call: Call, text: str) -> Step:
    cls = REGISTRY.get(call.name)
    if cls is None:
        close = nearest(call.name, REGISTRY)
        message = f"unknown step '{call.name}'{close}; `striate steps` lists them all, --plugin loads your own"
        raise GrammarError(message, text, call.span.offset, call.span.length)
    names = list(cls.__dataclass_fields__)
    if len(call.args) > len(names):
        span = call.arg_spans[len(names)]
        message = f"{call.name} takes at most {len(names)} arguments: {', '.join(names) or 'none at all'}"
        raise GrammarError(message, text, span.offset, span.length)
    spans: dict[str, Span] = dict(zip(names, call.arg_spans, strict=False)) | dict(call.kwarg_spans)
    for name in call.kwargs:
        span = call.kwarg_spans[name]
        if name not in names:
            message = f"{call.name} has no parameter '{name}'{nearest(name, names)}"
            raise GrammarError(message, text, span.offset, len(name))
        if name in names[: len(call.args)]:
            raise GrammarError(f"{call.name}: '{name}' is given twice", text, span.offset, span.length)
    values = dict(zip(names, call.args, strict=False)) | dict(call.kwargs)
    for name, value in values.items():
        if isinstance(value, Chain) and len(value.calls) == 1 and _is_bare_word(value.calls[0]):
            word = value.calls[0]
            message = (
                f"unknown step '{word.name}'{nearest(word.name, REGISTRY)}; text needs quotes: {name}=\"{word.name}\""
            )
            raise GrammarError(message, text, word.span.offset, word.span.length)
    # No parameter takes selectors: nested steps change a picture and cannot drop it.
    nested = {
        name: Pipeline.from_chain(value, refuse="selector") if isinstance(value, Chain) else value
        for name, value in values.items()
    }
    try:
        return cast(Any, cls)(**nested)
    except pydantic.ValidationError as error:
        raise _readable(error, call, spans, nested, text) from None


def _is_bare_word(call: Call) -> bool:
    return call.name not in REGISTRY and not call.args and not call.kwargs


def _readable(
    error: pydantic.ValidationError, call: Call, spans: dict[str, Span], values: dict[str, Any], text: str
) -> GrammarError:
    """An error about the first wrong parameter, in the terms of the grammar instead of pydantic's."""
    errors = error.errors(include_url=False)
    same_parameter = [each for each in errors if each["loc"][:1] == errors[0]["loc"][:1]]
    # A parameter may accept several types; the error about the type that was given is the useful one.
    first = next((each for each in same_parameter if not each["type"].endswith("_type")), errors[0])
    name = str(first["loc"][0]) if first["loc"] else ""
    problem = str(first["msg"]).removeprefix("Value error, ").replace("Input should", "should")
    problem = problem.replace("Tuple should", "should").replace("tuple", "list").replace(" after validation", "")
    if first["type"] == "missing":
        message = f"{call.name} needs '{name}'"
    elif name in values:
        message = f"{call.name}: '{name}' {problem}; got {format_value(values[name])}"
    else:
        message = f"{call.name}: {problem}"
    span = spans.get(name, call.span)
    return GrammarError(message, text, span.offset, span.length)
