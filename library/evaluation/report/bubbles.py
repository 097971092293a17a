"""Charts of named bubbles, with labels that keep clear of each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from library.evaluation.report.charts import FIRST, QUIET, RULE, SECOND, THIRD, png, svg

_WIDTH_PX, _HEIGHT_PX = 900, 470
_LEFT_PX, _RIGHT_PX, _BOTTOM_PX, _TOP_PX = 64, 20, 46, 14
_LEAST_RADIUS_PX = 3.0
Point: TypeAlias = tuple[float, float]

_COLOURS = (FIRST, SECOND, THIRD, QUIET)
_TEXT_PX = 11.0
_DIRECTIONS, _DISTANCES_PX = 16, (3, 9, 16, 26, 38, 54, 74)
_LEADER_FROM_PX = 14.0  # a label that is as far away is joined to its bubble


@dataclass(frozen=True)
class Bubble:
    """One bubble.

    Attributes:
        name: its label.
        x: place.
        y: place.
        size: what its area stands for.
        group: 0 to 3: the first, second, third or quiet colour.
    """

    name: str
    x: float
    y: float
    size: float
    group: int


@dataclass(frozen=True)
class BubbleAxes:
    """The axes of a chart of bubbles.

    Attributes:
        x_title: under the axis.
        y_title: beside it.
        x_ticks: places with their text; the axis ends a little beyond the first and the last.
        y_ticks: the same of the vertical axis.
        x_log: whether the axis is logarithmic.
        y_log: whether the vertical axis is logarithmic.
    """

    x_title: str
    y_title: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    x_log: bool = False
    y_log: bool = False


@dataclass(frozen=True)
class BubbleChart:
    """A chart as markup for a page and as a file."""

    markup: Markup
    png: bytes


def bubble_chart(bubbles: Sequence[Bubble], axes: BubbleAxes, *, most_px: float = 24, salt: str = "") -> BubbleChart:
    """Draws bubbles with their names.

    Args:
        bubbles: at least one; all within the ticks.
        axes: titles and ticks.
        most_px: radius of the largest bubble in pixels.
        salt: makes the ids of the charts of one page differ.
    """
    draw = _drawing(bubbles, axes, most_px)
    size_px = (_WIDTH_PX, _HEIGHT_PX)
    label = f"{axes.y_title} by {axes.x_title}: {', '.join(bubble.name for bubble in bubbles)}"
    return BubbleChart(svg(draw, label, salt, size_px), png(draw, size_px))


def _drawing(bubbles: Sequence[Bubble], chart: BubbleAxes, most_px: float) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        width, height = _WIDTH_PX, _HEIGHT_PX
        box = (_LEFT_PX / width, _BOTTOM_PX / height)
        axes = figure.add_axes(
            (*box, 1 - (_LEFT_PX + _RIGHT_PX) / width, 1 - (_BOTTOM_PX + _TOP_PX) / height), frame_on=False
        )
        axes.set_xscale("log" if chart.x_log else "linear")
        axes.set_yscale("log" if chart.y_log else "linear")
        axes.minorticks_off()
        axes.set_xticks([place for place, _ in chart.x_ticks], [text for _, text in chart.x_ticks])
        axes.set_yticks([place for place, _ in chart.y_ticks], [text for _, text in chart.y_ticks])
        axes.set_xlim(*_beyond(chart.x_ticks, log=chart.x_log))
        axes.set_ylim(*_beyond(chart.y_ticks, log=chart.y_log))
        axes.grid(color=RULE, lw=1)
        axes.set_xlabel(chart.x_title)
        axes.set_ylabel(chart.y_title)
        centres = [_pixel(axes.transData.transform((bubble.x, bubble.y)).tolist(), figure) for bubble in bubbles]
        radii = _radii([bubble.size for bubble in bubbles], most_px)
        # A point is a pixel, and scatter takes areas; large ones first, so that none is hidden.
        for number in sorted(range(len(bubbles)), key=lambda number: -radii[number]):
            bubble, colour = bubbles[number], _COLOURS[bubbles[number].group]
            area = (2 * radii[number]) ** 2
            axes.scatter(bubble.x, bubble.y, s=area, color=colour, alpha=0.5, lw=1, clip_on=False, zorder=2)
        inner = Bbox.from_bounds(_LEFT_PX, _BOTTOM_PX, width - _LEFT_PX - _RIGHT_PX, height - _BOTTOM_PX - _TOP_PX)
        places = _labels([bubble.name for bubble in bubbles], centres, radii, inner)
        for bubble, centre, radius, place in zip(bubbles, centres, radii, places, strict=True):
            edge, distance = _edge(place, centre, radius)
            if distance > _LEADER_FROM_PX:
                near = (min(max(edge[0], place.x0), place.x1), min(max(edge[1], place.y0), place.y1))
                xs, ys = [edge[0] / width, near[0] / width], [edge[1] / height, near[1] / height]
                figure.add_artist(Line2D(xs, ys, color=QUIET, lw=0.7))
            figure.text(
                place.x0 / width, (place.y0 + 3) / height, bubble.name, size=_TEXT_PX, ha="left", va="baseline",
                color=_COLOURS[bubble.group],
            )  # fmt: skip

    return draw


def _pixel(point: Sequence[float], figure: Figure) -> tuple[float, float]:
    """A place on a figure in pixels of the chart, whatever the figure's resolution."""
    scale = figure.dpi / 72
    return float(point[0]) / scale, float(point[1]) / scale


def _beyond(ticks: Sequence[tuple[float, str]], *, log: bool) -> tuple[float, float]:
    low, high = ticks[0][0], ticks[-1][0]
    if log:
        factor = (high / low) ** 0.03
        return low / factor, high * factor
    return low - 0.03 * (high - low), high + 0.03 * (high - low)


def _radii(sizes: Sequence[float], most_px: float) -> list[float]:
    largest = max(sizes)
    return [max(_LEAST_RADIUS_PX, most_px * math.sqrt(size / largest)) for size in sizes]


def _labels(
    names: Sequence[str], centres: Sequence[tuple[float, float]], radii: Sequence[float], inner: Bbox
) -> list[Bbox]:
    """Places labels where they cover least, near their bubbles; those of crowded bubbles come first."""
    sizes = _text_sizes(names)
    crowd = [sum(math.hypot(x - a, y - b) < 70 for a, b in centres) for x, y in centres]
    bubbles = [
        Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)
        for (x, y), radius in zip(centres, radii, strict=True)
    ]
    placed: dict[int, Bbox] = {}
    lines: list[list[Point]] = []
    for number in sorted(range(len(names)), key=lambda number: (-crowd[number], number)):
        (x, y), radius, (width, height) = centres[number], radii[number], sizes[number]
        best, best_line, cost = None, list[Point](), math.inf
        for distance in _DISTANCES_PX:
            for direction in range(_DIRECTIONS):
                angle = 2 * math.pi * direction / _DIRECTIONS
                cos, sin = math.cos(angle), math.sin(angle)
                # The nearest point of the text lies at this distance from the edge of the bubble.
                middle_x = x + cos * (radius + distance + width / 2 * abs(cos))
                middle_y = y + sin * (radius + distance + height / 2)
                box = Bbox.from_bounds(middle_x - width / 2, middle_y - height / 2, width, height)
                covered = sum(_shared(box, other) for other in placed.values())
                covered += sum(_shared(box, other) for other in bubbles) * 0.6
                outside = width * height - _shared(box, inner)
                price = 40 * covered + 80 * outside + 6 * distance + 4 * abs(sin)
                line = _leader((x, y), box, radius)
                price += 3000 * sum(
                    _touches(line, centres[other], radii[other]) for other in range(len(names)) if other != number
                )
                price += 3000 * sum(any(other.contains(*point) for point in line) for other in placed.values())
                price += 3000 * sum(any(box.contains(*point) for point in other) for other in lines)
                if price < cost:
                    best, best_line, cost = box, line, price
        assert best is not None
        placed[number] = best
        lines.append(best_line)
    return [placed[number] for number in range(len(names))]


def _leader(centre: Point, box: Bbox, radius: float) -> list[Point]:
    """Points on the line between a bubble and its label, from edge to edge; none where they nearly touch."""
    (start_x, start_y), distance = _edge(box, centre, radius)
    if distance <= _LEADER_FROM_PX:
        return []
    end_x, end_y = min(max(start_x, box.x0), box.x1), min(max(start_y, box.y0), box.y1)
    steps = max(2, int(distance / 4))
    shares = [step / steps for step in range(1, steps)]
    return [(start_x + (end_x - start_x) * share, start_y + (end_y - start_y) * share) for share in shares]


def _touches(line: Sequence[Point], centre: Point, radius: float) -> bool:
    return any(math.hypot(x - centre[0], y - centre[1]) < radius for x, y in line)


def _text_sizes(names: Sequence[str]) -> list[tuple[float, float]]:
    """Width and height of each name in pixels, in the font of files, which is wider than those of most pages."""
    figure = Figure(dpi=72)
    canvas = FigureCanvasAgg(figure)
    texts = [figure.text(0, 0, name, size=_TEXT_PX) for name in names]
    extents = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    return [(extent.width + 4, _TEXT_PX + 3) for extent in extents]


def _shared(one: Bbox, other: Bbox) -> float:
    both = Bbox.intersection(one, other)
    return 0.0 if both is None else both.width * both.height


def _edge(box: Bbox, centre: tuple[float, float], radius: float) -> tuple[tuple[float, float], float]:
    """The point of a bubble nearest to a label, and the distance between them."""
    x, y = min(max(centre[0], box.x0), box.x1), min(max(centre[1], box.y0), box.y1)
    away = math.hypot(x - centre[0], y - centre[1])
    if away <= radius:
        return centre, 0.0
    share = radius / away
    return (centre[0] + (x - centre[0]) * share, centre[1] + (y - centre[1]) * share), away - radius
