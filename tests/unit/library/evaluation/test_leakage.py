"""Accuracy with and without leaked pictures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from library.dataset.manifest import Tally
from library.evaluation.leakage import LeakEffect, Leaks, leak_effect
from library.evaluation.metrics import evaluate
from library.evaluation.report.content import Content, Counts, Subject, Throughput, summary
from library.evaluation.report.page import render
from library.evaluation.sums import EvaluateReport, EvaluateTotals, Outcomes, Sums

CLASSES = ("a", "b", "c")


def outcomes(pictures: int, accuracy: float, prefix: str, seed: int = 0) -> Outcomes:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, pictures)
    logits = rng.normal(size=(pictures, 3))
    predicted = np.where(rng.random(pictures) < accuracy, truth, (truth + 1) % 3)
    logits[np.arange(pictures), predicted] += 9
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    keys = tuple(f"{prefix}{row}" for row in range(pictures))
    return Outcomes(CLASSES, keys, truth, shares.astype(np.float32))


def summed(*some: Outcomes) -> Sums:
    sums = Sums()
    for one in some:
        sums.add(one)
    return sums


def test_the_rest_has_the_metrics_of_evaluating_it_alone() -> None:
    leaked, clean = outcomes(80, 1.0, "leaked"), outcomes(300, 0.7, "clean", 1)
    effect = leak_effect(CLASSES, summed(leaked, clean), summed(leaked))
    for part, alone in ((effect.without, clean), (effect.leaked, leaked)):
        whole = evaluate(CLASSES, summed(alone))
        assert part is not None
        assert (part.pictures, part.top1, part.top5, part.loss) == (whole.pictures, whole.top1, whole.top5, whole.loss)
        assert part.intervals == whole.intervals
    rest = summed(leaked, clean).without(summed(leaked))
    assert evaluate(CLASSES, rest).confusion.tolist() == evaluate(CLASSES, summed(clean)).confusion.tolist()
    assert evaluate(CLASSES, rest).calibration == evaluate(CLASSES, summed(clean)).calibration


def test_the_difference_is_that_of_both_accuracies_with_an_interval() -> None:
    leaked, clean = outcomes(80, 1.0, "leaked"), outcomes(300, 0.7, "clean", 1)
    effect = leak_effect(CLASSES, summed(leaked, clean), summed(leaked))
    assert effect.without is not None
    assert effect.difference is not None
    assert effect.difference == (80 + clean.correct.sum()) / 380 - effect.without.top1
    assert effect.difference > 0.05
    assert effect.interval is not None
    assert 0 < effect.interval[0] < effect.difference < effect.interval[1]


def test_the_interval_holds_the_true_difference_in_nineteen_of_twenty_sets() -> None:
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        leaked = rng.binomial(1000, 0.2)
        parts = (outcomes(leaked, 0.95, "leaked", seed), outcomes(1000 - leaked, 0.8, "clean", 1000 + seed))
        effect = leak_effect(CLASSES, summed(*parts), summed(parts[0]))
        assert effect.interval is not None
        covered += effect.interval[0] <= 0.2 * (0.95 - 0.8) <= effect.interval[1]
    assert 53 <= covered <= 60  # 57 are expected


def test_without_leaks_nothing_changes_and_with_only_leaks_nothing_is_left() -> None:
    some = outcomes(50, 0.8, "x")
    none = leak_effect(CLASSES, summed(some), Sums())
    assert (none.leaked, none.difference, none.interval) == (None, 0.0, (0.0, 0.0))
    assert none.without is not None
    assert none.without.top1 == some.correct.mean()
    everything = leak_effect(CLASSES, summed(some), summed(some))
    assert (everything.without, everything.difference, everything.interval) == (None, None, None)
    assert everything.leaked == none.without


def test_reports_of_shards_add_up_the_leaked_pictures() -> None:
    totals = EvaluateTotals(1)
    parts = [outcomes(20, 0.8, f"{shard}-", shard) for shard in range(3)]
    for number, part in enumerate(parts):
        leaked = part.among_keys({f"{number}-{row}" for row in range(5)})
        report = EvaluateReport(
            stem=f"part-{number:06}",
            input_digest="",
            work_digest="",
            tally=Tally(),
            sums=[summed(part)],
            leaked=[summed(leaked)],
        )
        totals.add(EvaluateReport.model_validate_json(report.model_dump_json()))
    assert (totals.sums[0].judged, totals.leaked[0].judged) == (60, 15)
    assert totals.leaked[0].top1 == sum(int(part.correct[:5].sum()) for part in parts)


def content(effect: LeakEffect, some: Outcomes) -> Content:
    throughput = Throughput(9.0, 2.0, 0.5, 2, "cpu", 9, 0, {}, ())
    leaks = Leaks(("/out/<train>",), 4, 380, 80, {"exact_duplicate": 30, "near_duplicate": 50}, 7)
    subject = Subject("/out/lenet", "ab" * 32, Counts(380, 380), evaluate(CLASSES, summed(some)), leak_effect=effect)
    return Content("/out/test", "cd" * 32, [subject], throughput, leaks=leaks)


def test_the_page_and_the_numbers_show_both_accuracies() -> None:
    leaked, clean = outcomes(80, 1.0, "leaked"), outcomes(300, 0.7, "clean", 1)
    effect = leak_effect(CLASSES, summed(leaked, clean), summed(leaked))
    some = content(effect, clean)
    page = render(some)
    assert "80 of 380 pictures leaked from /out/&lt;train&gt;: near_duplicate 50, exact_duplicate 30" in page
    assert "7 of them have another label there" in page
    assert effect.without is not None
    assert effect.difference is not None
    assert f"{100 * effect.without.top1:.2f}%" in page
    assert f"{100 * effect.difference:+.2f} points" in page
    numbers = summary(some)
    assert numbers["leaks"]["kinds"] == {"exact_duplicate": 30, "near_duplicate": 50}
    assert numbers["leak_effect"] == dataclasses.asdict(effect)
    everything = content(leak_effect(CLASSES, summed(leaked), summed(leaked)), leaked)
    assert "Every picture that was judged leaked" in render(everything)


@pytest.mark.parametrize("part", ["leaks", "leak_effect"])
def test_an_evaluation_that_looked_for_no_leaks_says_nothing_of_them(part: str) -> None:
    some = outcomes(50, 0.8, "x")
    plain = content(leak_effect(CLASSES, summed(some), Sums()), some)
    subject = dataclasses.replace(plain.subjects[0], leak_effect=None)
    without = dataclasses.replace(plain, subjects=[subject], leaks=None)
    assert part not in summary(without)
    assert "leaked" not in render(without)
