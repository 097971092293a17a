"""Draws contact sheets: pictures in a grid, before beside after, with a caption under each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from library.imaging import codec
from library.imaging.marks import Marks, with_marks
from library.imaging.picture import Pixels

_GAP_PX = 10
_TEXT_PX = 13
_PAPER, _INK, _MUTED, _EMPTY = (255, 255, 255), (30, 30, 30), (110, 110, 110), (232, 232, 232)


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet.

    Attributes:
        pixels: the picture; None draws a grey square with `note` in it (a dropped or rejected picture).
        caption: one line of text under the picture.
        note: the reason why there is no picture.
        marks: masks and boxes drawn over the picture.
    """

    pixels: Pixels | None
    caption: str = ""
    note: str = ""
    marks: Marks = field(default_factory=Marks)


def draw_sheet(
    rows: Sequence[Sequence[Tile]], *, tile_px: int = 160, headings: Sequence[str] = ()
) -> NDArray[np.uint8]:
    """Draws rows of tiles.

    Args:
        rows: tiles, row by row; rows may differ in length.
        tile_px: side of the square that each picture is fitted into, in pixels.
        headings: text above each column.

    Returns:
        Height x width x 3, uint8.
    """
    columns = max(map(len, rows))
    # Other small sizes of this font have hardly any space between words.
    font, small = ImageFont.load_default(_TEXT_PX), ImageFont.load_default(_TEXT_PX - 1)
    step_y = tile_px + _TEXT_PX + 8 + _GAP_PX
    top = _GAP_PX + (_TEXT_PX + 10 if headings else 0)
    sheet = Image.new("RGB", (_GAP_PX + columns * (tile_px + _GAP_PX), top + len(rows) * step_y), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, heading in enumerate(headings):
        draw.text((_GAP_PX + number * (tile_px + _GAP_PX), _GAP_PX), _cut(heading, font, tile_px), _INK, font)
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            left, upper = _GAP_PX + x * (tile_px + _GAP_PX), top + y * step_y
            if tile.pixels is None:
                draw.rectangle((left, upper, left + tile_px - 1, upper + tile_px - 1), _EMPTY)
                text = _cut(tile.note, font, tile_px - 8)
                draw.text((left + tile_px / 2, upper + tile_px / 2), text, _MUTED, font, anchor="mm")
            else:
                image = Image.fromarray(thumbnail(tile.pixels, tile_px))
                image = with_marks(image, tile.marks, tile.pixels.shape[1], small)
                offset = ((tile_px - image.width) // 2, (tile_px - image.height) // 2)
                sheet.paste(image, (left + offset[0], upper + offset[1]))
            draw.text((left, upper + tile_px + 3), _cut(tile.caption, small, tile_px), _MUTED, small)
    return np.asarray(sheet)


def thumbnail(pixels: Pixels, side_px: int) -> NDArray[np.uint8]:
    """Any picture as 8-bit RGB that fits into a square; small pictures are enlarged by a whole factor."""
    pixels = _drawn_bands(pixels)
    height, width = pixels.shape[:2]
    scale = side_px / max(height, width)
    if scale >= 2:
        factor = int(scale)
        resized = np.repeat(np.repeat(pixels, factor, 0), factor, 1)
    else:
        size = (max(1, round(width * min(scale, 1))), max(1, round(height * min(scale, 1))))
        resized = cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA)
    return visible(resized if resized.ndim == 3 else resized[:, :, None])


def small_copy(pixels: Pixels, side_px: int = 160) -> tuple[bytes, str]:
    """Returns a picture for a page, as bytes and their format.

    A small picture is a PNG of its own size, and a larger one is scaled down as JPEG, so that a page with many stays
    small.
    """
    if max(pixels.shape[:2]) <= side_px:
        return codec.encode(visible(pixels), codec.Encoding("png"))
    return codec.encode(thumbnail(pixels, side_px), codec.Encoding("jpeg", 85))


def visible(pixels: Pixels) -> NDArray[np.uint8]:
    """Any picture as 8-bit RGB: grey is repeated, alpha is blended over white, of many bands the first three are used;
    16-bit and float pictures are stretched from their least to their greatest value."""
    pixels = _drawn_bands(pixels)
    if pixels.dtype != np.uint8:
        values = np.nan_to_num(pixels.astype(np.float64))
        low, high = float(values.min()), float(values.max())
        pixels = np.rint((values - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)
    if pixels.shape[2] in (2, 4):
        alpha = pixels[:, :, -1:].astype(np.float32) / 255
        pixels = np.rint(pixels[:, :, :-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)


def _drawn_bands(pixels: Pixels) -> Pixels:
    return pixels[:, :, :3] if pixels.shape[2] > 4 else pixels


def _cut(text: str, font: Any, width_px: int) -> str:
    # One line, and no more characters than could fit, since measuring takes time.
    text = "".join(char if char.isprintable() else " " for char in text[: max(width_px, 0)])
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(text + "...") > width_px:
        text = text[:-1]
    return text + "..."
