"""The models of the catalogue side by side: `striate models --plot`.

Everything is computed from the networks but the accuracy, which others published, each figure with its source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from library import storage
from library.dataset.destination import remove_temporary
from library.dataset.lease import hold
from library.evaluation.report.bubbles import Bubble, BubbleAxes, BubbleChart, bubble_chart
from library.evaluation.report.templates import PAGE, check_report, template
from library.models import names
from library.models.analysis import analyse
from library.models.catalog import CATALOG, ModelInfo
from library.models.counting import COURSE_LAYERS, KERAS_DEPTHS, LayerCounts, count_layers
from library.models.throughput import Throughput, device_name, measure_throughput

#: Groups of related networks with the beginnings of their names, in the order of their colours.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "residual networks": ("resnet",),
    "Inception and Xception": ("googlenet", "inception", "xception"),
    "VGG": ("vgg",),
    "others": (),
}
_COMMAND = "striate models --plot"


@dataclass(frozen=True)
class Measuring:
    """How throughput is measured.

    Attributes:
        batch_size: pictures of a batch.
        device: `cpu`, `cuda` or `cuda:1`.
        seconds: for each model, after one batch that is not timed.
    """

    batch_size: int
    device: str
    seconds: float


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        name: of the model.
        facts: what is known about it.
        counts: its layers, counted in every usual way.
        parameters: number of trainable parameters.
        multiply_adds: for one picture of its own input size.
        at_accuracy: for one picture of the size at which its accuracy was measured; None without one.
        throughput: measured on this machine; None where it was not.
    """

    name: str
    facts: ModelInfo
    counts: LayerCounts
    parameters: int
    multiply_adds: int
    at_accuracy: int | None
    throughput: Throughput | None = None

    @property
    def family(self) -> int:
        """Number of its family."""
        starts = enumerate(FAMILIES.values())
        return next((number for number, of in starts if self.name.startswith(of) and of), len(FAMILIES) - 1)


@dataclass(frozen=True)
class SideBySide:
    """All models, and how their throughput was measured; None where it was not."""

    rows: Sequence[Row]
    measuring: Measuring | None
    machine: str

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {
            "models": [
                {
                    "name": row.name,
                    "year": row.facts.year,
                    "input_size": row.facts.input_size,
                    "parameters": row.parameters,
                    "multiply_adds": row.multiply_adds,
                    "layers": asdict(row.counts),
                    "published_accuracy": None if row.facts.accuracy is None else asdict(row.facts.accuracy),
                    "multiply_adds_at_accuracy": row.at_accuracy,
                    "throughput": None if row.throughput is None else asdict(row.throughput),
                }
                for row in self.rows
            ],
            "measured_on": self.machine or None,
            "measuring": None if self.measuring is None else asdict(self.measuring),
        }


def check_folder(folder: str) -> str:
    """Returns the URI of the folder of the page.

    Raises:
        UsageError: it is a dataset, holds a page of something else, or cannot be written to.
    """
    folder = storage.normalize(folder)
    check_report(folder, [], _COMMAND)
    return folder


def compare_models(
    measuring: Measuring | None, progress: Callable[[str], None], models: Sequence[str] = names()
) -> SideBySide:
    """Computes the figures of models, and measures their throughput if asked to.

    Args:
        measuring: None to measure nothing.
        progress: takes a line before each measurement and after it.
        models: names from the catalogue.

    Raises:
        UsageError: a batch does not fit into the memory of a GPU.
    """
    rows = [_row(name) for name in models]
    if measuring is None:
        return SideBySide(rows, None, "")
    measured: list[Row] = []
    pace_s = 0.0  # for a multiply-add, from the model before
    for number, row in enumerate(rows, start=1):
        batches = [pace_s * one.multiply_adds * measuring.batch_size for one in rows[number - 1 :]]
        left = sum(batch + max(batch, measuring.seconds) for batch in batches)
        progress(f"measuring {row.name}, {number} of {len(rows)}; about {left:,.0f} s left")
        throughput = measure_throughput(
            row.name, batch_size=measuring.batch_size, device=measuring.device, seconds=measuring.seconds
        )
        pace_s = 1 / (throughput.pictures_per_s * row.multiply_adds)
        batches_text = "1 batch" if throughput.batches == 1 else f"{throughput.batches:,} batches"
        progress(f"{row.name}: {rate_text(throughput.pictures_per_s)} pictures/s, {batches_text}")
        measured.append(replace(row, throughput=throughput))
    return SideBySide(measured, measuring, device_name(measuring.device))


def rate_text(per_second: float) -> str:
    """Returns `14,000` or `2.46`: three digits, or all before the point."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def write_page(compared: SideBySide, folder: str) -> list[str]:
    """Writes index.html and a PNG for each chart; returns their URIs.

    Args:
        compared: from `compare_models`.
        folder: from `check_folder`.

    Raises:
        UsageError: another command is writing to the folder.
    """
    charts = draw_charts(compared)
    content = render_page(compared, charts).encode()
    written: list[str] = []
    with hold(folder, tidy=remove_temporary):
        for name, chart in charts.items():
            written.append(storage.join(folder, f"{name}.png"))
            storage.write_bytes(written[-1], chart.png)
        page = storage.join(folder, PAGE)
        storage.write_bytes(page, content)
    return [page, *written]


def render_page(compared: SideBySide, charts: Mapping[str, BubbleChart]) -> str:
    """Returns the page as one HTML document without scripts."""
    rows = compared.rows
    sources = list(dict.fromkeys(row.facts.accuracy.source for row in rows if row.facts.accuracy))
    return template("jobs.inspection", "side_by_side.html").render(
        title="Models, side by side",
        compared=compared,
        rows=rows,
        charts={name: chart.markup for name, chart in charts.items()},
        families=list(FAMILIES),
        without=[row.name for row in rows if row.facts.accuracy is None],
        sources=sources,
        course=course_table(),
        keras=keras_table(),
        rate=rate_text,
        number="{:,}".format,
        made=f"{datetime.now(UTC):%Y-%m-%d}, striate {version('striate')}, torch {version('torch')}, "
        f"timm {version('timm')}, torchvision {version('torchvision')}",
    )


def draw_charts(compared: SideBySide) -> dict[str, BubbleChart]:
    """Draws the charts by the name of their file; the one of throughput only where it was measured."""
    rows = compared.rows
    known = [(row, row.facts.accuracy, row.at_accuracy) for row in rows]
    judged = [(row, accuracy, cost) for row, accuracy, cost in known if accuracy is not None and cost is not None]
    top1 = [(float(percent), f"{percent}%") for percent in range(55, 90, 5)]
    charts = {
        "accuracy_by_multiply_adds": bubble_chart(
            [Bubble(row.name, cost, one.top1, row.parameters, row.family) for row, one, cost in judged],
            BubbleAxes("multiply-adds for a picture (logarithmic)", "published top-1",
                       [(value, short_number(value)) for value in (5e8, 1e9, 2e9, 5e9, 1e10, 2e10)], top1, x_log=True),
            salt="multiply-adds",
        ),
        "accuracy_by_parameters": bubble_chart(
            [Bubble(row.name, row.parameters, one.top1, cost, row.family) for row, one, cost in judged],
            BubbleAxes("parameters (logarithmic)", "published top-1",
                       [(value, short_number(value)) for value in (5e6, 1e7, 2e7, 5e7, 1e8, 2e8)], top1, x_log=True),
            salt="parameters",
        ),
        "time_line": bubble_chart(
            _time_line(rows),
            BubbleAxes("year of publication", "multiply-adds for a picture (logarithmic)",
                       [(year, str(year)) for year in range(1998, 2020, 2)],
                       [(10.0**power, short_number(10.0**power)) for power in range(5, 12)], y_log=True),
            most_px=17, salt="years",
        ),
    }  # fmt: skip
    measured = [(row, one, row.throughput) for row, one, _ in judged if row.throughput is not None]
    if measured:
        rates = [throughput.pictures_per_s for _, _, throughput in measured]
        charts["accuracy_by_throughput"] = bubble_chart(
            [
                Bubble(row.name, throughput.pictures_per_s, one.top1, row.parameters, row.family)
                for row, one, throughput in measured
            ],
            BubbleAxes(
                "pictures a second, measured (logarithmic)",
                "published top-1",
                [(value, short_number(value)) for value in _ticks(min(rates), max(rates))],
                top1,
                x_log=True,
            ),
            salt="throughput",
        )
    return charts


def _row(name: str) -> Row:
    facts, analysis = CATALOG[name], analyse(name)
    at_accuracy = analysis.multiply_adds
    if facts.accuracy is not None and facts.accuracy.size != facts.input_size[1]:
        at_accuracy = analyse(name, size=(facts.accuracy.size, facts.accuracy.size)).multiply_adds
    return Row(
        name,
        facts,
        count_layers(name),
        analysis.parameters,
        analysis.multiply_adds,
        None if facts.accuracy is None else at_accuracy,
    )


def _time_line(rows: Sequence[Row]) -> list[Bubble]:
    """Bubbles by year; those of one year stand side by side, the cheaper ones first."""
    bubbles: list[Bubble] = []
    for year in sorted({row.facts.year for row in rows if row.facts.year is not None}):
        of_year = sorted((row for row in rows if row.facts.year == year), key=lambda row: row.multiply_adds)
        for number, row in enumerate(of_year):
            place = year + 0.18 * (number - (len(of_year) - 1) / 2)
            bubbles.append(Bubble(row.name, place, row.multiply_adds, row.parameters, row.family))
    return bubbles


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten around two values."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    steps = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    first = max((step for step in steps if step <= low), default=steps[0])
    last = min((step for step in steps if step >= high), default=steps[-1])
    return [step for step in steps if first <= step <= last]


def short_number(value: float) -> str:
    """Returns `4.09 G`: three digits and a unit."""
    for unit in ("", " k", " M", " G"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} T"


@dataclass(frozen=True)
class CourseLine:
    """What the course's table says about a model, what is computed, and why they differ."""

    name: str
    course: int
    counts: LayerCounts
    why: str


def course_table() -> list[CourseLine]:
    """Compares the layers of the course's table with those that are computed, counted in every usual way."""
    lines: list[CourseLine] = []
    for name, course in COURSE_LAYERS.items():
        counts = count_layers(name)
        family = name.rstrip("0123456789")
        depths = {other: count_layers(other).depth for other in names() if other.startswith(family)}
        ways = {field: value for field, value in asdict(counts).items() if field != "megabytes"}
        same = [way.replace("_", " ") for way, value in ways.items() if value == course]
        others = [other for other, depth in depths.items() if depth == course and other != name]
        if same:
            why = f"the course counts in another way: {', '.join(same)}"
        elif others:
            why = f"no way of counting gives {course}, which is the depth of {' and '.join(others)}: perhaps its line"
        else:
            nearest = min(depths, key=lambda other: abs(depths[other] - course))
            why = f"no way of counting gives {course}; the depth of {nearest} is {depths[nearest]}"
            if course % counts.depth == 0:
                why += (
                    f", and {course} is {course // counts.depth} x {counts.depth}, as if every layer of the path were "
                    "counted with its normalisation and activation"
                )
        lines.append(CourseLine(name, course, counts, why))
    return lines


def keras_table() -> list[tuple[str, int, LayerCounts]]:
    """The models of Keras's own table with the depth that it gives, and the computed counts."""
    return [(name, depth, count_layers(name)) for name, depth in KERAS_DEPTHS.items()]


def course_markdown() -> str:
    """The two tables as they are in docs/networks.md."""
    lines = ["| model | the course | longest path | all with weights | and normalisation | and pooling | "
             "and activations | and sums | why they differ |", "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for line in course_table():
        one = line.counts
        ways = (one.depth, one.weighted, one.with_norms, one.with_pools, one.with_activations, one.with_additions)
        lines.append(f"| {line.name} | {line.course} | {' | '.join(map(str, ways))} | {line.why} |")
    lines += ["", "| model | Keras's table | longest path | all with weights | and normalisation | MiB in float32 |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    for name, depth, one in keras_table():
        lines.append(f"| {name} | {depth} | {one.depth} | {one.weighted} | {one.with_norms} | {one.megabytes:.0f} |")
    return "\n".join(lines) + "\n"
