"""Draws what is seen inside a network as pictures: bands of tiles with a heading, in the colours of the pages.

image = draw_maps(feature_maps(model, pixels))   # height x width x 3, uint8
png(image)                                       # the file
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from library.evaluation.inside.grad_cam import Explanation, overlay, resized
from library.evaluation.inside.mix_ups import MixUp
from library.evaluation.inside.occlusion import Occlusion, first_of
from library.evaluation.inside.recording import StageMaps
from library.evaluation.inside.units import FirstKernels, UnitPatches, field_of, most_active
from library.imaging import codec
from library.imaging.contact_sheet import visible
from library.imaging.picture import Pixels
from library.pipeline.inputs import Prepared

Image8 = NDArray[np.uint8]

_PAPER, _INK, _MUTED = (255, 255, 255), (27, 34, 48), (91, 101, 118)
#: Evidence for a class, evidence against it, and the frame of a receptive field.
FOR, AGAINST, _FRAME = (217, 72, 15), (36, 99, 214), (230, 30, 80)
_GAP_PX, _TEXT_PX, _MARGIN_PX = 8, 13, 12
_OPACITY = 0.7
_MOST_BANDS = 6  # channels of a kernel that are drawn side by side
_LEAST_PX = 224  # the shorter side of a picture under boxes


@dataclass(frozen=True)
class Tile:
    """One picture of a band, drawn in a square, with a line of text under it."""

    pixels: Pixels
    caption: str = ""


@dataclass(frozen=True)
class Band:
    """A row of tiles under a heading; `note` is a quieter line under the heading."""

    heading: str
    tiles: Sequence[Tile]
    note: str = ""


def png(image: Image8) -> bytes:
    """A drawing as a PNG file."""
    return codec.encode(image, codec.Encoding("png"))[0]


def draw_bands(bands: Sequence[Band], *, tile_px: int = 104, across: int = 10) -> Image8:
    """Draws bands below each other.

    Args:
        bands: at least one; a band with more than `across` tiles takes several lines.
        tile_px: side of the square that each tile is fitted into, in pixels.
        across: the most tiles of a line.

    Returns:
        Height x width x 3.
    """
    # Other small sizes of this font have hardly any space between words.
    font, small = ImageFont.load_default(_TEXT_PX), ImageFont.load_default(_TEXT_PX - 1)
    columns = min(across, max(len(band.tiles) for band in bands))
    text_px = max(int(font.getlength(band.heading)) for band in bands)
    text_px = max(text_px, *(int(small.getlength(band.note)) for band in bands))
    width = 2 * _MARGIN_PX + max(columns * (tile_px + _GAP_PX) - _GAP_PX, min(text_px, 900))
    heights = [_band_height(band, tile_px, across) for band in bands]
    sheet = Image.new("RGB", (width, sum(heights) + 2 * _MARGIN_PX - _GAP_PX), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN_PX
    for band, height in zip(bands, heights, strict=True):
        _draw_band(sheet, draw, band, top, tile_px, across, font, small)
        top += height
    return np.asarray(sheet)


def _line_px(band: Band, tile_px: int) -> int:
    return tile_px + _GAP_PX + (_TEXT_PX + 3 if any(tile.caption for tile in band.tiles) else 0)


def _band_height(band: Band, tile_px: int, across: int) -> int:
    lines = -(-len(band.tiles) // across)
    head = (_TEXT_PX + 9 if band.heading else 0) + (_TEXT_PX + 5 if band.note else 0)
    return head + lines * _line_px(band, tile_px) + _GAP_PX


def _draw_band(
    sheet: Image.Image, draw: Any, band: Band, top: int, tile_px: int, across: int, font: Any, small: Any
) -> None:
    if band.heading:
        draw.text((_MARGIN_PX, top), _cut(band.heading, font, sheet.width - 2 * _MARGIN_PX), _INK, font)
        top += _TEXT_PX + 9
    if band.note:
        draw.text((_MARGIN_PX, top), _cut(band.note, small, sheet.width - 2 * _MARGIN_PX), _MUTED, small)
        top += _TEXT_PX + 5
    for number, tile in enumerate(band.tiles):
        left = _MARGIN_PX + number % across * (tile_px + _GAP_PX)
        upper = top + number // across * _line_px(band, tile_px)
        image = Image.fromarray(_fitted(tile.pixels, tile_px))
        sheet.paste(image, (left + (tile_px - image.width) // 2, upper + (tile_px - image.height) // 2))
        if tile.caption:
            draw.text((left, upper + tile_px + 2), _cut(tile.caption, small, tile_px), _MUTED, small)


def _fitted(pixels: Pixels, side_px: int) -> Image8:
    """A picture as 8-bit RGB that fills a square along its longer side; pixels that are enlarged stay sharp."""
    picture = visible(pixels)
    scale = side_px / max(picture.shape[:2])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    resized_picture = cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA)
    return np.asarray(resized_picture, np.uint8)


def _cut(text: str, font: Any, width_px: int) -> str:
    text = "".join(char if char.isprintable() else " " for char in text[: max(width_px, 0)])
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(text + "...") > width_px:
        text = text[:-1]
    return text + "..."


def draw_maps(stages: Sequence[StageMaps], *, count: int = 10, tile_px: int = 104) -> Image8:
    """Draws the maps of each stage that vary most over the picture, each from dark (least) to bright (greatest).

    Stages without places are drawn as one cell a unit.

    Args:
        stages: from `feature_maps`.
        count: maps for each stage.
        tile_px: side of a map in pixels.
    """
    bands: list[Band] = []
    for stage in stages:
        channels, height, width = stage.values.shape
        if not stage.is_map:
            cells = _cells(stage.values[:, 0, 0])
            bands.append(Band(f"{stage.stage}: {channels:,} numbers, one a unit", [Tile(cells)]))
            continue
        order = np.argsort(-stage.values.std((1, 2)), kind="stable")[:count]
        shown = "" if channels <= count else f"; the {len(order)} that vary most"
        tiles = [Tile(coloured(stage.values[channel]), f"unit {channel}") for channel in order]
        bands.append(Band(f"{stage.stage}: {channels:,} maps of {height} x {width}{shown}", tiles))
    return draw_bands(bands, tile_px=tile_px, across=count)


def coloured(values: NDArray[np.float32]) -> Image8:
    """One map, height x width, in colours from its least (dark violet) to its greatest value (yellow)."""
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    colours = cv2.applyColorMap(np.rint(scaled).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return np.ascontiguousarray(colours[:, :, ::-1], np.uint8)


def _cells(values: NDArray[np.float32]) -> Image8:
    """Numbers as a square of cells, row by row; cells that are left over are white."""
    side = int(np.ceil(np.sqrt(len(values))))
    cells = np.full((side * side, 3), 255, np.uint8)
    cells[: len(values)] = coloured(values[None, :])[0]
    return cells.reshape(side, side, 3)


def draw_kernels(kernels: FirstKernels, *, count: int = 64, tile_px: int = 56) -> Image8:
    """Draws the kernels of a first layer: grey is 0, each kernel from its own greatest weight.

    Kernels of three channels are drawn in colour; of others each channel is drawn in grey, at most six side by side.
    """
    units, channels, height, width = kernels.values.shape
    more = "" if units <= count else f"; the first {count}"
    of = "whole pictures" if kernels.is_dense else f"{height} x {width} pixels"
    note = f"{channels} {'channel' if channels == 1 else 'channels'}" + (
        f", of which the first {_MOST_BANDS} are drawn" if channels > _MOST_BANDS else ""
    )
    tiles = [Tile(_kernel(one)) for one in kernels.values[:count]]
    return draw_bands([Band(f"{units:,} kernels of {of}{more}", tiles, note)], tile_px=tile_px, across=16)


def _kernel(weights: NDArray[np.float32]) -> Image8:
    greatest = float(np.abs(weights).max()) or 1.0
    values = np.rint(127.5 + 127.5 * weights / greatest).astype(np.uint8)
    if len(values) == 3:
        return np.ascontiguousarray(values.transpose(1, 2, 0))
    rows = values[:_MOST_BANDS]
    gap = np.full((rows.shape[1], 1), 255, np.uint8)
    parts = [part for one in rows for part in (one, gap)][:-1]
    return np.repeat(np.concatenate(parts, 1)[:, :, None], 3, 2)


def draw_heat(prepared: Prepared, explanation: Explanation | None, hidden: Occlusion, *, tile_px: int = 260) -> Image8:
    """Draws a picture beside its Grad-CAM and its occlusion map.

    Args:
        prepared: the picture, from `Bundle.prepare`.
        explanation: from `explain`; None where the network has no maps.
        hidden: from `occlusion` for the same class.
        tile_px: side of each picture in pixels.
    """
    tiles = [Tile(enlarged(first_of(prepared)), "the network's input")]
    if explanation is not None:
        tiles.append(Tile(overlay(prepared, explanation.heat), "Grad-CAM"))
    window = f"{hidden.window[0]} x {hidden.window[1]} px"
    tiles.append(Tile(signed_overlay(prepared, hidden.drop), f"occlusion by {window}"))
    heading = f"{hidden.class_name}: {hidden.probability:.1%}"
    low, high = 100 * float(hidden.drop.min()), 100 * float(hidden.drop.max())
    note = (
        f"hiding a part changes the probability by {-high:+.1f} to {-low:+.1f} points; "
        "red parts speak for the class, blue ones against it"
    )
    return draw_bands([Band(heading, tiles, note)], tile_px=tile_px)


def signed_overlay(prepared: Prepared, drop: NDArray[np.float32]) -> Image8:
    """Draws a signed map over the model's input: red above 0, blue below, both from the greatest distance from 0."""
    picture = enlarged(first_of(prepared)).astype(np.float32)
    greatest = float(np.abs(drop).max())
    scaled = resized(drop / greatest if greatest > 0 else drop, *picture.shape[:2])
    opacity = _OPACITY * np.abs(scaled)[:, :, None]
    colours = np.where(scaled[:, :, None] > 0, np.array(FOR, np.float32), np.array(AGAINST, np.float32))
    return np.rint(np.clip(picture * (1 - opacity) + colours * opacity, 0, 255)).astype(np.uint8)


def enlarged(pixels: Pixels, least_px: int = _LEAST_PX) -> Image8:
    """A picture as 8-bit RGB whose shorter side has at least that many pixels, enlarged by a whole factor."""
    factor = max(1, -(-least_px // min(pixels.shape[:2])))
    return np.repeat(np.repeat(visible(pixels), factor, 0), factor, 1)


def draw_fields(pixels: Pixels, stages: Sequence[StageMaps], *, tile_px: int = 200) -> Image8:
    """Draws for one unit of each stage which part of the picture it sees; it is the unit that stands out most.

    Args:
        pixels: height x width x channels, as the network takes them.
        stages: from `feature_maps` of this picture.
        tile_px: side of each picture in pixels.
    """
    tiles: list[Tile] = []
    for stage in stages:
        channel, row, column = most_active(stage)
        box = field_of(stage, row, column, pixels.shape[:2])
        size = f"{box[2] - box[0]} x {box[3] - box[1]} px"
        whole = box[0] <= 0 and box[1] <= 0 and box[2] >= pixels.shape[0] and box[3] >= pixels.shape[1]
        tiles.append(Tile(boxed(pixels, box), f"{stage.stage}, unit {channel}: {size}{' (all)' if whole else ''}"))
    heading = f"what one unit of each stage sees of {pixels.shape[0]} x {pixels.shape[1]} pixels"
    return draw_bands([Band(heading, tiles)], tile_px=tile_px, across=5)


def boxed(pixels: Pixels, box: tuple[int, int, int, int]) -> Image8:
    """A picture, pale but for a box with a frame; the box may reach outside."""
    picture = enlarged(pixels)
    factor = picture.shape[0] // pixels.shape[0]
    top, left, bottom, right = (
        int(np.clip(edge * factor, 0, picture.shape[number % 2])) for number, edge in enumerate(box)
    )
    drawn = np.rint(picture * 0.4 + 255 * 0.6).astype(np.uint8)
    drawn[top:bottom, left:right] = picture[top:bottom, left:right]
    thickness = max(2, min(picture.shape[:2]) // 80)
    cv2.rectangle(drawn, (left, top), (max(left, right - 1), max(top, bottom - 1)), _FRAME, thickness)
    return drawn


def draw_patches(units: Sequence[UnitPatches], *, tile_px: int = 84) -> Image8:
    """Draws for each unit the patches that excite it most, with its value under each."""
    most = max(len(unit.patches) for unit in units)
    bands = [
        Band(
            f"{unit.stage}, unit {unit.unit}",
            [Tile(patch.pixels, f"{patch.value:.3g}") for patch in unit.patches],
        )
        for unit in units
    ]
    return draw_bands(bands, tile_px=tile_px, across=most)


def draw_mix_ups(pairs: Sequence[MixUp], pictures: Sequence[Pixels], *, tile_px: int = 96) -> Image8:
    """Draws for each confused pair the pictures that show it most.

    Args:
        pairs: from `mix_ups`, at least one.
        pictures: the pictures that their numbers stand for.
        tile_px: side of a picture in pixels.
    """
    bands = [
        Band(
            f"{pair.label} taken for {pair.predicted}: {pair.errors:,} of {pair.pictures:,}",
            [
                Tile(pictures[number], f"{share:.1%}")
                for number, share in zip(pair.examples, pair.probabilities, strict=True)
            ],
            f"probability of {pair.predicted}: {pair.mean_probability:.1%} on average; each picture has its own",
        )
        for pair in pairs
    ]
    return draw_bands(bands, tile_px=tile_px, across=max(len(pair.examples) for pair in pairs))
