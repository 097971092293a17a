"""Filters that change the channels: to grey, to RGB, or to a choice of bands."""

from __future__ import annotations

from typing import Annotated, Any, cast

import cv2
import numpy as np
from pydantic import BeforeValidator, Field

from library.errors import BadPicture
from library.imaging.picture import Pixels
from library.steps.arrays import Fraction, saturated, white
from library.steps.base import Filter, Steps, leaves_in_place, register


@register("filter", still=True)
class Grayscale:
    """Convert to one grey channel.

    1 channel is unchanged; 2 (grey and alpha) and 4 (RGB and alpha) are first composited over `background`; 3 give the
    luma of ITU-R BT.601 (0.299 R + 0.587 G + 0.114 B); any other number of bands gives their mean. For a
    four-band picture without alpha, pick bands first with `channels`.
    """

    background: Annotated[Fraction, Field(description="grey under transparent pixels, as a fraction of white")] = 1.0

    def __call__(self, pixels: Pixels) -> Pixels:
        channels = pixels.shape[2]
        if channels in (2, 4):
            pixels = composited(pixels, (self.background,) * (channels - 1))
        if pixels.shape[2] == 1:
            return pixels
        if pixels.shape[2] == 3:
            return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[:, :, None]
        return saturated(pixels.mean(axis=2, keepdims=True, dtype=np.float64), pixels.dtype)


@register("filter", still=True)
class Rgb:
    """Convert to three channels: red, green, blue.

    1 channel is repeated; 2 (grey and alpha) and 4 (RGB and alpha) are composited over `background`; 3 are unchanged.
    Palette and CMYK pictures are already decoded to RGB.

    Raises:
        BadPicture: `wrong_channels` for 5 channels or more; pick three with `channels`.
    """

    background: Annotated[
        tuple[Fraction, Fraction, Fraction],
        Field(description="red, green, blue under transparent pixels, as fractions of white"),
    ] = (1.0, 1.0, 1.0)

    def __call__(self, pixels: Pixels) -> Pixels:
        channels = pixels.shape[2]
        if channels == 3:
            return pixels
        if channels == 1:
            return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB))
        if channels == 2:
            pixels = pixels[:, :, [0, 0, 0, 1]]
        elif channels != 4:
            raise BadPicture("wrong_channels", f"{channels} channels are not RGB; pick three with channels(bands=...)")
        return composited(pixels, self.background)


@register("filter", still=True)
class Channels:
    """Pick or reorder channels: `channels([3, 2, 1])` is near-infrared false colour of a blue-green-red-NIR picture.

    Raises:
        BadPicture: `wrong_channels` if the picture does not have one of the bands.
    """

    bands: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        Field(min_length=1, description="channels of the result, each by its number in the picture, counted from 0"),
    ]

    def __call__(self, pixels: Pixels) -> Pixels:
        channels = pixels.shape[2]
        if max(self.bands) >= channels:
            raise BadPicture(
                "wrong_channels",
                f"band {max(self.bands)} does not exist; the picture has {channels} channels, counted from 0",
            )
        picked = np.empty((*pixels.shape[:2], len(self.bands)), pixels.dtype)
        for index, band in enumerate(self.bands):
            picked[:, :, index] = pixels[:, :, band]
        return picked


def _are_still_filters(value: Any) -> Any:
    if not isinstance(value, Steps):
        raise ValueError("should be a filter, or several joined by '|', e.g. edges(direction=\"vertical\")")
    for step in value.steps:
        if step.kind != "filter" or step.columns() or not leaves_in_place(step):
            raise ValueError(f"should be filters that leave everything in its place; '{step.name}' is none")
    return value


@register("filter", still=True)
class WithChannels:
    """Add the channels of a filtered copy: `with_channels(edges)` gives a grey picture a second channel of edges.

    The model then sees both, as the feature channels of Dollar et al. 2009 (Integral channel features).

    Raises:
        BadPicture: what the filters raise.
        ValueError: a filter of a plugin changes the dtype or the size.
    """

    filters: Annotated[
        Steps,
        BeforeValidator(_are_still_filters),
        Field(description="one filter, or several: a | b; none that moves pixels or changes the size"),
    ]

    def __call__(self, pixels: Pixels) -> Pixels:
        filtered = pixels
        for step in self.filters.steps:
            filtered = cast(Filter, step)(filtered)
        # Joined to others, uint8 would become float32 silently, with the wrong white.
        if filtered.dtype != pixels.dtype or filtered.shape[:2] != pixels.shape[:2]:
            raise ValueError(
                f"with_channels({self.filters}) makes {filtered.dtype} {filtered.shape[1]} x {filtered.shape[0]} of "
                f"{pixels.dtype} {pixels.shape[1]} x {pixels.shape[0]}; its filters must keep the dtype and the size"
            )
        return np.concatenate([pixels, filtered], axis=2)


def composited(pixels: Pixels, background: tuple[float, ...]) -> Pixels:
    """Composites colours over a background by straight alpha, the last channel: `colour * a + background * (1 - a)`.

    Porter and Duff 1984, the operator "over". Float alpha is clipped to 0..1; float colours are not.

    Args:
        pixels: height x width x (colours and alpha).
        background: one value per colour, as fractions of white.

    Returns:
        Height x width x colours, of the same dtype.
    """
    top = white(pixels.dtype)
    colours, alpha = pixels[:, :, :-1], pixels[:, :, -1:]
    if alpha.min() >= top:
        return np.ascontiguousarray(colours)
    opacity = np.clip(alpha.astype(np.float32) / np.float32(top), 0, 1)
    under = np.asarray(background, np.float32) * np.float32(top)
    return saturated(colours * opacity + under * (1 - opacity), pixels.dtype)
