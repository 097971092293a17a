"""The page of a filter search."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from library.choosing.filter_search.answer import gain_of, judge
from library.choosing.filter_search.race import Race
from library.choosing.filter_search.search_page import SearchReport, draw_answer, draw_filtered, render_search
from library.choosing.filter_search.space import Candidate
from library.imaging import codec

MEDIAN, INVERT, PLACEBO = Candidate("median_blur(size=3)"), Candidate("invert", "channels"), Candidate(placebo=1)
LATE = Candidate("equalize")


@pytest.fixture(scope="module")
def report() -> SearchReport:
    """A search in which the median gains about ten points."""
    rng = np.random.default_rng(0)
    easy = rng.random(300)
    results = {MEDIAN: 0.93, INVERT: 0.83, PLACEBO: 0.83}
    correct = {one: rng.random((8, 300)) < share + 0.1 * (easy - 0.5) for one, share in results.items()}
    identity = rng.random((8, 300)) < 0.83 + 0.1 * (easy - 0.5)
    race = Race((MEDIAN, INVERT, PLACEBO, Candidate("edges"), LATE))
    race.fail(Candidate("edges"), "<b>cannot</b> be trained")
    for candidate, seed in race.missing():
        if candidate == LATE:
            continue
        race.record(candidate, seed, results[candidate] - 0.83 + 0.01 * rng.standard_normal())
    times = {MEDIAN: 0.4, INVERT: 0.05}
    answer = judge(identity, correct, filter_ms=times)
    test = gain_of(MEDIAN, correct[MEDIAN], identity)
    robustness = {"identity": {"noise 3": 0.4}, MEDIAN.name: {"noise 3": 0.8, "blur 1": 0.9, "clean": 0.93}}
    return SearchReport(answer, race.standings(), test, robustness, {"training set": "out/train"}, 58, 120.0)


def test_the_page_begins_with_the_answer_and_shows_every_candidate(report: SearchReport) -> None:
    page = render_search(report)
    assert report.answer.outcome == "helps"
    assert report.answer.sentence in page
    for text in (MEDIAN.name, "with_channels(invert)", "placebo 1", "80.00%", "out/train", "2 minutes of computing"):
        assert text in page
    assert page.count('<td class="result">finalist</td>') == 3
    assert page.count("no time to try it") == 1
    assert "4 of them tried" in page
    columns = [page.index(f">{name}</th>") for name in ("clean", "blur 1", "noise 3")]
    assert columns == sorted(columns)
    assert "the race may have dropped a filter" in page
    low, high = report.answer.gains[0].interval
    assert f"{100 * low:+.1f} to {100 * high:+.1f}" in page
    assert f"{100 * low:+.1f} to {100 * high:+.1f}" in report.answer.sentence
    assert "&lt;b&gt;cannot&lt;/b&gt; be trained" in page
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_an_unfinished_search_says_so_first(report: SearchReport) -> None:
    page = render_search(SearchReport(report.answer, [], None, {}, {}, 1, 1.0, "the budget of 1 minute was used up"))
    assert page.index("the budget of 1 minute was used up") < page.index("<main>")
    assert "1 seconds of computing" not in page
    assert "1 s of computing" in page


def test_a_repeated_look_at_the_confirmation_pictures_is_on_the_page(report: SearchReport) -> None:
    once = replace(report, looks={"confirmation": 1, "test": 1})
    assert once.looked is None
    twice = replace(report, looks={"confirmation": 2, "test": 1})
    assert "looked at 2 times" in render_search(twice)
    assert "looked at 2 times" not in render_search(once)
    assert twice.to_json()["looks"] == {"confirmation": 2, "test": 1}


def test_the_answer_is_a_picture_and_plain_data(report: SearchReport) -> None:
    height, width, channels = codec.decode(draw_answer(report)).shape
    assert (height, width) == (396, 880)
    assert channels in (3, 4)
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["winner"]["filters"] == MEDIAN.filters
    assert document["finalists"][0]["candidate"]["name"] == MEDIAN.name
    assert len(document["candidates"]) == 5


def test_the_sheet_has_a_row_for_each_filter_once() -> None:
    pictures = list(np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8))
    heights = [
        codec.decode(draw_filtered(pictures, candidates)).shape[0]
        for candidates in ([], [INVERT], [INVERT, MEDIAN, Candidate("invert"), PLACEBO])
    ]
    assert heights[2] - heights[1] == heights[1] - heights[0] > 0


def test_a_filter_that_cannot_take_a_picture_has_no_row() -> None:
    pictures = list(np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8))
    without = draw_filtered(pictures, [INVERT])
    assert draw_filtered(pictures, [INVERT, Candidate("channels([0, 1, 2])")]) == without
