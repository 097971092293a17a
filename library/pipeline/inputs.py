"""Prepares a model's input from stored bytes, in the same way for training, evaluation and serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from library.errors import BadPicture, StriateError, UsageError
from library.imaging import codec
from library.imaging.picture import Decode, Picture, Pixels
from library.pipeline import Pipeline
from library.pipeline.batch import run_step
from library.steps.base import Step

#: A picture as a model takes it: its pixels; for an ensemble a tuple with one entry per member.
Prepared: TypeAlias = "Pixels | tuple[Prepared, ...]"

#: Side of the flat test picture that is used to find out how many channels the steps return.
_TEST_SIDE_PX = 256
_SCALES = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}


@dataclass(frozen=True)
class InputPipeline:
    """The steps that turn a picture into a model's input.

    Attributes:
        steps: the recipe's filters and selectors.
        fit: filters that give every picture the model's size; skipped if it already has that size.
        size: height and width in pixels.
        channels: number of channels of the result.
        decode: decodes stored pictures; on the CPU unless a recipe's `input.decode` says otherwise.
    """

    steps: Pipeline
    fit: Pipeline
    size: tuple[int, int]
    channels: int
    decode: Decode = codec.decode

    @classmethod
    def parse(cls, steps: str, fit: str, size: tuple[int, int], channels: int) -> InputPipeline:
        """Parses the canonical texts that a recipe's task or a bundle stores; an empty text has no steps."""
        both = [Pipeline.parse(text) if text else Pipeline() for text in (steps, fit)]
        return cls(both[0], both[1], (size[0], size[1]), channels)

    @property
    def whole(self) -> Pipeline:
        """The steps and `fit` as one pipeline; without `fit` if the steps end with it, because it is then skipped."""
        steps, fit = self.steps.steps, self.fit.steps
        return self.steps if fit and steps[-len(fit) :] == fit else Pipeline((*steps, *fit))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the other columns that the steps need, for example a mask."""
        named = (step.columns() for step in self.steps.steps)
        return tuple(dict.fromkeys(name for names in named for name in names))

    def before_fit(self, data: bytes, limits: codec.Limits = codec.DEFAULT_LIMITS, /, **columns: Any) -> Pixels:
        """Decodes and runs `steps` only; training augments between this and `fitted`.

        Args:
            data: the encoded picture.
            limits: checked from the header, before anything is decoded.
            columns: `key`, `label` and all other columns that a step needs.

        Returns:
            Height x width x channels, of the size that the steps leave.

        Raises:
            BadPicture: if it cannot be decoded; `dropped:REASON` if a selector drops it.
        """
        picture = _picture(data, limits, columns, decode=self.decode)
        self._run(self.steps.steps, picture)
        return picture.pixels

    def fitted(self, pixels: Pixels) -> Pixels:
        """Returns the pixels in the model's size.

        Raises:
            BadPicture: `wrong_shape` if the pipeline returns another shape than the model takes.
        """
        if pixels.shape[:2] != self.size:
            pixels = self.fit.apply(pixels)
        self.check_shape(pixels.shape)
        return np.ascontiguousarray(pixels)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises BadPicture `wrong_shape` if height, width and channels are not those that the model takes."""
        height, width, channels = shape
        if channels != self.channels:
            raise BadPicture("wrong_shape", self._wrong_channels(channels))
        if (height, width) != self.size:
            sizes = f"the model takes {self.size[0]}x{self.size[1]} pixels but input.fit returns {height}x{width}"
            raise BadPicture(
                "wrong_shape", f'{sizes}; end it with resize([{self.size[0]}, {self.size[1]}], mode="exact")'
            )

    def prepare(self, data: bytes, limits: codec.Limits = codec.DEFAULT_LIMITS, /, **columns: Any) -> Pixels:
        """Returns the model's input, height x width x channels; raises like `before_fit` and `fitted`."""
        return self.fitted(self.before_fit(data, limits, **columns))

    def prepare_pixels(self, pixels: Pixels, /, **columns: Any) -> Pixels:
        """Like `prepare`, for a decoded picture (height x width x channels; uint8, uint16 or float32)."""
        picture = _picture(b"", codec.DEFAULT_LIMITS, columns, pixels)
        self._run(self.steps.steps, picture)
        return self.fitted(picture.pixels)

    def check_channels(self, dataset: str, counts: Mapping[str, int]) -> None:
        """Refuses a dataset if no picture in it can get the model's number of channels; reads no pictures.

        Args:
            dataset: URI, for the error message.
            counts: number of pictures by number of channels, from the manifest's tally.

        Raises:
            UsageError: says which channels the pictures have, which the model takes, and what would work.
        """
        results = {channels: self._channels_from(int(channels)) for channels, count in counts.items() if count}
        if results and self.channels not in results.values() and None not in results.values():
            most_common = max(results, key=lambda channels: counts[channels])
            stored = ", ".join(f"{counts[each]:,} with {_channels_text(int(each))}" for each in results)
            raise UsageError(
                f"{dataset} has no picture that the model can take ({stored}): "
                f"{self._wrong_channels(results[most_common])}"
            )

    def _channels_from(self, channels: int) -> int | None:
        """The number of channels that the steps return for pictures of `channels`; None if a flat picture fails."""
        try:
            pixels = np.full((_TEST_SIDE_PX, _TEST_SIDE_PX, channels), 128, np.uint8)
            picture = _picture(b"", codec.DEFAULT_LIMITS, {}, pixels)
            # Selectors do not change pictures, but would drop a flat one.
            self._run([step for step in self.steps.steps if step.kind != "selector"], picture)
            return self.fit.apply(picture.pixels).shape[2]
        except StriateError:
            return None

    def _wrong_channels(self, channels: int | None) -> str:
        steps = {1: "grayscale", 3: "rgb"}.get(self.channels, f"channels({list(range(self.channels))})")
        return (
            f"the model takes {_channels_text(self.channels)} but its input pipeline returns "
            f"{_channels_text(channels or 0)}; add "
            f"{steps} to the recipe's input.steps, or train a model with in_chans={channels}; for a "
            f"finished model, convert the pictures: striate filter --steps '{steps}'"
        )

    def _run(self, steps: Sequence[Step], picture: Picture) -> None:
        for step in steps:
            reason = run_step(step, picture)
            if reason is not None:
                raise BadPicture(f"dropped:{reason}", f"the model's selector '{step}' drops it")


def _channels_text(channels: int) -> str:
    """A number of channels as text, such as `3 channels (RGB)`."""
    names = {1: " (grey)", 2: " (grey and alpha)", 3: " (RGB)", 4: " (RGB and alpha)"}
    return f"{channels} channel{'' if channels == 1 else 's'}{names.get(channels, '')}"


def _picture(
    data: bytes,
    limits: codec.Limits,
    columns: Mapping[str, Any],
    pixels: Pixels | None = None,
    decode: Decode = codec.decode,
) -> Picture:
    if pixels is None:
        header = codec.probe(data, limits)
    else:
        header = codec.Header("npy", pixels.shape[1], pixels.shape[0], pixels.shape[2], pixels.dtype.name)
    key, label = str(columns.get("key", "")), columns.get("label")
    picture = Picture(key, label, header, lambda: data, columns, limits, decode)
    if pixels is not None:
        picture.replace(pixels)
    return picture


def stack(pictures: Sequence[Pixels]) -> NDArray[Any]:
    """Stacks prepared pictures into N x height x width x channels; as float32 from 0 to 1 if their dtypes differ."""
    if len({picture.dtype for picture in pictures}) == 1:
        return np.stack(pictures)
    return np.stack([scaled(picture) for picture in pictures])


def scaled(picture: Pixels) -> Pixels:
    """The pixels as float32 from 0 to 1."""
    return picture.astype(np.float32) / _SCALES[picture.dtype.name]
