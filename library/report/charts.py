"""Small charts as inline SVG. Colours come from the page's style, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import pairwise

from library.evaluation import Calibration

_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 36
_MARKED = 40  # a line of at most so many points shows each of them


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_title: str,
    y_title: str,
    show: Callable[[float], str],
) -> str:
    """Lines over whole numbers, the first in the page's first colour, and so on.

    Args:
        series: points (x, y) of each line by its name, with x rising; values that are not finite leave a gap.
        x_title: under the axis.
        y_title: for those who cannot see the chart.
        show: a y value as text.
    """
    finite = {name: [p for p in points if math.isfinite(p[1])] for name, points in series.items()}
    xs = sorted({x for points in finite.values() for x, _ in points})
    ys = [y for points in finite.values() for _, y in points]
    if not xs:
        return ""
    x_ticks = _whole_ticks(xs[0], xs[-1])
    y_ticks = _ticks(min(ys), max(ys))
    plot = _Plot((xs[0], xs[-1]), (y_ticks[0], y_ticks[-1]))
    parts = [plot.horizontal(y, show(y)) for y in y_ticks]
    parts += [plot.text(plot.x(x), _HEIGHT - _BOTTOM + 16, f"{x:g}", "middle") for x in x_ticks]
    parts.append(plot.text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 4, x_title, "middle"))
    for number, (name, points) in enumerate(series.items()):
        parts += _line(plot, points, f"line c{number}")
        if len(points) <= _MARKED:
            parts += [
                f'<circle class="dot c{number}" cx="{plot.x(x):.1f}" cy="{plot.y(y):.1f}" r="3">'
                f"<title>{escape(name)}, {escape(x_title)} {x:g}: {escape(show(y))}</title></circle>"
                for x, y in points
                if math.isfinite(y)
            ]
    ends = ", ".join(f"{name} ends at {show(points[-1][1])}" for name, points in finite.items() if points)
    return _svg(f"{y_title} by {x_title}: {ends}", parts)


def reliability_chart(calibration: Calibration) -> str:
    """Accuracy and confidence, a bar a bin: what they have in common, and what one has more; the diagonal is that of
    a perfectly calibrated classifier. Under it how many pictures each bin holds."""
    plot = _Plot((0, 1), (0, 1), bottom=84)
    parts = [plot.horizontal(tick / 4, f"{tick * 25}%") for tick in range(5)]
    most = max((one.count for one in calibration.bins), default=0) or 1
    floor, room = _HEIGHT - _BOTTOM, 34
    for one in calibration.bins:
        left, wide = plot.x(one.low) + 1, plot.x(one.high) - plot.x(one.low) - 2
        if one.accuracy is None or one.confidence is None:
            continue
        label = (
            f"confidence {one.low:.0%} to {one.high:.0%}: {one.count:,} pictures, "
            f"mean confidence {one.confidence:.1%}, accuracy {one.accuracy:.1%}"
        )
        low, high = sorted((one.accuracy, one.confidence))
        tall = max(1.0, room * one.count / most)
        gap = "over" if one.confidence > one.accuracy else "under"
        parts += [
            f"<g><title>{escape(label)}</title>",
            _box("bar", left, plot.y(low), wide, plot.y(0) - plot.y(low)),
            _box(gap, left, plot.y(high), wide, plot.y(low) - plot.y(high)),
            _box("count", left, floor - tall, wide, tall),
            "</g>",
        ]
    parts.append(_segment("diagonal", plot.x(0), plot.y(0), plot.x(1), plot.y(1)))
    parts += [plot.text(plot.x(tick / 4), floor + 16, f"{tick * 25}%", "middle") for tick in range(5)]
    parts.append(plot.text(_LEFT - 6, floor - room / 2 + 4, "pictures", "end"))
    parts.append(plot.text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 4, "confidence", "middle"))
    return _svg(f"accuracy by confidence; expected calibration error {calibration.ece:.3f}", parts)


class _Plot:
    """Where values lie in the drawing."""

    def __init__(self, across: tuple[float, float], up: tuple[float, float], bottom: float = _BOTTOM) -> None:
        self._across, self._up, self._floor = across, up, _HEIGHT - bottom

    def x(self, value: float) -> float:
        low, high = self._across
        share = (value - low) / (high - low) if high > low else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self._up
        share = (value - low) / (high - low) if high > low else 0.5
        return self._floor - share * (self._floor - _TOP)

    def horizontal(self, value: float, label: str) -> str:
        line = _segment("grid", _LEFT, self.y(value), _WIDTH - _RIGHT, self.y(value))
        return line + self.text(_LEFT - 6, self.y(value) + 4, label, "end")

    def text(self, x: float, y: float, words: str, anchor: str) -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _line(plot: _Plot, points: Sequence[tuple[float, float]], style: str) -> list[str]:
    """Runs of finite points, each a line."""
    return [
        _segment(style, plot.x(ax), plot.y(ay), plot.x(bx), plot.y(by))
        for (ax, ay), (bx, by) in pairwise(points)
        if math.isfinite(ay) and math.isfinite(by)
    ]


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from at most `low` to at least `high`."""
    if high <= low:
        low, high = (low - abs(low) / 10, low + abs(low) / 10) if low else (0.0, 1.0)
    rough = (high - low) / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _whole_ticks(low: float, high: float) -> list[float]:
    """Whole numbers between, at most nine."""
    step = max(1, math.ceil((high - low) / 8))
    for round_step in (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500):
        if round_step >= step:
            step = round_step
            break
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step) + 1)] or [low]


def _segment(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _box(style: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _svg(label: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
