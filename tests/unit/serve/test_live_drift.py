"""What a replica says of the pictures that it is asked about."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from library import codec
from library.bundle_record import BundleRecord
from library.codec import Encoding
from library.drift import Histograms, measures, training_histograms
from library.errors import StriateError
from serve.drift import LiveDrift


def scenes(count: int, seed: int) -> list[Any]:
    random = np.random.default_rng(seed)
    light, noise = random.uniform(60, 190, count), random.normal(0, 20, (count, 24, 32, 3))
    return list(np.clip(light[:, None, None, None] + noise, 0, 255).astype(np.uint8))


def png(pixels: Any) -> bytes:
    return codec.encode(pixels, Encoding.parse("png"))[0]


def record(pictures: list[Any], **provenance: Any) -> BundleRecord:
    made = Histograms()
    for pixels in pictures:
        made.add(measures(pixels))
    provenance = {"histograms": made.to_dict(), "class_counts": {"cat": 300, "dog": 300}} | provenance
    return BundleRecord(classes=("cat", "dog"), provenance=provenance)


def verdicts(live: LiveDrift) -> dict[str, str]:
    return {name: found["verdict"] for name, found in live.described()["measures"].items()}


def test_pictures_like_those_of_training_are_the_same_and_darkened_ones_are_not() -> None:
    live = LiveDrift(record(scenes(400, 1)), half=300, share=1)
    for pixels in scenes(300, 2):
        live.picture(png(pixels))
    live.answered(["cat", "dog"] * 150)
    assert verdicts(live) == dict.fromkeys(("brightness", "contrast", "sharpness", "width", "height", "class"), "same")
    assert live.described()["no_reference"] == []
    # Two halves later nothing is left of what came before.
    for pixels in scenes(600, 3):
        live.picture(png((255 * (pixels / 255.0) ** 2.2).astype(np.uint8)))
    found = verdicts(live)
    assert (found["brightness"], found["width"], found["height"]) == ("drifted", "same", "same")
    assert live.described()["verdict"] == "drifted"
    assert live.psi()["brightness"] >= 0.25


def test_the_window_keeps_between_one_half_and_both() -> None:
    live = LiveDrift(record(scenes(5, 1)), half=100, share=1)
    sizes: list[int] = []
    for _ in range(350):
        live.answered(["cat"])
        sizes.append(live.live().classes["cat"])
    assert sizes[:200] == list(range(1, 201))
    assert min(sizes[200:]) == 101
    assert max(sizes) == 200


def test_the_gauge_is_told_once_there_is_something_to_tell() -> None:
    told: list[dict[str, float]] = []
    live = LiveDrift(record(scenes(5, 1)), told=told.append)
    live.answered(["cat"] * 300)
    live.answered(["cat"])
    assert [list(values) for values in told] == [["class"]]
    assert told[0]["class"] > 0.25


def test_a_damaged_picture_is_passed_by_and_stops_nothing() -> None:
    live = LiveDrift(record(scenes(5, 1)), share=1)
    whole = png(scenes(1, 1)[0])
    live.picture(whole[: len(whole) // 2])
    live.picture(b"no picture at all")
    live.picture(whole)
    assert sum(live.live().counts("brightness").values()) == 1


def test_measuring_takes_its_share_of_the_time_and_no_more() -> None:
    live = LiveDrift(record(scenes(5, 1)), share=1e-6)
    for _ in range(50):
        live.picture(png(scenes(1, 1)[0]))
    assert sum(live.live().counts("brightness").values()) == 1


def test_a_bundle_of_a_dataset_that_was_not_measured_is_compared_by_its_classes_only() -> None:
    live = LiveDrift(record([], histograms=None), share=1)
    for pixels in scenes(10, 2):
        live.picture(png(pixels))
    live.answered(["cat"] * 400)
    described = live.described()
    assert {name: found["verdict"] for name, found in described["measures"].items()} == {"class": "drifted"}
    assert "brightness" in described["no_reference"]
    assert sum(described["live"]["bins"]["brightness"]) == 10


def test_a_bundle_with_histograms_of_another_version_is_told() -> None:
    with pytest.raises(StriateError, match="ingest --measure"):
        training_histograms({"histograms": {"version": 99}})
