"""The page and the picture of `striate learn-filter`: learned kernels beside those of the textbook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.choosing.learned_filters.kernel_filters import LearnedKernel
from library.choosing.learned_filters.references import Reference, references
from library.evaluation.report.templates import base64_text, template
from library.imaging import codec
from library.imaging.contact_sheet import Tile, draw_sheet, thumbnail, visible
from library.imaging.picture import Pixels
from library.pipeline import Pipeline

COMMAND = "striate learn-filter"
#: Side of a drawn kernel, and of a picture on the page.
_KERNEL_PX, _PICTURE_PX = 130, 96
_IN_A_ROW = 8
_FRAME = 170
#: Gabor kernels that are drawn among the references: every angle at one wavelength and one phase.
_DRAWN_GABOR = "phase 90"


@dataclass(frozen=True)
class LearnedFilters:
    """What a training has learned.

    Attributes:
        kernels: of the first layer.
        chance: the cosine that 95% of random kernels as smooth and as coloured stay below.
        side_px: side of the pictures that the network saw.
        channels: channels of the pictures that the kernels saw.
        metrics: of the best epoch.
        gates: weight of each filter by its text, of which the empty one changes nothing; empty without gates.
        facts: about the training, by name.
        footer: a line with date and version.
    """

    kernels: Sequence[LearnedKernel]
    chance: float
    side_px: int
    channels: int
    metrics: Mapping[str, float]
    gates: Mapping[str, float] = field(default_factory=dict[str, float])
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    footer: str = ""

    @property
    def pipeline(self) -> str | None:
        """The filter with the heaviest gate, empty if that changes nothing; None without gates."""
        return max(self.gates, key=lambda text: self.gates[text]) if self.gates else None

    def above_chance(self) -> list[LearnedKernel]:
        """Returns the kernels that are more similar to their reference than random ones as smooth and as coloured."""
        return [kernel for kernel in self.kernels if kernel.match.cosine > self.chance]

    def edge_detectors(self) -> int:
        """Returns how many kernels resemble an edge kernel, in grey or in colours, more than random ones do."""
        return sum(kernel.match.family == "edge" for kernel in self.above_chance())

    def colour_detectors(self) -> int:
        """Returns how many kernels answer to colours and resemble a reference more than random ones do."""
        return sum(kernel.match.is_colour for kernel in self.above_chance())

    def summary(self) -> dict[str, Any]:
        """Returns all numbers as plain data for JSON."""
        return {
            "kernels": [
                {
                    "filter": kernel.filters,
                    "nearest": kernel.match.reference,
                    "family": kernel.match.family,
                    "cosine": round(kernel.match.cosine, 4),
                    "shift_px": list(kernel.match.shift),
                    "colour": kernel.match.colour,
                    "is_colour": kernel.match.is_colour,
                    "channels": [round(value, 4) for value in kernel.match.channels],
                }
                for kernel in self.kernels
            ],
            "chance_cosine": round(self.chance, 4),
            "above_chance": len(self.above_chance()),
            "edge_detectors": self.edge_detectors(),
            "colour_detectors": self.colour_detectors(),
            "picture_px": self.side_px,
            "metrics": dict(self.metrics),
            **(
                {"gates": {text or "unchanged": round(gate, 4) for text, gate in self.gates.items()}}
                if self.gates
                else {}
            ),
            **({} if self.pipeline is None else {"pipeline": self.pipeline}),
        }


def draw_kernel(weights: NDArray[np.floating], side_px: int = _KERNEL_PX) -> NDArray[np.uint8]:
    """Draws a kernel enlarged: zero is grey, positive weights are lighter and negative ones darker, in each channel.

    Args:
        weights: channels x size x size; of more than three channels the first three are drawn.
        side_px: the most pixels of the result's side.
    """
    largest = float(np.abs(weights).max()) or 1.0
    drawn = np.rint(127.5 + 127.5 * np.moveaxis(weights, 0, 2) / largest).astype(np.uint8)
    return thumbnail(np.ascontiguousarray(drawn[:, :, :3] if drawn.shape[2] >= 3 else drawn[:, :, :1]), side_px)


def draw_kernels(learned: LearnedFilters) -> NDArray[np.uint8]:
    """Draws each learned kernel above what it resembles, and the references below; height x width x 3, uint8."""
    rows: list[list[Tile]] = []
    for start in range(0, len(learned.kernels), _IN_A_ROW):
        part = list(enumerate(learned.kernels[start : start + _IN_A_ROW], start=start + 1))
        rows.append([Tile(_framed(draw_kernel(one.weights)), f"learned {number}") for number, one in part])
        rows.append(
            [
                Tile(_framed(draw_kernel(one.match.weights)), f"{one.match.cosine:.2f} {_short(one.match.reference)}")
                for _, one in part
            ]
        )
    drawn = [Tile(_framed(draw_kernel(one.weights[None])), _short(one.name)) for one in drawn_references(learned)]
    rows += [drawn[start : start + _IN_A_ROW] for start in range(0, len(drawn), _IN_A_ROW)]
    return draw_sheet(rows, tile_px=_KERNEL_PX)


def drawn_references(learned: LearnedFilters) -> list[Reference]:
    """Returns references of every kind: Gabor kernels at every angle of the middle wavelength, and the nearest ones."""
    known = references(_side(learned))
    gabors = [one for one in known if one.name.startswith("gabor") and one.name.endswith(_DRAWN_GABOR)]
    wavelengths = list(dict.fromkeys(one.name.split(", ")[1] for one in gabors))
    middle = wavelengths[len(wavelengths) // 2]
    lines = [one for one in known if one.family == "line" and one.name.startswith(("gabor 0 ", "gabor 90 "))]
    usual = [one for one in gabors if middle in one.name] + [one for one in lines if middle in one.name]
    matched = {kernel.match.reference for kernel in learned.kernels} - {one.name for one in usual}
    nearest = [one for one in known if one.name.startswith("gabor") and one.name in matched]
    return [one for one in known if not one.name.startswith("gabor")] + usual + nearest


def render_learned(learned: LearnedFilters, pictures: Sequence[Pixels]) -> str:
    """Returns the page as one HTML document without scripts.

    Args:
        learned: what was learned.
        pictures: a few training pictures, which are shown filtered.
    """
    whole = [Pipeline.parse(kernel.filters) for kernel in learned.kernels]
    return template("library.choosing.learned_filters", "learned.html").render(
        title=f"{len(learned.kernels)} learned filters",
        learned=learned,
        rows=[
            {
                "kernel": kernel,
                "drawn": _png(draw_kernel(kernel.weights)),
                "reference": _png(draw_kernel(kernel.match.weights)),
                "filtered": [_png(_shown(pipeline.apply(picture))) for picture in pictures],
            }
            for kernel, pipeline in zip(learned.kernels, whole, strict=True)
        ],
        originals=[_png(_shown(picture)) for picture in pictures],
        references=[(one.name, _png(draw_kernel(one.weights[None]))) for one in drawn_references(learned)],
        gates=sorted(learned.gates.items(), key=lambda item: -item[1]),
        percent="{:.1%}".format,
    )


def _side(learned: LearnedFilters) -> int:
    return learned.kernels[0].weights.shape[-1]


def _shown(pixels: Pixels) -> NDArray[np.uint8]:
    return thumbnail(visible(pixels), _PICTURE_PX)


def _png(pixels: NDArray[np.uint8]) -> str:
    return base64_text(codec.encode(pixels, codec.Encoding("png"))[0])


def _short(name: str) -> str:
    """A reference's name that fits under its picture."""
    for long, short in (
        (" degrees", "\N{DEGREE SIGN}"),
        (", phase 0", " line"),
        (", phase 90", ""),
        (",", ""),
        ("sigma ", ""),
    ):
        name = name.replace(long, short)
    return name.replace(" px", "px") if name.startswith("gabor") else name


def _framed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture in a thin frame, without which white parts would end in white paper."""
    framed = pixels.copy()
    framed[[0, -1]] = framed[:, [0, -1]] = _FRAME
    return framed
