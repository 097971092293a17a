"""Draws masks and boxes over pictures."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from library.imaging.picture import Pixels

#: Colours that differ on light and dark pictures and for most colour-blind people (Okabe and Ito 2008).
_COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_SHARE = 0.35  # of a class's colour in the pixels of its area
_MOST_CLASSES = 256


@dataclass(frozen=True)
class MarkedBox:
    """A box in pixels of its picture, and the text beside it."""

    x: float
    y: float
    w: float
    h: float
    text: str = ""


@dataclass(frozen=True)
class Marks:
    """What is drawn over one picture.

    Attributes:
        masks: each of the picture's height and width; 0 is not drawn, every other value has a colour.
        boxes: in pixels of the picture.
    """

    masks: Sequence[Pixels] = ()
    boxes: Sequence[MarkedBox] = ()


def with_marks(image: Image.Image, marks: Marks, width_px: int, font: Any) -> Image.Image:
    """Draws marks over a picture that was scaled.

    Args:
        image: the scaled picture, RGB.
        marks: in pixels of the picture before.
        width_px: its width before.
        font: for the texts of boxes.
    """
    if not marks.masks and not marks.boxes:
        return image
    pixels = np.array(image)
    for mask in marks.masks:
        _draw_mask(pixels, cv2.resize(_classes(mask), image.size, interpolation=cv2.INTER_NEAREST_EXACT))
    image = Image.fromarray(pixels)
    draw, scale = ImageDraw.Draw(image), image.width / width_px
    for box in marks.boxes:
        left, upper = box.x * scale, box.y * scale
        right, lower = max(left, (box.x + box.w) * scale - 1), max(upper, (box.y + box.h) * scale - 1)
        colour = _COLOURS[zlib.crc32(box.text.encode()) % len(_COLOURS)]
        draw.rectangle((left, upper, right, lower), outline=colour, width=2)
        if box.text:
            text = "".join(char if char.isprintable() else " " for char in box.text[:40])
            place = (max(left, 0) + 2, max(upper, 0) + 1)
            draw.rectangle(draw.textbbox(place, text, font), colour)
            draw.text(place, text, (0, 0, 0), font)
    return image


def _classes(mask: Pixels) -> NDArray[np.uint8]:
    """The class of each pixel: 0 for black, and another number for each other value, in the order of the values."""
    values = mask.reshape(-1, mask.shape[2])
    first, rest = np.unique(values[:, 0] if mask.shape[2] == 1 else values, axis=0, return_inverse=True)
    black = ~np.asarray(first, np.bool_).reshape(len(first), -1).any(axis=1)
    numbers = np.where(black, 0, np.minimum(np.cumsum(~black), _MOST_CLASSES - 1)).astype(np.uint8)
    return numbers[rest].reshape(mask.shape[:2])


def _draw_mask(pixels: NDArray[np.uint8], classes: NDArray[Any]) -> None:
    """Tints each class and draws a line around it."""
    table = np.array([(0, 0, 0), *(_COLOURS[number % len(_COLOURS)] for number in range(_MOST_CLASSES - 1))])
    colours = table[classes]
    kernel = np.ones((3, 3), np.uint8)
    line = (np.asarray(cv2.dilate(classes, kernel)) != np.asarray(cv2.erode(classes, kernel))) & (classes > 0)
    tinted = np.rint(pixels * (1 - _SHARE) + colours * _SHARE).astype(np.uint8)
    pixels[classes > 0] = tinted[classes > 0]
    pixels[line] = colours[line]
