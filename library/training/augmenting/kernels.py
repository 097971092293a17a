"""The arithmetic of batched augmentation: functions of stacks of uint8 pictures, n x height x width x channels.

They repeat OpenCV's arithmetic, including where it rounds. Sums are taken in a fixed order, element by element or over
whole numbers, so that a picture's result does not depend on the other pictures of its batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from library.steps.augmentations.photometric import LUMA

# Warps treat channels in groups of four; OpenCV computes a group of two with coordinates that are rounded to 1024ths of
# a pixel, added, and rounded to 32nds.
_GROUP = 4
_FINE, _FRACTIONS = 1024, 32
# The fractions of OpenCV's integer arithmetic, in bits.
_COLOUR_BITS, _HUE_BITS, _GREY_BITS = 10, 12, 15


def on(device: torch.device, array: NDArray[Any], *trailing: int) -> Tensor:
    """A NumPy array on a device, with so many dimensions of length 1 appended."""
    tensor = torch.from_numpy(np.ascontiguousarray(array)).to(device)
    return tensor.reshape(*tensor.shape, *trailing)


def rounded(values: Tensor) -> Tensor:
    """Float values as uint8: rounded, half to even, and saturated."""
    return values.round().clamp(0, 255).to(torch.uint8)


# -- tone and colour --------------------------------------------------------------------------------------------------


def brightness(stack: Tensor, gains: NDArray[np.float64]) -> Tensor:
    """Multiplies all values."""
    return _scaled(stack, gains, np.zeros(len(gains)))


def contrast(stack: Tensor, gains: NDArray[np.float64]) -> Tensor:
    """Multiplies the difference of all values from each picture's mean grey."""
    _, height, width, channels = stack.shape
    sums = stack.sum((1, 2), dtype=torch.int64).cpu().numpy()
    if channels == 3:
        means = sums / (height * width)
        grey = LUMA[0] * means[:, 0] + LUMA[1] * means[:, 1] + LUMA[2] * means[:, 2]
    else:
        grey = sums.sum(axis=1) / (height * width * channels)
    return _scaled(stack, gains, (1 - gains) * grey)


def _scaled(stack: Tensor, gains: NDArray[np.float64], offsets: NDArray[np.float64]) -> Tensor:
    gain, offset = (on(stack.device, each.astype(np.float32), 1, 1, 1) for each in (gains, offsets))
    return rounded(stack * gain + offset)


def saturation(stack: Tensor, gains: NDArray[np.float64]) -> Tensor:
    """Multiplies the difference of each RGB pixel from its grey."""
    matrices = np.tile(np.asarray(LUMA), (len(gains), 3, 1)) * (1 - gains)[:, None, None]
    matrices += np.eye(3) * gains[:, None, None]
    whole = on(stack.device, np.rint(matrices * 2**_COLOUR_BITS).astype(np.int32))
    values = stack.to(torch.int32)
    red, green, blue = (values[..., band : band + 1] * whole[:, None, None, :, band] for band in range(3))
    return ((red + green + blue + 2 ** (_COLOUR_BITS - 1)) >> _COLOUR_BITS).clamp(0, 255).to(torch.uint8)


def grey(stack: Tensor) -> Tensor:
    """The luma of three channels, the mean of any other number: n x height x width x 1."""
    values = stack.to(torch.int32)
    if stack.shape[3] != 3:
        return rounded(values.sum(3, keepdim=True).double() / stack.shape[3])
    whole = np.rint(np.asarray(LUMA) * 2**_GREY_BITS).astype(np.int32)
    total = (values * on(stack.device, whole)).sum(3, keepdim=True)
    return ((total + 2 ** (_GREY_BITS - 1)) >> _GREY_BITS).to(torch.uint8)


def composite(stack: Tensor, background: NDArray[np.float32]) -> Tensor:
    """Composites colours over a background by their alpha, the last channel, which the result lacks."""
    opacity = stack[..., -1:].float() / 255
    return rounded(stack[..., :-1] * opacity + on(stack.device, background) * (1 - opacity))


def hue(stack: Tensor, turns: NDArray[np.float64]) -> Tensor:
    """Rotates the hues of RGB pixels by 256ths of the wheel, in OpenCV's 8-bit HSV."""
    red, green, blue = stack.to(torch.int32).unbind(3)
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    levels = np.arange(1, 256)
    one = 1 << _HUE_BITS
    to_saturation = on(stack.device, np.concatenate([[0], np.rint(255 * one / levels)]).astype(np.int32))
    to_hue = on(stack.device, np.concatenate([[0], np.rint(256 * one / (6.0 * levels))]).astype(np.int32))
    whole = (spread * to_saturation[value] + one // 2) >> _HUE_BITS
    sector = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    angle = (sector * to_hue[spread] + one // 2) >> _HUE_BITS
    angle = torch.where(angle < 0, angle + 256, angle).clamp(max=255)
    turned = (angle + on(stack.device, turns.astype(np.int32), 1, 1)) % 256
    return _from_hsv(turned, whole, value)


def _from_hsv(angle: Tensor, whole: Tensor, value: Tensor) -> Tensor:
    """RGB of hue, saturation and value, each 0 to 255; OpenCV takes 255 for the whole wheel here."""
    sixths = angle.float() * float(np.float32(6 / 255))
    below = sixths.floor()
    part = sixths - below
    sector = below.to(torch.int64) % 6
    high = value.float() * float(np.float32(1 / 255))
    depth = high * (whole.float() * float(np.float32(1 / 255)))
    low, falling, rising = high - depth, high - depth * part, high - depth + depth * part
    choices = torch.stack([high, low, falling, rising], dim=-1)
    #: For red, green and blue: which of the four it is in each sixth of the wheel.
    wheel = torch.tensor(
        [[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]], dtype=torch.int64, device=angle.device
    )
    return rounded(choices.gather(-1, wheel[sector]) * 255)


def posterize(stack: Tensor, masks: NDArray[np.float64]) -> Tensor:
    """Keeps the bits of a mask."""
    return stack & on(stack.device, masks.astype(np.uint8), 1, 1, 1)


def solarize(stack: Tensor, lowest: NDArray[np.float64]) -> Tensor:
    """Inverts all values from the lowest one on."""
    return torch.where(stack >= on(stack.device, lowest.astype(np.float32), 1, 1, 1), 255 - stack, stack)


def invert(stack: Tensor, _: NDArray[np.float64]) -> Tensor:
    """Makes the negative."""
    return 255 - stack


def stretch(stack: Tensor, _: NDArray[np.float64]) -> Tensor:
    """Spreads the values of each channel from 0 to 255; a flat channel stays."""
    low, high = (extreme((1, 2)).double()[:, :, None] for extreme in (stack.amin, stack.amax))
    return _spread(stack, low, high)


def equalize(stack: Tensor, _: NDArray[np.float64]) -> Tensor:
    """Equalizes the histogram of each channel; a flat channel stays."""
    height, width = stack.shape[1:3]
    below = _histograms(stack).cumsum(2)
    least = torch.where(below > 0, below, height * width + 1).amin(2, keepdim=True)
    scale = 255.0 / (height * width - least).clamp(min=1).float()
    tables = ((below - least).clamp(min=0).float() * scale).round()
    ramp = torch.arange(256, dtype=torch.float32, device=stack.device)
    return _looked_up(stack, torch.where(least == height * width, ramp, tables))


def _histograms(stack: Tensor) -> Tensor:
    """How often each value occurs: n x channels x 256."""
    count, _, _, channels = stack.shape
    planes = torch.arange(count * channels, device=stack.device).reshape(count, 1, 1, channels) * 256
    counts = torch.bincount((planes + stack).reshape(-1), minlength=count * channels * 256)
    return counts.reshape(count, channels, 256)


def _looked_up(stack: Tensor, tables: Tensor) -> Tensor:
    """Each value replaced by its entry in the table of its picture and channel: n x channels x 256."""
    values = stack.movedim(3, 1).flatten(2)
    found = tables.to(torch.uint8).gather(2, values.to(torch.int64))
    return found.reshape(stack.movedim(3, 1).shape).movedim(1, 3).contiguous()


def stretch_between(stack: Tensor, low_percentile: float, high_percentile: float) -> Tensor:
    """Spreads the values of each channel between two percentiles from 0 to 255; where they are equal it stays."""
    count, height, width, channels = stack.shape
    below = _histograms(stack).cumsum(2)
    shares = np.clip(np.asarray([low_percentile, high_percentile]) * (height * width / 100), 1, height * width)
    bounds = on(stack.device, shares).expand(count, channels, 2).contiguous()
    low, high = torch.searchsorted(below.double(), bounds).double().split(1, 2)
    return _spread(stack, low, high)


def _spread(stack: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Spreads values from `low` to `high`, each n x channels x 1, from 0 to 255; where they are equal, values stay."""
    ramp = torch.arange(256, dtype=torch.float64, device=stack.device)
    # A number divided by a tensor would be multiplied by its reciprocal, which rounds twice.
    scale = torch.full_like(low, 255) / (high - low).clamp(min=1)
    return _looked_up(stack, torch.where(high == low, ramp, ((ramp - low) * scale).clamp(0, 255).round()))


def channel_shift(stack: Tensor, offsets: NDArray[np.int32]) -> Tensor:
    """Adds a number to each channel."""
    return (stack.to(torch.int32) + on(stack.device, offsets)[:, None, None, :]).clamp(0, 255).to(torch.uint8)


def noise(stack: Tensor, levels: NDArray[np.uint16], normal: NDArray[np.float32], sigma: float) -> Tensor:
    """Adds noise, given as indices of a table of the normal distribution."""
    table = on(stack.device, (normal * np.float32(sigma)).astype(np.float32))
    return rounded(table[on(stack.device, levels.astype(np.int32))] + stack)


# -- geometry ---------------------------------------------------------------------------------------------------------


def warp(stack: Tensor, inverses: NDArray[np.float64], fill: int | str) -> Tensor:
    """Maps pictures linearly, with linear interpolation; `inverses` maps new points to old ones."""
    channels = stack.shape[3]
    if channels <= _GROUP:
        return _warped(stack, inverses, fill)
    groups = [stack[..., start : start + _GROUP].contiguous() for start in range(0, channels, _GROUP)]
    return torch.cat([_warped(group, inverses, fill) for group in groups], dim=3)


def _warped(stack: Tensor, inverses: NDArray[np.float64], fill: int | str) -> Tensor:
    count, height, width, channels = stack.shape
    places = (_places if channels != 2 else _places_in_fractions)(stack, inverses)
    lefts, tops = (place.floor() for place in places)
    across, down = (places[0] - lefts)[..., None], (places[1] - tops)[..., None]
    left, top = lefts.to(torch.int64), tops.to(torch.int64)
    pixels = stack.reshape(-1, channels)
    first = torch.arange(count, device=stack.device)[:, None, None] * (height * width)

    def tap(rows: Tensor, columns: Tensor) -> Tensor:
        ys, xs = _inside(rows, height, fill), _inside(columns, width, fill)
        values = pixels.index_select(0, (first + ys * width + xs).reshape(-1)).reshape(stack.shape).float()
        if isinstance(fill, str):
            return values
        return torch.where(((ys == rows) & (xs == columns))[..., None], values, float(fill))

    upper_left, upper_right = tap(top, left), tap(top, left + 1)
    upper = upper_left + across * (upper_right - upper_left)
    lower_left, lower_right = tap(top + 1, left), tap(top + 1, left + 1)
    lower = lower_left + across * (lower_right - lower_left)
    values = upper + down * (lower - upper)
    return rounded(values if channels != 2 else (values + 0.5).floor())


def _places(stack: Tensor, inverses: NDArray[np.float64]) -> list[Tensor]:
    """The old x and the old y of each new pixel: n x height x width."""
    matrices = on(stack.device, inverses.astype(np.float32))[:, :, :, None, None]
    x = torch.arange(stack.shape[2], dtype=torch.float32, device=stack.device)
    y = torch.arange(stack.shape[1], dtype=torch.float32, device=stack.device)[:, None]
    return [x * matrices[:, axis, 0] + (y * matrices[:, axis, 1] + matrices[:, axis, 2]) for axis in (0, 1)]


def _places_in_fractions(stack: Tensor, inverses: NDArray[np.float64]) -> list[Tensor]:
    """Like `_places`, in whole 32nds of a pixel."""
    x, y = np.arange(stack.shape[2]), np.arange(stack.shape[1])
    places: list[Tensor] = []
    for axis in (0, 1):
        across = np.rint(inverses[:, axis, :1] * x * _FINE)
        down = np.rint((inverses[:, axis, 1:2] * y + inverses[:, axis, 2:]) * _FINE)
        fine = (down[:, :, None] + across[:, None, :] + _FINE / _FRACTIONS / 2) // (_FINE / _FRACTIONS)
        places.append(on(stack.device, (fine / _FRACTIONS).astype(np.float32)))
    return places


def _inside(indices: Tensor, side: int, fill: int | str) -> Tensor:
    """Indices of rows or columns as they lie in the picture."""
    if fill == "wrap":
        return indices % side
    if fill == "reflect":
        folded = indices % (2 * side)
        return torch.minimum(folded, 2 * side - 1 - folded)
    return indices.clamp(0, side - 1)


def taps(sides: Tensor, size: int, most: int) -> tuple[Tensor, Tensor]:
    """Where each new line of a resized side comes from: averaged over its area, or interpolated if the side grows.

    Args:
        sides: n old lengths.
        size: the new length.
        most: the largest of the old lengths.

    Returns:
        The first old line of each new one (n x size, int64) and the weights (n x size x taps, float32).
    """
    new = torch.arange(size, dtype=torch.float64, device=sides.device)
    scale = (sides.double() / size)[:, None]
    begin, end = new * scale, torch.minimum((new + 1) * scale, sides[:, None].double())
    centre = ((new + 0.5) * scale - 0.5).clamp(min=0)
    grows = scale < 1
    first = torch.where(grows, torch.minimum(centre.floor(), sides[:, None] - 1.0), begin.floor())
    lines = first[:, :, None] + torch.arange(max(2, -(-most // size) + 1), device=sides.device)
    overlap = torch.minimum(end[:, :, None], lines + 1) - torch.maximum(begin[:, :, None], lines)
    # OpenCV leaves out thousandths of a line.
    area = torch.where(overlap > 1e-3, overlap, 0.0) / torch.minimum(scale, sides[:, None] - begin)[:, :, None]
    linear = (1 - (lines - centre[:, :, None]).abs()).clamp(min=0)
    return first.to(torch.int64), torch.where(grows[:, :, None], linear, area).float()
