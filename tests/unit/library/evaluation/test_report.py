"""The report page: its content, no external resources, and names that users choose stay text."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from library.errors import UsageError
from library.evaluation.comparison import Comparison, compare
from library.evaluation.metrics import Evaluation, evaluate
from library.evaluation.report.charts import line_chart, reliability_chart
from library.evaluation.report.content import Content, Counts, Subject, Throughput, speed, summary
from library.evaluation.report.page import render
from library.evaluation.report.templates import PAGE, check_report
from library.evaluation.robustness import CORRUPTIONS, Robustness
from library.evaluation.sums import Example, Outcomes, Pairs, Sums
from library.imaging import codec

EVIL = "<script>alert('x')</script>"
PICTURE = codec.encode(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), codec.Encoding("png"))[0]
THROUGHPUT = Throughput(
    pictures_per_s=1234.5,
    wall_s=2.0,
    start_s=0.5,
    workers=2,
    device="cpu",
    shards=9,
    shards_resumed=0,
    seconds={},
    ray_data=(),
)
VOID = {"meta", "img", "br"}


def outcomes(classes: int = 5, pictures: int = 200, seed: int = 0, names: tuple[str, ...] = ()) -> Outcomes:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, pictures)
    logits = rng.normal(size=(pictures, classes))
    logits[np.arange(pictures), truth] += 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = names or tuple(f"class {number}" for number in range(classes))
    keys = tuple(f"key-{row}" for row in range(pictures))
    return Outcomes(names, keys, truth, probabilities.astype(np.float32))


def summed(some: Outcomes) -> Sums:
    sums = Sums()
    sums.add(some)
    return sums


def evaluated(some: Outcomes) -> Evaluation:
    return evaluate(some.classes, summed(some))


def compared(first: Outcomes, second: Outcomes) -> Comparison | None:
    pairs = Pairs()
    pairs.add(first, second)
    return compare(pairs)


def subject(some: Outcomes, **changes: Any) -> Subject:
    worst = summed(some).mistakes[:6]
    result = Subject(
        name="/out/lenet",
        bundle_id="ab" * 32,
        counts=Counts(len(some) + 3, len(some), {"blank": 2}, {"truncated": 1}),
        evaluation=evaluated(some),
        mistakes=worst,
        examples={one.key: Example(one.key, PICTURE, "png") for one in worst},
        record={
            "model": "lenet5",
            "steps": "grayscale",
            "provenance": {"git_commit": "abc123", "recipe": "epochs: 3\n"},
        },
        curves=[{"epoch": n, "step": n, "train_loss": 2 / n, "val_loss": 2.5 / n, "lr": 0.1} for n in range(1, 5)],
        robustness=Robustness(100, 0.9, (0.5,) * len(CORRUPTIONS), (100,) * len(CORRUPTIONS)),
    )
    return dataclasses.replace(result, **changes)


def content(*subjects: Subject, **changes: Any) -> Content:
    return dataclasses.replace(Content("/data/test", "cd" * 32, subjects, THROUGHPUT, footer="made today"), **changes)


class Checker(HTMLParser):
    """Checks that every element is closed in order, and collects text and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(*subjects: Subject, **changes: Any) -> tuple[str, Checker]:
    page = render(content(*subjects, **changes))
    checker = Checker(page)
    return " ".join(" ".join(checker.text).split()), checker


def test_the_page_has_metrics_mistakes_with_keys_and_the_origin() -> None:
    one = subject(outcomes(8))
    text, page = read(one)
    evaluation = one.evaluation
    low, high = evaluation.intervals["top1"]
    assert f"{evaluation.top1:.2%} 95% interval {low * 100:.2f} to {high * 100:.2f}" in text
    assert f"top-5 {evaluation.top5:.2%}" in text
    assert "203 in = 200 evaluated + 2 (blank 2) dropped + 1 (truncated 1) rejected" in text
    for mistake in one.mistakes:
        assert f"true {mistake.label} , predicted as {mistake.predicted}" in text
        assert mistake.key in text
    for words in ("ab" * 32, "git commit abc123", "epochs: 3", "1,234 pictures a second", "made today", "/data/test"):
        assert words in text
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 6
    assert all(image["alt"] for image in pictures)
    data = str(pictures[0]["src"]).removeprefix("data:image/png;base64,")
    assert base64.b64decode(data) == PICTURE
    assert "50.0%" in text
    assert "epoch training validation 1 2 2.5 2 1 1.25" in text


def test_the_page_has_no_scripts_and_no_external_resources() -> None:
    page = render(content(subject(outcomes())))
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|url\(|\son[a-z]+=", page)
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)', page))
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)', page))
    assert page.count("data:image/") == 6


def test_names_that_users_choose_are_text_everywhere() -> None:
    names = (EVIL, "a & b", 'quo"te', "it's", "plain")
    some = outcomes(5, names=names)
    evil = Outcomes(some.classes, tuple(f"{EVIL}{row}" for row in range(200)), some.truth, some.probabilities)
    one = subject(
        evil,
        name=f"/out/{EVIL}",
        counts=Counts(203, 200, {EVIL: 3}, {}, {EVIL: 3}),
        record={"model": EVIL, EVIL: EVIL, "provenance": {EVIL: {EVIL: EVIL}, "long": [EVIL] * 50}},
    )
    for changes in ({"dataset": EVIL, "footer": EVIL}, {"comparison": compared(evil, some)}):
        subjects = (one, one) if "comparison" in changes else (one,)
        text, page = read(*subjects, **changes)
        assert EVIL in text
        assert "script" not in {tag for tag, _ in page.tags}
        assert any(EVIL in str(value) for _, attributes in page.tags for value in attributes.values())


def test_the_matrix_has_a_cell_with_the_count_of_each_pair() -> None:
    some = outcomes(30)
    page = render(content(subject(some)))
    matrix = re.search(r'<table class="heat.*?</table>', page, re.DOTALL)
    assert matrix is not None
    assert matrix[0].count("<td") == 900
    confusion = evaluated(some).confusion
    assert [int(count) for count in re.findall(r">(\d+)</td>", matrix[0])] == confusion[confusion > 0].tolist()
    assert matrix[0].count('scope="row"') == matrix[0].count('scope="col"') == 30


def test_with_too_many_classes_the_most_confused_pairs_are_listed() -> None:
    some = outcomes(150, 2000)
    text, page = read(subject(some, robustness=None))
    assert "150 classes are too many for a matrix" in text
    assert not any("heat" in str(attributes.get("class")) for _, attributes in page.tags)
    assert "Most confused pairs" in text


def test_a_perfect_classifier_without_curves_or_pictures_has_a_page() -> None:
    some = outcomes()
    certain = Outcomes(some.classes, some.keys, some.truth, np.eye(5, dtype=np.float32)[some.truth])
    text, _ = read(subject(certain, curves=(), record={}, robustness=None, examples={}))
    assert "100.00%" in text
    assert "every picture was predicted correctly" in text
    assert "No picture was predicted as another class." in text
    assert "Learning rate" not in text


def test_two_classifiers_are_shown_with_mcnemars_test() -> None:
    first, second = outcomes(seed=0), outcomes(seed=1)
    second = Outcomes(second.classes, second.keys, first.truth, second.probabilities)
    comparison = compared(first, second)
    assert comparison is not None
    two = [subject(first), subject(second, name="/out/other", mistakes=summed(second).mistakes[:2])]
    text, page = read(*two, comparison=comparison)
    assert "lenet and other on test" in text
    assert f"Only the first is correct on {comparison.only_first} pictures" in text
    assert f"p = {comparison.p_value:.3g}" in text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    links = [str(attributes["href"])[1:] for tag, attributes in page.tags if tag == "a"]
    assert len(ids) == len(set(ids))
    assert set(links) <= set(ids)
    nothing, _ = read(*two)
    assert "No picture was judged by both." in nothing


def test_the_speed_of_a_resumed_run_says_what_was_done_before() -> None:
    whole = "1,234 pictures a second on 2 workers (cpu)"
    assert speed(THROUGHPUT) == whole
    assert (
        speed(dataclasses.replace(THROUGHPUT, shards_resumed=4))
        == f"{whole}; 4 of 9 shards were judged by an earlier run"
    )
    nothing = dataclasses.replace(THROUGHPUT, shards_resumed=9, pictures_per_s=None)
    assert speed(nothing) == "9 of 9 shards were judged by an earlier run"


def test_the_summary_is_json_with_all_metrics() -> None:
    some = outcomes(5)
    numbers = json.loads(json.dumps(summary(content(subject(some))), allow_nan=False))
    assert numbers["bundle_id"] == "ab" * 32
    assert numbers["top1"] == evaluated(some).top1
    assert np.sum(numbers["confusion"]) == 200
    assert [one["name"] for one in numbers["per_class"]] == list(some.classes)
    assert len(numbers["robustness"]["corrupted"]) == len(CORRUPTIONS)
    assert {"top5", "loss", "intervals", "calibration", "counts", "throughput", "dataset_digest"} <= numbers.keys()
    two = summary(content(subject(some), subject(some), comparison=compared(some, some)))
    assert [one["top1"] for one in two["bundles"]] == [numbers["top1"]] * 2
    assert two["comparison"]["p_value"] == 1.0


def test_a_line_leaves_a_gap_where_a_value_is_not_finite() -> None:
    points = [(1.0, 0.5), (2.0, 0.4), (3.0, float("nan")), (4.0, 0.2), (5.0, 0.1)]
    chart = line_chart({"loss": points}, x_title="epoch", y_title="Loss", show="{:g}".format)
    (line,) = re.findall(r'd="([^"]*)" style="fill: none; stroke: var\(--first\)', chart)
    assert re.findall("[ML]", line) == ["M", "L", "M", "L"]
    assert chart.count("<use") == 4
    assert "nan" not in chart
    assert line_chart({"loss": [(1.0, float("inf"))]}, x_title="epoch", y_title="Loss", show=str) == ""


@pytest.mark.parametrize("values", [(0.5,), (0.0, 0.0), (0.01, 0.01), (-3.0, 7.0), (1e-6, 3e-6), (12.0, 9000.0)])
def test_axes_include_every_value(values: tuple[float, ...]) -> None:
    chart = line_chart({"a": list(enumerate(values, 1))}, x_title="epoch", y_title="A", show="{:g}".format)
    heights = [float(y) for y in re.findall(r'<use [^>]*y="([\d.-]+)"', chart)]
    ticks = [float(y) for y in re.findall(r'd="M 52 ([\d.]+)\s+L 446 [^"]*" style="[^"]*var\(--rule\)', chart)]
    assert len(heights) == len(values)
    assert 3 <= len(ticks) <= 8
    assert all(min(ticks) - 0.1 <= height <= max(ticks) + 0.1 for height in heights)


def test_the_reliability_chart_has_a_bar_for_each_bin_with_pictures() -> None:
    some = evaluated(outcomes()).calibration
    chart = reliability_chart(some)
    filled = [one for one in some.bins if one.count]
    assert chart.count("fill: var(--first)") == chart.count("fill: var(--quiet); opacity") == len(filled)
    assert f"expected calibration error {some.ece:.3f}" in chart


def test_a_report_does_not_depend_on_the_users_matplotlibrc() -> None:
    one = content(subject(outcomes()))
    page = render(one)
    with matplotlib.rc_context({"lines.linestyle": "--", "axes.grid": False, "xtick.labelsize": 30}):
        assert render(one) == page


def test_charts_use_the_colours_of_the_page_in_light_and_dark() -> None:
    page = render(content(subject(outcomes())))
    charts = re.findall("<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 3
    assert not any(re.search("#[0-9a-f]{6}", chart) for chart in charts)
    used = set(re.findall(r"var\((--\w+)\)", "".join(charts)))
    assert len(used) >= 4
    assert all(f"{name}:" in page for name in used)


def test_a_page_is_replaced_only_by_the_command_that_wrote_it(tmp_path: Path) -> None:
    page = render(Content(dataset="out/test", dataset_digest="d" * 64, subjects=[], throughput=THROUGHPUT))
    (tmp_path / PAGE).write_text(page)
    check_report(str(tmp_path), [], "striate evaluate")
    for folder, command in ((tmp_path, "striate audit"), (tmp_path / "own", "striate evaluate")):
        folder.mkdir(exist_ok=True)
        if folder != tmp_path:
            (folder / PAGE).write_text("<title>mine</title>")
        with pytest.raises(UsageError, match="of something else"):
            check_report(str(folder), [], command)
