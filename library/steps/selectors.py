"""Selectors: steps that keep a picture or drop it with a reason.

These use only the header, the label, the key or other columns and decode nothing; those of `library.steps.judging`
need scores of the pixels. A picture that only selectors have processed keeps its exact bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Annotated, Any, TypeAlias

import numpy as np
from pydantic import Field, field_validator, model_validator

from library.errors import StepError
from library.grammar import nearest
from library.imaging.codec.formats import FORMATS
from library.imaging.picture import Picture
from library.steps.base import register

#: Columns that `striate predict` writes: a picture's most probable classes, best first, and their probabilities.
TOP_CLASSES, TOP_PROBABILITIES = "top_classes", "top_probabilities"

Pixel: TypeAlias = Annotated[int, Field(ge=1)]
Labels: TypeAlias = Annotated[tuple[str, ...], Field(min_length=1, description="class names, as stored")]


def _at_least_one(step: Any, *names: str) -> None:
    if all(getattr(step, name) is None for name in names):
        raise ValueError(f"needs {' or '.join(map(repr, names))}, or both")


def in_order(step: Any, low: str, high: str) -> None:
    _at_least_one(step, low, high)
    low_value, high_value = getattr(step, low), getattr(step, high)
    if low_value is not None and high_value is not None and low_value > high_value:
        raise ValueError(f"{low!r} ({low_value}) should not be above {high!r} ({high_value})")


@register("selector")
class MinSize:
    """Keep pictures whose sides have at least this many pixels. Reason: `below_min_size`."""

    short_side: Annotated[Pixel | None, Field(description="minimum length of the short side in pixels")] = None
    long_side: Annotated[Pixel | None, Field(description="minimum length of the long side in pixels")] = None

    @model_validator(mode="after")
    def _check(self) -> MinSize:
        _at_least_one(self, "short_side", "long_side")
        return self

    def reason(self, picture: Picture) -> str | None:
        short, long = sorted((picture.width, picture.height))
        return "below_min_size" if short < (self.short_side or 0) or long < (self.long_side or 0) else None


@register("selector")
class MaxSize:
    """Keep pictures whose sides have at most this many pixels. Reason: `above_max_size`."""

    short_side: Annotated[Pixel | None, Field(description="maximum length of the short side in pixels")] = None
    long_side: Annotated[Pixel | None, Field(description="maximum length of the long side in pixels")] = None

    @model_validator(mode="after")
    def _check(self) -> MaxSize:
        _at_least_one(self, "short_side", "long_side")
        return self

    def reason(self, picture: Picture) -> str | None:
        short, long = sorted((picture.width, picture.height))
        return "above_max_size" if short > (self.short_side or short) or long > (self.long_side or long) else None


@register("selector")
class AspectRatioBetween:
    """Keep pictures whose width / height is in a range. Reasons: `too_narrow`, `too_wide`."""

    low: Annotated[float | None, Field(gt=0, description="minimum width / height, inclusive")] = None
    high: Annotated[float | None, Field(gt=0, description="maximum width / height, inclusive")] = None

    @model_validator(mode="after")
    def _check(self) -> AspectRatioBetween:
        in_order(self, "low", "high")
        return self

    def reason(self, picture: Picture) -> str | None:
        ratio = picture.width / picture.height
        if self.low is not None and ratio < self.low:
            return "too_narrow"
        return "too_wide" if self.high is not None and ratio > self.high else None


@register("selector")
class KeepLabels:
    """Keep only pictures of these classes; pictures without a label are dropped. Reason: `other_label`."""

    labels: Labels

    def reason(self, picture: Picture) -> str | None:
        return None if picture.label in self.labels else "other_label"


@register("selector")
class DropLabels:
    """Drop pictures of these classes; pictures without a label are kept. Reason: `dropped_label`."""

    labels: Labels

    def reason(self, picture: Picture) -> str | None:
        return "dropped_label" if picture.label in self.labels else None


@register("selector")
class KeepFormats:
    """Keep only pictures stored in these formats. Reason: `other_format`."""

    formats: Annotated[
        tuple[str, ...], Field(min_length=1, description="jpeg, png, webp, tiff, avif, heic, jp2, gif, bmp, npy")
    ]

    @field_validator("formats")
    @classmethod
    def _known(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        for name in formats:
            if name not in FORMATS:
                raise ValueError(f"has an unknown format {name!r}{nearest(name, FORMATS)}")
        return formats

    def reason(self, picture: Picture) -> str | None:
        return None if picture.format in self.formats else "other_format"


@register("selector")
class KeepChannels:
    """Keep pictures with one of these numbers of channels. Reason: `other_channels`."""

    channels: Annotated[tuple[Pixel, ...], Field(min_length=1, description="numbers of channels, such as [1, 3]")]

    def reason(self, picture: Picture) -> str | None:
        return None if picture.channels in self.channels else "other_channels"


@register("selector")
class FileSizeBetween:
    """Keep pictures by the size of their encoded bytes. Reasons: `too_few_bytes`, `too_many_bytes`."""

    min_bytes: Annotated[int | None, Field(ge=1, description="minimum size in bytes, inclusive")] = None
    max_bytes: Annotated[int | None, Field(ge=1, description="maximum size in bytes, inclusive")] = None

    @model_validator(mode="after")
    def _check(self) -> FileSizeBetween:
        in_order(self, "min_bytes", "max_bytes")
        return self

    def reason(self, picture: Picture) -> str | None:
        if self.min_bytes is not None and picture.num_bytes < self.min_bytes:
            return "too_few_bytes"
        return "too_many_bytes" if self.max_bytes is not None and picture.num_bytes > self.max_bytes else None


@register("selector")
class Sample:
    """Keep a random fraction of the pictures, chosen only by key and seed, so the same ones every time.

    A larger fraction keeps all pictures of a smaller one. Reason: `not_sampled`.
    """

    fraction: Annotated[float, Field(gt=0, lt=1, description="probability that a picture is kept")]
    seed: Annotated[int, Field(ge=0, lt=2**63, description="another seed keeps other pictures")] = 0

    def reason(self, picture: Picture) -> str | None:
        digest = blake2b(f"{self.seed}\0{picture.key}".encode(), digest_size=8, person=b"sample").digest()
        return None if int.from_bytes(digest, "big") < self.fraction * 2**64 else "not_sampled"


@register("selector")
class ScoreAtLeast:
    """Keep pictures to which a classifier gave at least this probability for a class. Reason: `score_below`.

    Reads the columns that `striate predict BUNDLE DATASET DEST` writes; a class that is not in a picture's
    `top_classes` counts as below. Values are compared as float32, as they are stored.

    Raises:
        StepError: if the dataset has no such columns.
    """

    label: Annotated[str, Field(min_length=1, description="name of the class in the classifier")]
    probability: Annotated[float, Field(ge=0, le=1, description="minimum probability, inclusive")]

    def reason(self, picture: Picture) -> str | None:
        try:
            names: Sequence[str] = picture.column(TOP_CLASSES) or ()
            probabilities: Sequence[float] = picture.column(TOP_PROBABILITIES) or ()
        except KeyError as error:
            raise StepError(
                f"step '{self}' on picture '{picture.key}': the dataset has no column {error}; run `striate predict "
                "BUNDLE DATASET DEST` first, and select from its output"
            ) from None
        probability = dict(zip(names, probabilities, strict=True)).get(self.label, -1.0)
        return "score_below" if np.float32(probability) < np.float32(self.probability) else None
