"""Charts as inline SVG, drawn by matplotlib; colours are the page's variables, so charts follow light and dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from library.evaluation.metrics import Calibration

_WIDTH_PX, _HEIGHT_PX, _PX_PER_INCH = 460, 250, 72
_LEFT, _RIGHT, _TOP, _BOTTOM = 52 / _WIDTH_PX, 446 / _WIDTH_PX, 238 / _HEIGHT_PX, 38 / _HEIGHT_PX
_STEPS = [1, 2, 2.5, 5, 10]  # of ticks
_MARKED = 40  # a line with at most this many points marks each of them

#: The colours of a chart, and the variables of style.css that replace them on the page.
FIRST, SECOND, THIRD, QUIET, RULE = "#2463d6", "#c2570c", "#12805c", "#5b6576", "#dfe3ea"
_VARIABLES = {FIRST: "--first", SECOND: "--second", THIRD: "--third", QUIET: "--quiet", RULE: "--rule"}

_STYLE = {
    "font.size": 11,
    "font.family": "DejaVu Sans",  # comes with matplotlib; style.css replaces it with the page's own
    "svg.fonttype": "none",  # text stays text
    "text.color": QUIET,
    "axes.labelcolor": QUIET,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.major.pad": 6,
    "axes.axisbelow": True,
    "grid.color": RULE,
}
#: Parts of matplotlib's SVG that would affect, or repeat ids of, the rest of the page.
_FILE_ONLY = re.compile(r'<metadata>.*?</metadata>|<style.*?</style>| xmlns(:\w+)?="[^"]*"| id="[\w.]+_\d+"', re.DOTALL)


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_title: str,
    y_title: str,
    show: Callable[[float], str],
    salt: str = "",
) -> Markup:
    """Draws lines over whole numbers in the page's first, second and third colour.

    Args:
        series: points (x, y) of at most three lines by name, with x rising; a value that is not finite leaves a gap.
        x_title: under the axis.
        y_title: for the label that screen readers read.
        show: turns a y value into text.
        salt: makes the ids of the charts of one page differ.

    Returns:
        An `<svg>` element; empty where no value is finite.
    """
    finite = {name: [point for point in points if math.isfinite(point[1])] for name, points in series.items()}
    xs, ys = ([point[axis] for points in finite.values() for point in points] for axis in (0, 1))
    if not ys:
        return Markup()

    def draw(figure: Figure) -> None:
        axes = _axes(figure, _BOTTOM, _TOP)
        for points, colour in zip(series.values(), (FIRST, SECOND, THIRD), strict=False):
            values = [y if math.isfinite(y) else math.nan for _, y in points]
            marker = "o" if len(points) <= _MARKED else ""
            axes.plot([x for x, _ in points], values, color=colour, lw=2, marker=marker, ms=6, mew=0, clip_on=False)
        ticks = MaxNLocator(5, steps=_STEPS).tick_values(min(ys), max(ys))
        axes.set_yticks(ticks, [show(float(tick)) for tick in ticks])
        axes.set_ylim(ticks[0], ticks[-1])
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=_STEPS, integer=True))
        margin = int(min(xs) == max(xs))
        axes.set_xlim(min(xs) - margin, max(xs) + margin)
        axes.set_xlabel(x_title)

    ends = ", ".join(f"{name} ends at {show(points[-1][1])}" for name, points in finite.items() if points)
    return svg(draw, f"{y_title} by {x_title}: {ends}", salt)


def reliability_chart(calibration: Calibration, *, salt: str = "") -> Markup:
    """Draws a bar for each bin: up to the lower of accuracy and confidence, then the gap to the higher one.

    The diagonal is a perfectly calibrated classifier; small bars below show how many pictures each bin holds.
    """
    quarters = [number / 4 for number in range(5)]
    percents = [f"{tick:.0%}" for tick in quarters]

    def draw(figure: Figure) -> None:
        shares, counts = _axes(figure, 86 / _HEIGHT_PX, _TOP), _axes(figure, _BOTTOM, 72 / _HEIGHT_PX)
        for one in calibration.bins:
            if one.accuracy is None or one.confidence is None:
                continue
            centre, width = (one.low + one.high) / 2, (one.high - one.low) * 0.92
            low, high = sorted((one.accuracy, one.confidence))
            gap = SECOND if one.confidence > one.accuracy else THIRD
            shares.bar(centre, low, width, color=FIRST, alpha=0.75, clip_on=False)
            shares.bar(centre, high - low, width, bottom=low, color=gap, alpha=0.7, clip_on=False)
            counts.bar(centre, one.count, width, color=QUIET, alpha=0.6, clip_on=False)
        shares.plot([0, 1], [0, 1], color=QUIET, lw=1, ls="--", clip_on=False)
        shares.set(xlim=(0, 1), ylim=(0, 1), xticks=[])
        shares.set_yticks(quarters, percents)
        counts.set(xlim=(0, 1), yticks=[], xlabel="confidence")
        counts.set_xticks(quarters, percents)
        counts.text(-0.015, 0.5, "pictures", transform=counts.transAxes, ha="right", va="center")

    return svg(draw, f"accuracy by confidence; expected calibration error {calibration.ece:.3f}", salt)


def histogram_chart(
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    x_title: str,
    show: Callable[[float], str],
    log: bool = False,
    salt: str = "",
) -> Markup:
    """Draws how many pictures lie between each two edges.

    Args:
        edges: rising; one more than counts. With `log` all are above 0.
        counts: of pictures.
        x_title: under the axis.
        show: turns an edge into text.
        log: whether the edges have equal distances on a logarithmic axis.
        salt: makes the ids of the charts of one page differ.
    """

    def draw(figure: Figure) -> None:
        axes = _axes(figure, _BOTTOM, _TOP)
        axes.stairs(counts, edges, fill=True, color=FIRST, alpha=0.75)
        axes.set_xscale("log" if log else "linear")
        axes.minorticks_off()
        low, high = edges[0], edges[-1]
        middle = [(low * high) ** 0.5 * (high / low) ** at if log else (low + high) / 2 + (high - low) * at
                  for at in (-0.5, -0.25, 0, 0.25, 0.5)]  # fmt: skip
        axes.set_xticks(middle, [show(tick) for tick in middle])
        axes.set_xlim(low, high)
        ticks = MaxNLocator(4, steps=_STEPS, integer=True).tick_values(0, max(counts))
        axes.set_yticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        axes.set_ylim(0, ticks[-1])
        axes.set_xlabel(x_title)

    return svg(draw, f"pictures by {x_title}: {sum(counts):,} from {show(edges[0])} to {show(edges[-1])}", salt)


def interval_chart(
    rows: Sequence[tuple[str, float, tuple[float, float]]], *, margin: float, x_title: str, salt: str = ""
) -> Markup:
    """Draws values with their intervals, one under the other, with a band of differences that do not matter.

    Args:
        rows: name, value and interval of each; the first is on top.
        margin: half the width of the band around zero.
        x_title: under the axis.
        salt: makes the ids of the charts of one page differ.

    Returns:
        An `<svg>` element; empty without rows.
    """
    if not rows:
        return Markup()

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.02, _BOTTOM, 0.95, _TOP - _BOTTOM), frame_on=False)
        axes.axvspan(-margin, margin, color=RULE, lw=0)
        axes.axvline(0, color=QUIET, lw=1)
        for place, (name, value, (low, high)) in enumerate(rows):
            axes.plot([low, high], [-place, -place], color=FIRST, lw=2)
            axes.plot(value, -place, "o", color=FIRST, ms=6, mew=0)
            axes.text(0, -place + 0.22, shortened(name), transform=axes.get_yaxis_transform(), va="bottom")
        axes.set_ylim(-len(rows) + 0.4, 0.8)
        axes.set_yticks([])
        axes.set_xlabel(x_title)

    label = ", ".join(f"{name} {value:+.2f} ({low:+.2f} to {high:+.2f})" for name, value, (low, high) in rows)
    return svg(draw, f"{x_title}: {label}", salt)


def cost_chart(points: Sequence[tuple[str, float, float]], *, x_title: str, y_title: str, salt: str = "") -> Markup:
    """Draws named points, for example gain against cost.

    Args:
        points: name, x and y of each.
        x_title: under the axis.
        y_title: for the label that screen readers read.
        salt: makes the ids of the charts of one page differ.

    Returns:
        An `<svg>` element; empty without points.
    """
    if not points:
        return Markup()

    def draw(figure: Figure) -> None:
        axes = _axes(figure, _BOTTOM, _TOP)
        axes.axhline(0, color=QUIET, lw=1)
        most = max(x for _, x, _ in points) or 1.0
        for name, x, y in points:
            axes.plot(x, y, "o", color=FIRST, ms=7, mew=0, clip_on=False)
            left = x < 0.55 * most
            shift = 0.02 * most if left else -0.02 * most
            axes.text(x + shift, y, shortened(name), ha="left" if left else "right", va="bottom")
        axes.set_xlim(0, most * 1.02)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        axes.set_xlabel(x_title)

    label = ", ".join(f"{name} {x:.3g}, {y:+.2f}" for name, x, y in points)
    return svg(draw, f"{y_title} by {x_title}: {label}", salt)


def shortened(name: str, most: int = 44) -> str:
    """Returns a name that fits beside a point, cut where it is too long."""
    return name if len(name) <= most else name[: most - 3] + "..."


def _axes(figure: Figure, bottom: float, top: float) -> Axes:
    axes = figure.add_axes((_LEFT, bottom, _RIGHT - _LEFT, top - bottom), frame_on=False)
    axes.grid(axis="y", clip_on=False)
    return axes


def svg(
    draw: Callable[[Figure], None], label: str, salt: str, size_px: tuple[int, int] = (_WIDTH_PX, _HEIGHT_PX)
) -> Markup:
    """Returns a drawing as an SVG element; the same numbers give the same bytes, whatever the user's matplotlibrc.

    Args:
        draw: draws on an empty figure.
        label: what screen readers read.
        salt: makes the ids of the charts of one page differ.
        size_px: width and height.
    """
    written = io.StringIO()
    with style.context(["default", {**_STYLE, "svg.hashsalt": f"{salt} {label}"}]):
        figure = Figure((size_px[0] / _PX_PER_INCH, size_px[1] / _PX_PER_INCH))
        figure.patch.set_visible(False)
        draw(figure)
        figure.savefig(written, format="svg", metadata={"Date": None})
    svg = _FILE_ONLY.sub("", written.getvalue().partition("<svg")[2]).replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return Markup('<svg role="img" aria-label="{}"').format(label) + Markup(svg)


def png(draw: Callable[[Figure], None], size_px: tuple[int, int]) -> bytes:
    """Returns the same drawing as a PNG file on white, with two pixels for each of `size_px`."""
    written = io.BytesIO()
    with style.context(["default", _STYLE]):
        figure = Figure((size_px[0] / _PX_PER_INCH, size_px[1] / _PX_PER_INCH), dpi=2 * _PX_PER_INCH)
        draw(figure)
        figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()
