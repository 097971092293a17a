"""The page of `striate search`: the answer, the finalists with their intervals, and every candidate that was tried."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure

from library.choosing.filter_search.answer import Answer, Gain, format_p, format_points
from library.choosing.filter_search.race import Standing
from library.choosing.filter_search.space import IDENTITY, Candidate
from library.evaluation.report.charts import cost_chart, interval_chart, shortened
from library.evaluation.report.templates import base64_text, template
from library.imaging import codec
from library.imaging.contact_sheet import Tile, draw_sheet
from library.imaging.picture import Pixels
from library.pipeline import Pipeline

COMMAND = "striate search"
#: Pictures in the sheet of what filters do, and pixels of each.
SHOWN_PICTURES, _TILE_PX = 6, 140
_ANSWER_INCHES, _ANSWER_DPI, _ANSWER_COLUMNS = (8.0, 3.6), 110, 76


@dataclass(frozen=True)
class SearchReport:
    """What a search found, and how.

    Attributes:
        answer: the decision.
        standings: of every candidate in the race.
        test: the winner on the test pictures; None without a winner or without a test split.
        robustness: accuracy (0 to 1) under each corruption by the name of the identity or a finalist; may be empty.
        facts: what was searched on what, as names and texts: datasets, pictures, recipe, seeds, machine, versions.
        trainings: number of trainings behind the report.
        seconds: of computing, all workers together.
        unfinished: why the search ended before its end, as a sentence; None where it is complete.
        looks: how often searches in the folder have judged on the `confirmation` and the `test` pictures, this one
            counted; empty where it is not known.
        resumes: whether trainings were left out for lack of time, which the same command would compute.
    """

    answer: Answer
    standings: Sequence[Standing]
    test: Gain | None
    robustness: Mapping[str, Mapping[str, float]]
    facts: Mapping[str, str]
    trainings: int
    seconds: float
    unfinished: str | None = None
    looks: Mapping[str, int] = field(default_factory=dict[str, int])
    resumes: bool = False

    @property
    def looked(self) -> str | None:
        """Says that the confirmation pictures have been asked before; None where this was the first time."""
        times = self.looks.get("confirmation", 0)
        if times < 2:
            return None
        return (
            f"the confirmation pictures have been looked at {times} times in this folder, with other settings or more "
            "time; p-values and intervals count one look, so confirm a surprising gain on new pictures"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain data, for answer.json."""
        return {
            "outcome": self.answer.outcome,
            "sentence": self.answer.sentence,
            "winner": self.answer.winner and self.answer.winner.to_json(),
            "placebo_won": self.answer.placebo_won,
            "finalists": [gain.to_json() for gain in self.answer.gains],
            "test": self.test and self.test.to_json(),
            "robustness": {name: dict(accuracies) for name, accuracies in self.robustness.items()},
            "candidates": [standing.to_json() for standing in self.standings],
            "facts": dict(self.facts),
            "trainings": self.trainings,
            "seconds": round(self.seconds, 1),
            "unfinished": self.unfinished,
            "looks": dict(self.looks),
        }


def render_search(report: SearchReport, sheet: bytes | None = None) -> str:
    """Returns the page as one HTML document without scripts.

    Args:
        report: what was found.
        sheet: PNG of `draw_filtered`; None for none.
    """
    gains = report.answer.gains
    best = [IDENTITY, *(gain.candidate for gain in gains)]
    return template("library.choosing.filter_search", "search.html").render(
        title="Which filter helps?",
        report=report,
        answer=report.answer,
        gains=gains,
        standings=report.standings,
        tried=sum(standing.seeds > 0 or standing.dropped is not None for standing in report.standings),
        # `clean` first, then by name and strength.
        corruptions=sorted(
            {name for accuracies in report.robustness.values() for name in accuracies},
            key=lambda name: (name != "clean", name),
        ),
        robust=[(one, report.robustness.get(one.name, {})) for one in best] if report.robustness else [],
        interval_chart=interval_chart(
            [(gain.candidate.label, 100 * gain.mean, _in_points(gain.interval)) for gain in gains],
            margin=100 * gains[0].margin if gains else 0.0,
            x_title="gain in percentage points",
        ),
        cost_chart=cost_chart(
            [(gain.candidate.label, gain.filter_ms, 100 * gain.mean) for gain in gains],
            x_title="milliseconds a picture",
            y_title="gain in percentage points",
        ),
        sheet=sheet,
        base64=base64_text,
        points=format_points,
        percent="{:.2%}".format,
        p_value=format_p,
        finalists={gain.candidate for gain in gains},
        computing=_duration(report.seconds),
        finite=math.isfinite,
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _in_points(interval: tuple[float, float]) -> tuple[float, float]:
    return 100 * interval[0], 100 * interval[1]


def draw_filtered(pictures: Sequence[Pixels], candidates: Sequence[Candidate]) -> bytes:
    """Draws what filters do to pictures, as PNG: a column a picture, a row a candidate, the unchanged pictures first.

    Args:
        pictures: height x width x channels each; the first six are drawn.
        candidates: placebos and repeated filters are left out, and filters that cannot take one of these pictures, as
            the recipe may prepare them first.
    """
    shown = list(pictures[:SHOWN_PICTURES])
    rows = [[Tile(pixels, "as it is" if number == 0 else "") for number, pixels in enumerate(shown)]]
    for filters in dict.fromkeys(one.filters for one in candidates if one.filters):
        pipeline, label = Pipeline.parse(filters), Candidate(filters).label
        try:
            row = [Tile(pipeline.apply(pixels), label if number == 0 else "") for number, pixels in enumerate(shown)]
        except Exception:  # a step of a plugin may raise anything, and the answer must not be lost for a picture
            continue
        rows.append(row)
    return codec.encode(draw_sheet(rows, tile_px=_TILE_PX), codec.Encoding("png"))[0]


def draw_answer(report: SearchReport) -> bytes:
    """Draws the answer as a PNG of its own: the sentence, and the finalists' gains with their intervals."""
    gains = list(reversed(report.answer.gains))
    with style.context("default"):
        figure = Figure(_ANSWER_INCHES, layout="constrained")
        axes = figure.add_subplot()
        margin = 100 * gains[0].margin if gains else 0.0
        axes.axvspan(-margin, margin, color="#dfe3ea", lw=0)
        axes.axvline(0, color="#5b6576", lw=1)
        for place, gain in enumerate(gains):
            colour = _colour(gain)
            low, high = _in_points(gain.interval)
            axes.plot([low, high], [place, place], color=colour, lw=2)
            axes.plot(100 * gain.mean, place, "o", color=colour, ms=7)
        axes.set_yticks(range(len(gains)), [shortened(gain.candidate.label) for gain in gains])
        axes.set_ylim(-0.7, len(gains) - 0.3)
        axes.set_xlabel("gain in points, with 95% interval\n(grey band: differences that do not matter)")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        sentence = "\n".join(textwrap.wrap(report.answer.sentence, _ANSWER_COLUMNS))
        figure.suptitle(sentence, fontsize=12, fontweight="bold", ha="left", x=0.02)
        written = io.BytesIO()
        figure.savefig(written, format="png", dpi=_ANSWER_DPI, metadata={"Software": None})
    return written.getvalue()


def _colour(gain: Gain) -> str:
    if gain.candidate.placebo is not None:
        return "#98a3b5"
    return {"better": "#12805c", "worse": "#c2570c"}.get(gain.verdict, "#2463d6")
