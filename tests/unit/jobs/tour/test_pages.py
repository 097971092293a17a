"""What a chapter claims about several runs depends on every one of them."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from jobs.tour.book import CHAPTERS
from library.evaluation.report.templates import template
from tests import ROOT

RUNS = 3


def transfer_page(first_ahead: int, first_behind: int, ahead: dict[str, int], behind: dict[str, int]) -> str:
    return " ".join(
        template("jobs.tour", "pages/transfer.html")
        .render(
            base=SimpleNamespace(pictures=700, accuracy=0.99, tested=180),
            examples=[],
            known="01234",
            confusion=[],
            strange=100,
            sure=0.8,
            rows=[],
            runs=RUNS,
            first_ahead=first_ahead,
            first_behind=first_behind,
            ahead=ahead,
            behind=behind,
            few=57,
            tested=180,
            chart="",
        )
        .split()
    )


@pytest.mark.parametrize(
    ("first_ahead", "first_behind"),
    [(ahead, behind) for ahead in range(RUNS + 1) for behind in range(RUNS + 1 - ahead)],
)
def test_which_layers_transfer_is_said_only_where_all_runs_agree(first_ahead: int, first_behind: int) -> None:
    page = transfer_page(first_ahead, first_behind, {"re-train": 1}, {"re-train": 2})
    decided = first_ahead == RUNS, first_behind == RUNS
    assert ("In these runs it is the <b>last layers</b> that do not transfer" in page) == decided[0]
    assert ("In these runs the <b>last layers</b> transfer too" in page) == decided[1]
    assert (f"in {first_ahead} of {RUNS} runs, so these runs do not decide" in page) == (not any(decided))


@pytest.mark.parametrize(
    ("ahead", "behind", "words"),
    [
        (3, 0, "<b>re-train</b> is ahead each time."),
        (0, 3, "<b>re-train</b> is behind each time."),
        (2, 1, "<b>re-train</b> is ahead in 2 of 3, so undecided."),
        (0, 2, "<b>re-train</b> is ahead in 0 of 3, so undecided."),
    ],
)
def test_a_way_is_ahead_or_behind_only_where_all_runs_agree(ahead: int, behind: int, words: str) -> None:
    page = transfer_page(3, 0, {"re-train": ahead}, {"re-train": behind})
    assert f"{words} 3 runs are few: of two equal ways, one is ahead in all 3 in 1 of 4 cases." in page
    assert ("nothing beats the start from random numbers" in page) == (behind == RUNS)


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ([0.3, 0.6, 1.1], "ahead each time"),
        ([-0.3, -0.6, -1.1], "behind each time"),
        ([0.3, -0.6, 1.1], "neither ahead nor behind each time"),
        ([-0.3, 0.0, -1.1], "neither ahead nor behind each time"),
    ],
)
def test_lenet_is_ahead_or_behind_only_where_all_runs_agree(differences: list[float], words: str) -> None:
    values = {"rows": [], "train": 1437, "test": 360, "one": 0.28, "moved": [], "ahead": 0, "most_ahead": 0.0}
    charts = dict.fromkeys(("moved_chart", "accuracy_chart", "loss_chart"), "")
    digits = template("jobs.tour", "pages/digits.html")
    page = digits.render(**values, **charts, differences=differences, epochs=8, seeds=RUNS)
    assert re.findall(r"It was ([\w ]+ each time)", page) == [words]


def test_the_guide_lists_the_chapters_of_the_book() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", (ROOT / "docs/tour.md").read_text("utf-8"), re.M)
    assert rows == [(chapter.name, chapter.title) for chapter in CHAPTERS]
