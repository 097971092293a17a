"""Verdicts on two histograms that differ, and on the pictures of a replica's requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from library.bundle.description import BundleRecord
from library.dataset.histograms import Histograms
from library.errors import BadPicture, StriateError
from library.imaging import codec
from library.imaging.codec import Encoding
from serve.http.schemas import Distance
from serve.http.service import Answer
from serve.replica.drift import FRESH_S, LiveDrift, compare
from tests.unit.library.dataset.test_histograms import histograms, photos


def darkened(pixels: NDArray[np.uint8], gamma: float = 2.2) -> NDArray[np.uint8]:
    return (255 * (pixels / 255.0) ** gamma).astype(np.uint8)


def png(pixels: Any) -> bytes:
    return codec.encode(pixels, Encoding.parse("png"))[0]


def live_drift(pictures: list[Any], share: float = 1, **options: Any) -> LiveDrift:
    """The drift of a model trained on `pictures`; background work runs immediately."""
    provenance = {"histograms": histograms(pictures).to_dict(), "class_counts": {"cat": 300, "dog": 300}}
    record = BundleRecord(classes=("cat", "dog"), provenance=provenance | options.pop("provenance", {}))
    return LiveDrift("pets", record, lambda call, *arguments: call(*arguments), share=share, **options)


def ask(live: LiveDrift, pictures: Sequence[Any], names: Sequence[str] = ("cat", "dog")) -> None:
    """Records requests with one picture each, answered with `names` in turn."""
    for number, picture in enumerate(pictures):
        name = names[number % len(names)]
        live.observe([picture], [Answer(((name, 1.0),), 80, 60, np.ones(1, np.float32))])


def verdicts(reference: Histograms, live: Histograms) -> dict[str, str]:
    return {name: distance.verdict for name, distance in compare(reference, live).items()}


def reported_verdicts(live: LiveDrift) -> dict[str, str]:
    return {name: distance.verdict for name, distance in live.report().measures.items()}


def gauged(live: LiveDrift) -> dict[str, float]:
    return {labels["measure"]: value for labels, value in live.gauge_values()}


def test_pictures_like_the_training_data_are_same_and_darker_ones_are_not() -> None:
    live = live_drift(photos(400, 1), half=300)
    ask(live, [png(pixels) for pixels in photos(300, 2)])
    assert reported_verdicts(live) == dict.fromkeys(
        ("brightness", "contrast", "sharpness", "width", "height", "class"), "same"
    )
    assert live.report().no_reference == []
    # After two more halves nothing of the earlier pictures is left.
    ask(live, [png(darkened(pixels)) for pixels in photos(600, 3)])
    verdict_of = reported_verdicts(live)
    assert (verdict_of["brightness"], verdict_of["width"], verdict_of["height"]) == ("drifted", "same", "same")
    assert live.report().verdict == "drifted"


def test_the_window_keeps_between_one_half_and_both() -> None:
    live = live_drift(photos(5, 1), half=100)
    sizes: list[int] = []
    for _ in range(350):
        ask(live, [photos(1, 1)[0]], ["cat"])
        sizes.append(live.live().classes["cat"])
    assert sizes[:200] == list(range(1, 201))
    assert min(sizes[200:]) == 101
    assert max(sizes) == 200


def test_only_pictures_that_were_answered_count() -> None:
    live = live_drift(photos(5, 1))
    whole = png(photos(1, 1)[0])
    live.observe(
        [whole[: len(whole) // 2], b"no picture at all"], [BadPicture("truncated", ""), BadPicture("damaged", "")]
    )
    ask(live, [b"answered, and no picture all the same", whole, photos(1, 1)[0]], ["cat"])
    assert sum(live.live().counts("brightness").values()) == 1
    assert live.live().classes == {"cat": 3}


def test_measuring_takes_its_share_of_the_time_and_no_more() -> None:
    live = live_drift(photos(5, 1), share=1e-6)
    ask(live, [png(photos(1, 1)[0])] * 50)
    assert sum(live.live().counts("brightness").values()) == 1


def test_a_picture_that_takes_long_to_decode_is_not_measured() -> None:
    live = live_drift(photos(5, 1))
    ask(live, [codec.encode(np.zeros((1600, 1600, 3), np.uint8), Encoding.parse("webp"))[0]])
    assert live.live().counts("width") == {}


def test_without_measured_training_data_only_classes_are_compared() -> None:
    live = live_drift([], provenance={"histograms": None})
    ask(live, [png(pixels) for pixels in photos(10, 2)] * 40, ["cat"])
    report = live.report()
    assert reported_verdicts(live) == {"class": "drifted"}
    assert "brightness" in report.no_reference
    assert sum(report.live.bins["brightness"]) == 400


def test_the_gauge_ends_half_an_hour_after_the_last_picture() -> None:
    now = [1000.0]
    live = live_drift([], provenance={"histograms": None}, clock=lambda: now[0])
    ask(live, [b"answered"] * 100, ["cat"])
    assert gauged(live) == {}, "too few"
    ask(live, [b"answered"] * 300, ["cat"])
    assert gauged(live)["class"] > 0.25
    now[0] += FRESH_S - 1
    assert gauged(live)["class"] > 0.25
    now[0] += 1
    assert gauged(live) == {}
    assert live.report().verdict == "drifted", "of the last pictures, however long ago they came"
    ask(live, [b"answered"], ["cat"])
    assert gauged(live)["class"] > 0.25


def test_the_gauge_of_pictures_ends_while_that_of_answers_stays() -> None:
    now = [1000.0]
    live = live_drift(photos(400, 1), clock=lambda: now[0])
    ask(live, [png(pixels) for pixels in photos(300, 2)])
    assert gauged(live).keys() == {"brightness", "contrast", "sharpness", "width", "height", "class"}
    now[0] += FRESH_S
    ask(live, [photos(1, 1)[0]])  # decoded pixels are not measured
    assert gauged(live).keys() == {"class"}


def test_a_bundle_with_histograms_of_another_version_is_reported() -> None:
    with pytest.raises(StriateError, match="ingest --measure"):
        live_drift([], provenance={"histograms": {"version": 99}})


# -- comparison -------------------------------------------------------------------------------------------------------


def test_other_pictures_of_the_same_kind_are_the_same() -> None:
    verdict_of = verdicts(histograms(photos(800, 1)), histograms(photos(400, 2)))
    assert set(verdict_of.values()) == {"same"}
    assert set(verdict_of) == {"brightness", "contrast", "sharpness", "width", "height"}


def test_darkened_pictures_are_flagged_in_brightness_and_not_in_size() -> None:
    reference = histograms(photos(800, 1))
    verdict_of = verdicts(reference, histograms([darkened(picture) for picture in photos(400, 2)]))
    assert verdict_of["brightness"] == "drifted"
    assert (verdict_of["width"], verdict_of["height"]) == ("same", "same")


def test_larger_pictures_are_flagged_in_size_and_not_in_brightness() -> None:
    larger = [np.kron(picture, np.ones((2, 2, 1), np.uint8)) for picture in photos(400, 2)]
    verdict_of = verdicts(histograms(photos(800, 1)), histograms(larger))
    assert (verdict_of["width"], verdict_of["height"], verdict_of["brightness"]) == ("drifted", "drifted", "same")


def test_few_pictures_are_not_drift() -> None:
    reference = histograms(photos(800, 1))
    assert set(verdicts(reference, histograms([darkened(picture) for picture in photos(20, 2)])).values()) == {
        "too_few"
    }


@pytest.mark.parametrize("seed", range(20))
def test_chance_alone_is_seldom_a_shift_and_never_a_drift(seed: int) -> None:
    random = np.random.default_rng(seed)
    reference, live = Histograms(), Histograms()
    for values, histogram in ((random.beta(2, 2, 5000), reference), (random.beta(2, 2, 250), live)):
        for value in values:
            histogram.add({"brightness": float(value)})
    comparison = compare(reference, live)["brightness"]
    assert comparison.psi < 0.15
    assert comparison.verdict != "drifted"


def test_an_unknown_class_is_drift_and_many_classes_need_more_pictures() -> None:
    reference, live = Histograms(), Histograms()
    for name in ("cat", "dog"):
        reference.add_class(name, 500)
        live.add_class(name, 200)
    assert verdicts(reference, live) == {"class": "same"}
    live.add_class("horse", 400)
    assert verdicts(reference, live) == {"class": "drifted"}
    many = Histograms()
    for number in range(1000):
        many.add_class(str(number), 50)
    assert verdicts(many, many)["class"] == "same"
    few = Histograms()
    for number in range(1000):
        few.add_class(str(number))
    assert verdicts(many, few)["class"] == "too_few"


def test_distances_are_zero_for_the_same_and_js_one_for_nothing_in_common() -> None:
    one, other = Histograms(), Histograms()
    for _ in range(300):
        one.add({"brightness": 0.1})
        other.add({"brightness": 0.9})
    assert compare(one, one)["brightness"] == Distance(psi=0, js=0, verdict="same", reference=300, live=300)
    assert compare(one, other)["brightness"].js == 1.0
    assert compare(one, other)["brightness"].verdict == "drifted"
