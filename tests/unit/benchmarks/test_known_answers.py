"""The benchmarks of filter searches: which answers count as right, and which runs as searches without a claim."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from benchmarks.choosing import search_truth
from benchmarks.choosing.search_false_claims import rates
from benchmarks.choosing.search_truth import EXPECTED, as_expected
from library.pipeline import Pipeline


@pytest.mark.parametrize(
    ("case", "outcome", "filters", "right"),
    [
        ("clean", "none", None, True),
        ("clean", "undecided", None, False),
        ("clean", "helps", "invert", False),
        ("noise", "helps", "median_blur(size=3)", True),
        ("noise", "helps", "invert | median_blur(size=5)", True),
        ("noise", "helps", "box_blur(size=3)", False),
        ("noise", "undecided", None, False),
        ("noise", "none", None, False),
        ("edges", "helps", "gabor(wavelength=4, angle=0)", True),
        ("edges", "helps", "gabor(wavelength=4, angle=90)", False),
        ("edges", "helps", 'edges(direction="vertical")', True),
        ("edges", "helps", 'edges(direction="horizontal")', False),
        ("edges", "helps", "edges", False),
    ],
)
def test_only_the_known_answer_is_as_expected(case: str, outcome: str, filters: str | None, right: bool) -> None:
    expected = EXPECTED[case]
    assert expected is not None
    canonical = filters and str(Pipeline.parse(filters))
    assert as_expected(expected, outcome, canonical) == right


@pytest.mark.parametrize("field", ["pictures", "budget", "margin", "draw", "workers", "space", "recipe", "code"])
def test_a_kept_search_is_of_the_same_code_and_settings(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("one.yaml", "placebos: 1"), ("two.yaml", "placebos: 2")):
        (tmp_path / name).write_text(text)
    settings: dict[str, Any] = {"pictures": 600, "photo_px": 64, "margin": 0.3, "draw": 0, "workers": "2"}
    settings |= {"space": str(tmp_path / "one.yaml"), "recipe": None}
    budget = "5m"

    def folder() -> Path:
        options = argparse.Namespace(work=tmp_path, **settings)
        return search_truth.folder_of("clean", options, budget)

    before = folder()
    assert folder() == before
    if field == "code":
        monkeypatch.setattr(search_truth, "code_digest", lambda: "other")
    elif field == "budget":
        budget = "6m"
    else:
        others = {"pictures": 700, "margin": 0.5, "draw": 1, "workers": "3"}
        others |= {"space": str(tmp_path / "two.yaml"), "recipe": str(tmp_path / "one.yaml")}
        settings[field] = others[field]
    assert folder() != before


def test_unfinished_searches_are_not_searches_without_a_claim() -> None:
    def searched(outcome: str, unfinished: str | None = None, placebo_won: bool = False) -> dict[str, Any]:
        return {"outcome": outcome, "unfinished": unfinished, "placebo_won": placebo_won}

    runs = [searched("none")] * 30 + [searched("helps")] * 10 + [searched("undecided", "the budget ended")] * 60
    counted = rates(runs)
    assert (counted["finished"], counted["unfinished"]) == (40, 60)
    assert counted["helps"]["rate"] == 0.25
    low, high = counted["helps"]["interval"]
    assert low < 0.25 < high
    assert rates([searched("none")] * 40)["helps"]["interval"] == [0.0, 0.0881]
    assert rates(runs[-3:])["helps"] == {"count": 0, "rate": None, "interval": [0.0, 1.0]}
