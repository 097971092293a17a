"""Augmentations of tone and colour.

Integers are rounded and saturated, float32 is not clipped. An alpha channel is treated like the other channels.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import cv2
import numpy as np
from pydantic import AfterValidator, Field

from library.errors import BadPicture
from library.imaging.picture import Pixels
from library.randomness import Factor, factor, in_order, symmetric
from library.steps.arrays import MAX_CV_CHANNELS, Fraction, finite_range, saturated, white
from library.steps.base import register

#: ITU-R BT.601, as in `grayscale`.
LUMA = (0.299, 0.587, 0.114)

_HueShift = Annotated[float, Field(ge=0, le=0.5)]
_SignedHueShift = Annotated[float, Field(ge=-0.5, le=0.5)]


@register("augmentation", still=True)
class Brightness:
    """Multiply all values by a random factor.

    Like torchvision's ColorJitter(brightness=...) and, with a pair, Keras' brightness_range.
    """

    amount: Annotated[Factor, Field(description="a: factors from 1 - a to 1 + a; or [low, high]")]

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        return scaled(pixels, factor(self.amount, rng))


@register("augmentation", still=True)
class Contrast:
    """Multiply the difference of all values from the picture's mean grey by a random factor.

    Like torchvision's ColorJitter(contrast=...): the mean is that of `grayscale` for RGB, else that of all channels.

    Raises:
        BadPicture: `not_finite`.
    """

    amount: Annotated[Factor, Field(description="a: factors from 1 - a to 1 + a; or [low, high]; 0 is all grey")]

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        return contrasted(pixels, factor(self.amount, rng))


@register("augmentation", still=True)
class Saturation:
    """Multiply the difference of each pixel from its grey by a random factor: 0 is grey, above 1 more colourful.

    Like torchvision's ColorJitter(saturation=...).

    Raises:
        BadPicture: `wrong_channels` unless the picture has three channels, red, green and blue.
    """

    amount: Annotated[Factor, Field(description="a: factors from 1 - a to 1 + a; or [low, high]")]

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        require_rgb(pixels.shape[2], "saturation")
        return saturated_by(pixels, factor(self.amount, rng))


@register("augmentation", still=True)
class Hue:
    """Rotate all hues by one random angle of the colour wheel; HSV's value and saturation are kept.

    Like torchvision's ColorJitter(hue=...). uint8 is converted to 8-bit HSV, where the angle is a multiple of 1/256 and
    a value may be off by up to 10 levels (less than 1 on average), as in Pillow.

    Raises:
        BadPicture: `wrong_channels` unless the picture has three channels, red, green and blue; `not_finite`.
    """

    amount: Annotated[
        Annotated[_HueShift | tuple[_SignedHueShift, _SignedHueShift], AfterValidator(in_order)],
        Field(description="maximum in both directions, or [low, high], as a fraction of the wheel; 0.5 is opposite"),
    ]

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        require_rgb(pixels.shape[2], "hue")
        return _hue_rotated(pixels, symmetric(self.amount, rng))


@register("augmentation", still=True)
class ChannelShift:
    """Add a different random number to each channel, which gives a colour cast.

    Keras' channel_shift_range adds the same number to all channels, which only changes the brightness.
    """

    amount: Annotated[Fraction, Field(description="maximum in both directions, as a fraction of white")]

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        top = white(pixels.dtype)
        offsets = rng.uniform(-self.amount * top, self.amount * top, pixels.shape[2])
        if pixels.dtype == np.float32:
            return pixels + offsets.astype(np.float32)
        whole = np.rint(offsets).astype(np.int32)
        if pixels.dtype == np.uint8 and pixels.shape[2] <= MAX_CV_CHANNELS:
            table = np.clip(np.arange(256, dtype=np.int32)[:, None] + whole, 0, 255).astype(np.uint8)
            return np.asarray(cv2.LUT(pixels, table[None])).reshape(pixels.shape)
        return np.clip(np.add(pixels, whole, dtype=np.int32), 0, top).astype(pixels.dtype)


def scaled(pixels: Pixels, gain: float, offset: float = 0.0) -> Pixels:
    """`pixels * gain + offset` of a picture (height x width x channels), in the same dtype; integers saturate."""
    if gain == 1 and offset == 0:
        return pixels
    flat = pixels.reshape(pixels.shape[0], -1)
    return np.asarray(cv2.addWeighted(flat, gain, flat, 0.0, offset)).reshape(pixels.shape)


def contrasted(pixels: Pixels, gain: float) -> Pixels:
    """Multiplies the difference of all values from the mean grey; raises BadPicture `not_finite`."""
    if pixels.shape[2] == 3:
        mean = sum(weight * channel for weight, channel in zip(LUMA, cv2.mean(pixels)[:3], strict=True))
    else:
        mean = float(cv2.mean(pixels.reshape(pixels.shape[0], -1))[0])
    if not math.isfinite(mean):
        raise BadPicture("not_finite", "the picture contains NaN or infinity, but this step needs finite values")
    return scaled(pixels, gain, (1 - gain) * mean)


def saturated_by(pixels: Pixels, gain: float) -> Pixels:
    """Multiplies the difference of each pixel of an RGB picture from its grey."""
    if gain == 1:
        return pixels
    to_grey = np.tile(np.asarray(LUMA) * (1 - gain), (3, 1))
    return np.asarray(cv2.transform(pixels, to_grey + np.eye(3) * gain))


def _hue_rotated(pixels: Pixels, turn: float) -> Pixels:
    """Rotates the hues of an RGB picture by a fraction of the wheel."""
    if turn == 0:
        return pixels
    if pixels.dtype == np.uint8:
        hsv: Any = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
        hsv[:, :, 0] += np.uint8(round(turn * 256) % 256)  # 256 steps are the whole wheel, so the sum may wrap
        return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL))
    values = pixels.astype(np.float32)
    _, high = finite_range(values)
    # Hue depends only on differences of channels. OpenCV adds a tiny constant to its divisor, which does not matter for
    # values about 1, and needs values that are not negative.
    least = values.min(axis=2, keepdims=True)
    peak = np.float32(high - float(least.min())) or np.float32(1)
    hsv = cv2.cvtColor((values - least) / peak, cv2.COLOR_RGB2HSV)
    hsv[:, :, 0] = (hsv[:, :, 0] + np.float32(turn * 360)) % np.float32(360)
    return saturated(np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)) * peak + least, pixels.dtype)


def require_rgb(channels: int, name: str) -> None:
    """Raises BadPicture `wrong_channels` unless there are three channels; `name` is the step's."""
    if channels != 3:
        count = f"{channels} channel{'s' * (channels > 1)}"
        raise BadPicture(
            "wrong_channels", f"{name} needs red, green and blue; the picture has {count}; put 'rgb' before it"
        )
