"""Charts of bubbles: labels keep clear of each other, and everything stays within the chart."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from matplotlib.transforms import Bbox

from library.evaluation.report import bubbles
from library.evaluation.report.bubbles import Bubble, BubbleAxes, bubble_chart
from library.imaging import codec

_AXES = BubbleAxes("cost", "gain", [(1, "1"), (10, "10"), (100, "100")], [(0, "0%"), (50, "50%")], x_log=True)


def _some(count: int, seed: int) -> list[Bubble]:
    rng = np.random.default_rng(seed)
    places = zip(10 ** rng.uniform(0.2, 1.8, count), rng.uniform(5, 45, count), rng.uniform(1, 9, count), strict=True)
    return [Bubble(f"network_{n}", float(x), float(y), float(size), n % 4) for n, (x, y, size) in enumerate(places)]


def test_a_chart_names_every_bubble_and_is_a_picture_too() -> None:
    some = _some(9, seed=1)
    chart = bubble_chart(some, _AXES)
    for bubble in some:
        assert len(re.findall(rf">{bubble.name}</text>", chart.markup)) == 1
    assert "var(--first)" in chart.markup
    assert "#2463d6" not in chart.markup
    assert codec.decode(chart.png).shape[:2] == (940, 1800)


def test_a_chart_is_the_same_each_time_and_escapes_names() -> None:
    some = [Bubble("<b>&", 10, 20, 1, 0)]
    markup = bubble_chart(some, _AXES, salt="a").markup
    assert markup == bubble_chart(some, _AXES, salt="a").markup
    assert "<b>" not in markup


@pytest.mark.parametrize("seed", range(3))
def test_labels_do_not_cover_each_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"inception_{n}" for n in range(14)]
    centres = [(float(x), float(y)) for x, y in rng.uniform((250, 120), (650, 350), (14, 2))]
    radii = [float(radius) for radius in rng.uniform(3, 24, 14)]
    inner = Bbox.from_bounds(64, 46, 816, 410)
    placed = bubbles._labels(names, centres, radii, inner)  # pyright: ignore[reportPrivateUsage]
    for one, other in itertools.combinations(placed, 2):
        assert Bbox.intersection(one, other) is None or _area(one, other) < 12, (one, other)
    assert all(
        inner.x0 <= box.x0 and box.x1 <= inner.x1 and inner.y0 <= box.y0 and box.y1 <= inner.y1 for box in placed
    )


def _area(one: Bbox, other: Bbox) -> float:
    both = Bbox.intersection(one, other)
    return 0.0 if both is None else float(both.width * both.height)
