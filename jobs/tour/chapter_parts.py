"""What a chapter shows: its values and numbers, and helpers that turn arrays into pictures and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.imaging import codec
from library.imaging.contact_sheet import Tile, draw_sheet
from library.imaging.picture import Pixels


@dataclass(frozen=True)
class ChapterContent:
    """The content of a chapter.

    Attributes:
        values: what its template reads.
        numbers: the numbers that it states, as plain data for `--json`.
    """

    values: Mapping[str, Any]
    numbers: Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A number in a table, with the grey (0..255) that it stands on; None for the page's own background."""

    text: str
    grey: int | None = None

    @property
    def is_dark(self) -> bool:
        """Whether white text is easier to read on it."""
        return self.grey is not None and self.grey < 128


def cells(plane: NDArray[Any]) -> list[list[Cell]]:
    """Turns a plane of bytes into a table of numbers on their own greys."""
    return [[Cell(str(int(value)), int(value)) for value in row] for row in plane]


def weights(plane: Sequence[Sequence[float]]) -> list[list[Cell]]:
    """Turns a kernel into a table; the greys range from the least to the greatest weight, with 0 in the middle."""
    most = max(abs(value) for row in plane for value in row) or 1.0
    return [[Cell(_short(value), round(127.5 + 127.5 * value / most)) for value in row] for row in plane]


def enlarged(pixels: Pixels, factor: int) -> Pixels:
    """Repeats each pixel, so that pixels are visible as squares."""
    return np.repeat(np.repeat(pixels, factor, 0), factor, 1)


def stretched(plane: NDArray[Any]) -> Pixels:
    """A plane of any numbers as grey bytes, H x W x 1: its least value is black, its greatest white."""
    low, high = float(plane.min()), float(plane.max())
    scaled = (plane.astype(np.float64) - low) * (255 / (high - low) if high > low else 0)
    return np.rint(scaled).astype(np.uint8)[:, :, None]


def signed(plane: NDArray[Any]) -> Pixels:
    """A plane of numbers as grey bytes, H x W x 1: 0 is the middle grey, so that signs are visible."""
    most = float(np.abs(plane).max()) or 1.0
    return np.rint(127.5 + 127.5 * plane / most).astype(np.uint8)[:, :, None]


def sheet(rows: Sequence[Sequence[tuple[Pixels, str]]], *, tile_px: int = 160) -> bytes:
    """Draws rows of pictures with captions as one PNG."""
    drawn = draw_sheet([[Tile(pixels, caption) for pixels, caption in row] for row in rows], tile_px=tile_px)
    return codec.encode(drawn, codec.Encoding("png"))[0]


def short_count(value: float) -> str:
    """A large number for reading: `61,706`, `1.6 thousand million`, `132 million million`."""
    if value < 1e6:
        return f"{value:,.0f}"
    names = ((1e12, "million million"), (1e9, "thousand million"), (1e6, "million"))
    unit, name = next((unit, name) for unit, name in names if value >= unit)
    number = value / unit
    return f"{number:,.0f} {name}" if number >= 100 else f"{number:.3g} {name}"


def short_bytes(value: float) -> str:
    """A size in decimal units: `6.4 GB`."""
    for unit, name in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit:
            return f"{value / unit:,.3g} {name}" if value < 1000 * unit else f"{value / unit:,.0f} {name}"
    return f"{value:,.0f} bytes"


def mean_text(shares: Sequence[float]) -> str:
    """Fractions as a mean in percent with their range: `98.1% (97.8 to 98.3)`."""
    mean = sum(shares) / len(shares)
    return f"{mean:.1%} ({100 * min(shares):.1f} to {100 * max(shares):.1f})"


def _short(value: float) -> str:
    return f"{value:g}" if abs(value) >= 1 or value == 0 else f"{value:.3g}".replace("0.", ".", 1)
