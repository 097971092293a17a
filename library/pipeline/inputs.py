"""From stored bytes to what a model sees: the one way that training, evaluation and serving take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from library.errors import BadPicture, StriateError, UsageError
from library.imaging import codec
from library.imaging.picture import Picture, Pixels
from library.pipeline import Pipeline
from library.pipeline.batch import run_step
from library.steps.base import Step

#: A picture as a model takes it: its pixels; for an ensemble a tuple with one entry a member.
Prepared: TypeAlias = "Pixels | tuple[Prepared, ...]"

#: Side of the flat picture that is sent through the steps to see how many channels come out.
_PROBED_PX = 256
_SCALES = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}


@dataclass(frozen=True)
class InputPipeline:
    """What a model sees of a picture.

    Attributes:
        steps: filters and selectors, as the recipe has them.
        fit: filters that give every picture the model's size; skipped for one that has it.
        size: height and width in pixels.
        channels: of the result.
    """

    steps: Pipeline
    fit: Pipeline
    size: tuple[int, int]
    channels: int

    @classmethod
    def parse(cls, steps: str, fit: str, size: tuple[int, int], channels: int) -> InputPipeline:
        """From canonical texts, as a recipe's task and a bundle hold them; an empty one has no steps."""
        both = [Pipeline.parse(text) if text else Pipeline() for text in (steps, fit)]
        return cls(both[0], both[1], (size[0], size[1]), channels)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the other columns that the steps ask for, such as a mask's."""
        named = (step.columns() for step in self.steps.steps)
        return tuple(dict.fromkeys(name for names in named for name in names))

    def before_fit(self, data: bytes, limits: codec.Limits = codec.DEFAULT_LIMITS, /, **columns: Any) -> Pixels:
        """Decode and run `steps` only; between here and `fitted` training augments.

        Args:
            data: the encoded picture.
            limits: checked from the header, before anything is decoded.
            columns: `key`, `label` and whatever other columns a step asks for.

        Raises:
            BadPicture: what cannot be decoded; `dropped:REASON` where a selector drops it.
        """
        picture = _picture(data, limits, columns)
        self._run(self.steps.steps, picture)
        return picture.pixels

    def fitted(self, pixels: Pixels) -> Pixels:
        """Pixels of the model's size.

        Raises:
            BadPicture: `wrong_shape` where the pipeline gives another shape than the model takes.
        """
        if pixels.shape[:2] != self.size:
            pixels = self.fit.apply(pixels)
        if pixels.shape[2] != self.channels:
            raise BadPicture("wrong_shape", self._way_out(pixels.shape[2]))
        if pixels.shape[:2] != self.size:
            (height, width), (found_height, found_width) = self.size, pixels.shape[:2]
            sizes = f"the model takes {height}x{width} pixels and input.fit gives {found_height}x{found_width}"
            raise BadPicture("wrong_shape", f'{sizes}; end it with resize([{height}, {width}], mode="exact")')
        return np.ascontiguousarray(pixels)

    def prepare(self, data: bytes, limits: codec.Limits = codec.DEFAULT_LIMITS, /, **columns: Any) -> Pixels:
        """Bytes to what the model sees: height x width x channels; raises as `before_fit` and `fitted`."""
        return self.fitted(self.before_fit(data, limits, **columns))

    def prepare_pixels(self, pixels: Pixels, /, **columns: Any) -> Pixels:
        """As `prepare`, from a decoded picture."""
        picture = _picture(b"", codec.DEFAULT_LIMITS, columns, pixels)
        self._run(self.steps.steps, picture)
        return self.fitted(picture.pixels)

    def check_channels(self, dataset: str, counts: Mapping[str, int]) -> None:
        """Refuse a dataset of which no picture has the model's channels after the input pipeline; nothing is read.

        Args:
            dataset: URI, for the error.
            counts: pictures by number of channels, as a manifest's tally has them.

        Raises:
            UsageError: says what the pictures have, what the model takes, and what would work.
        """
        given = {channels: self._channels_from(int(channels)) for channels, count in counts.items() if count}
        if given and self.channels not in given.values() and None not in given.values():
            most = max(given, key=lambda channels: counts[channels])
            have = ", ".join(f"{counts[each]:,} with {_counted(int(each))}" for each in given)
            raise UsageError(
                f"{dataset} holds no picture that the model can take ({have}): {self._way_out(given[most])}"
            )

    def _channels_from(self, channels: int) -> int | None:
        """How many come out where so many go in; None where a flat picture does not tell."""
        try:
            pixels = np.full((_PROBED_PX, _PROBED_PX, channels), 128, np.uint8)
            picture = _picture(b"", codec.DEFAULT_LIMITS, {}, pixels)
            # A selector would drop the flat picture, and changes none.
            self._run([step for step in self.steps.steps if step.kind != "selector"], picture)
            return self.fit.apply(picture.pixels).shape[2]
        except StriateError:
            return None

    def _way_out(self, found: int | None) -> str:
        steps = {1: "grayscale", 3: "rgb"}.get(self.channels, f"channels({list(range(self.channels))})")
        return (
            f"the model takes {_counted(self.channels)} and its input pipeline gives {_counted(found or 0)}; add "
            f"{steps} to the recipe's input.steps, or train a model that takes them, with in_chans={found}; for a "
            f"finished model convert the pictures: striate filter --steps '{steps}'"
        )

    def _run(self, steps: Sequence[Step], picture: Picture) -> None:
        for step in steps:
            reason = run_step(step, picture)
            if reason is not None:
                raise BadPicture(f"dropped:{reason}", f"the model's own selector '{step}' drops it")


def _counted(channels: int) -> str:
    """`1 channel (grey)`, `3 channels (RGB)`."""
    names = {1: " (grey)", 2: " (grey and alpha)", 3: " (RGB)", 4: " (RGB and alpha)"}
    return f"{channels} channel{'' if channels == 1 else 's'}{names.get(channels, '')}"


def _picture(data: bytes, limits: codec.Limits, columns: Mapping[str, Any], pixels: Pixels | None = None) -> Picture:
    if pixels is None:
        header = codec.probe(data, limits)
    else:
        header = codec.Header("npy", pixels.shape[1], pixels.shape[0], pixels.shape[2], pixels.dtype.name)
    key, label = str(columns.get("key", "")), columns.get("label")
    picture = Picture(key, label, header, lambda: data, columns, limits)
    if pixels is not None:
        picture.replace(pixels)
    return picture


def stack(pictures: Sequence[Pixels]) -> NDArray[Any]:
    """Prepared pictures as one batch, N x height x width x channels; of several dtypes: float32 in 0 to 1."""
    if len({picture.dtype for picture in pictures}) == 1:
        return np.stack(pictures)
    return np.stack([scaled(picture) for picture in pictures])


def scaled(picture: Pixels) -> Pixels:
    """As float32 in 0 to 1, whatever the dtype."""
    return picture.astype(np.float32) / _SCALES[picture.dtype.name]
