"""Deletion and insertion tell a map that is right from one that is wrong, and from chance."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord
from library.bundle.ensemble import ensemble
from library.errors import UsageError
from library.evaluation.inside.trust import Trust, deletion_insertion, draw_trust
from library.models.build import create

_SIDE = 8


def linear_bundle(weights: NDArray[np.float32]) -> Bundle:
    """The logit of `a` is the sum of the normalised pixels times these weights; that of `b` is 0."""
    side = len(weights)
    call = f"mlp(hidden=[1], size={side})"
    network = create(call, num_classes=2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        dense: Any = network.net.hidden[0]
        last: Any = network.head[-1]
        dense.weight[0] = torch.from_numpy(weights.ravel())
        last.weight[0, 0] = 1
    record = BundleRecord(model=call, classes=("a", "b"), input_size=(side, side), channels=1)
    return Bundle.of_model(record, network, device="cpu")


def weights_and_picture() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A few pixels speak for the class, all of them as bright."""
    weights = np.zeros((_SIDE, _SIDE), np.float32)
    weights[1:3, 1:4] = [[0.6, 0.5, 0.4], [0.3, 0.2, 0.1]]
    return weights, np.full((_SIDE, _SIDE, 1), 255, np.uint8)


def test_curves_are_the_sums_of_the_pixels_that_are_left() -> None:
    weights, pixels = weights_and_picture()
    bundle = linear_bundle(weights)
    trust = deletion_insertion(bundle, pixels, {"map": weights}, "a", steps=64)["map"]
    mean, std = float(bundle.model.mean), float(bundle.model.std)
    # Mean pixels are stored as whole numbers, so what is hidden is almost 0 after normalisation.
    hidden, shown = (round(255 * mean) / 255 - mean) / std, (1 - mean) / std
    order = np.sort(weights, axis=None)[::-1]
    sums = [order[:count].sum() * hidden + order[count:].sum() * shown for count in range(65)]
    logits = np.maximum(sums, 0)  # its hidden unit has a ReLU
    assert trust.deletion == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-5)
    assert trust.areas["deletion"] == pytest.approx(np.trapezoid(trust.deletion, dx=1 / 64), abs=1e-6)


def test_the_right_order_beats_chance_and_the_wrong_one_does_not() -> None:
    weights, _ = weights_and_picture()
    pixels = np.zeros((_SIDE, _SIDE, 1), np.uint8)
    pixels[1:3, 1:4] = 255  # so that the blurred picture has less evidence
    trusts = deletion_insertion(linear_bundle(weights), pixels, {"right": weights, "wrong": -weights}, "a")
    right, wrong = trusts["right"], trusts["wrong"]
    assert right.areas["deletion"] < right.areas["shifted_deletion"]
    assert right.areas["insertion"] > right.areas["shifted_insertion"]
    assert right.beaten == {"deletion": 24, "insertion": 24}
    assert right.verdict.startswith("better than chance in both ways")
    assert wrong.beaten == {"deletion": 0, "insertion": 0}
    assert wrong.verdict.startswith("no better than chance: of its 24 copies at other places it beats 0")
    for curves in (right, wrong):
        assert curves.deletion[0] == pytest.approx(curves.insertion[-1], abs=1e-6)
        assert (len(curves.shares), curves.shares[0], curves.shares[-1]) == (11, 0, 1)
        assert curves.shifted_insertion.shape == (24, 11)
    assert draw_trust(trusts).shape == (440, 940, 3)


def blobs(side: int, seed: int) -> NDArray[np.float32]:
    """Blurred noise that is as smooth everywhere, over the edges too."""
    noise = np.random.default_rng(seed).normal(size=(side, side)).astype(np.float32)
    smooth = cv2.GaussianBlur(np.tile(noise, (3, 3)), (0, 0), side / 10)
    return np.asarray(smooth[side : 2 * side, side : 2 * side], np.float32)


def test_a_map_beats_its_copies_at_one_place_of_25_at_the_most() -> None:
    """So a map that lies anywhere by chance is called better in a way in at most 1 case of 25."""
    side = 10
    bundle = linear_bundle(np.abs(blobs(side, 0)))
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 1), np.uint8)
    heat = blobs(side, 1)
    places = {f"{row},{column}": np.roll(heat, (row, column), (0, 1)) for row in range(0, side, 2)
              for column in range(0, side, 2)}  # fmt: skip
    trusts = deletion_insertion(bundle, pixels, places, "a", steps=3).values()
    for way in ("deletion", "insertion"):
        assert sum(trust.beaten[way] == 24 for trust in trusts) <= 1
    assert any("no better than chance" in trust.verdict for trust in trusts)


def test_random_smooth_maps_are_better_than_chance_at_the_stated_rate() -> None:
    bundle = linear_bundle(np.abs(blobs(_SIDE, 0)))
    pixels = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 1), np.uint8)
    heats = {str(seed): blobs(_SIDE, seed) for seed in range(1, 61)}
    trusts = deletion_insertion(bundle, pixels, heats, "a", steps=3)
    both = sum(trust.verdict.startswith("better than chance in both ways") for trust in trusts.values())
    any_way = sum(trust.verdict.startswith("better than chance") for trust in trusts.values())
    assert both <= 3
    assert any_way <= 6


@pytest.mark.parametrize("sides", [(5, 5), (8, 8), (9, 12), (13, 13), (28, 28), (30, 31)])
def test_the_verdict_states_the_odds_of_the_pictures_sides(sides: tuple[int, int]) -> None:
    """A map of one spot beats its copies where the spot is nearer to the best place than they are."""
    heat = np.zeros(sides, np.float32)
    bundle = linear_bundle(np.zeros((8, 8), np.float32))
    odds = deletion_insertion(bundle, np.zeros((8, 8, 1), np.uint8), {"map": heat}, "a", steps=1)["map"].odds
    near = sum(np.minimum(np.arange(side), side - np.arange(side))[index] ** 2.0
               for side, index in zip(sides, np.ogrid[: sides[0], : sides[1]], strict=True))  # fmt: skip
    offsets = [[round(fifth * side / 5) for fifth in range(5)] for side in sides]
    copies = [np.roll(near, (-row, -column), (0, 1)) for row in offsets[0] for column in offsets[1]][1:]
    best = np.all([near < copy for copy in copies], axis=0).mean()
    assert best <= 1 / odds
    assert 1 / odds <= {5: 1 / 25, 8: 1 / 16, 9: 1 / 18, 13: 1 / 18, 28: 1 / 21, 30: 1 / 22}[sides[0]]
    low, high = np.zeros(2, np.float32), np.ones(2, np.float32)
    lows, highs = np.zeros((24, 2), np.float32), np.ones((24, 2), np.float32)
    shares = np.array([0, 1], np.float32)
    assert f"in at most 1 case of {odds}" in Trust("a", shares, low, high, highs, lows, odds).verdict
    assert f"up to 1 map of {odds // 2} by chance" in Trust("a", shares, low, low, highs, highs, odds).verdict


def test_a_map_without_any_order_is_no_better_than_chance() -> None:
    weights, pixels = weights_and_picture()
    flat = np.zeros((_SIDE, _SIDE), np.float32)
    trust = deletion_insertion(linear_bundle(weights), pixels, {"flat": flat}, "a")["flat"]
    assert trust.beaten == {"deletion": 0, "insertion": 0}


def test_a_map_that_helps_one_way_only_is_to_be_read_with_care() -> None:
    shares = np.array([0, 1], np.float32)
    low, high = np.zeros(2, np.float32), np.ones(2, np.float32)
    lows, highs = np.zeros((24, 2), np.float32), np.ones((24, 2), np.float32)
    assert "in hiding its hottest pixels only" in Trust("a", shares, low, low, highs, highs, 25).verdict
    assert "in showing its hottest pixels only" in Trust("a", shares, high, high, lows, lows, 25).verdict
    # One copy that is as good is enough.
    mixed = np.concatenate([highs[1:], lows[:1]])
    assert (
        "no better than chance: of its 24 copies at other places it beats 23"
        in Trust("a", shares, low, low, mixed, highs, 25).verdict
    )


def test_an_ensemble_of_equal_members_has_the_curves_of_one() -> None:
    weights, pixels = weights_and_picture()
    one = linear_bundle(weights)
    both = ensemble([one, linear_bundle(weights)], [1, 1])
    alone = deletion_insertion(one, pixels, {"map": weights}, "a")["map"]
    together = deletion_insertion(both, (pixels, pixels), {"map": weights}, "a")["map"]
    assert together.deletion == pytest.approx(alone.deletion, abs=1e-5)
    assert together.shifted_insertion == pytest.approx(alone.shifted_insertion, abs=1e-5)


def test_with_road_the_right_order_beats_chance_too() -> None:
    weights, _ = weights_and_picture()
    pixels = np.zeros((_SIDE, _SIDE, 1), np.uint8)
    pixels[1:3, 1:4] = 255
    maps = {"right": weights, "wrong": -weights}
    trusts = deletion_insertion(linear_bundle(weights), pixels, maps, "a", road=True)
    right, wrong = trusts["right"], trusts["wrong"]
    assert right.beaten["deletion"] == 24
    assert right.areas["deletion"] < right.areas["shifted_deletion"] < wrong.areas["deletion"]
    assert right.areas["insertion"] > wrong.areas["insertion"]
    for trust in (right, wrong):  # all begin and end with the same pictures
        assert trust.deletion[0] == pytest.approx(trust.insertion[-1], abs=1e-6)
        assert trust.deletion[-1] == pytest.approx(trust.insertion[0], abs=1e-6)


def test_with_road_what_the_neighbours_show_is_not_hidden() -> None:
    """A picture of one colour stays as it is, whatever is removed, so no map of it can be right."""
    weights, pixels = weights_and_picture()
    one = linear_bundle(weights)
    both = ensemble([one, linear_bundle(weights)], [1, 1])
    alone = deletion_insertion(one, pixels, {"map": weights}, "a", road=True)["map"]
    assert alone.deletion[:-1] == pytest.approx(alone.deletion[0], abs=0.01)
    assert alone.insertion[1:] == pytest.approx(alone.deletion[0], abs=0.01)
    together = deletion_insertion(both, (pixels, pixels), {"map": weights}, "a", road=True)["map"]
    assert together.deletion == pytest.approx(alone.deletion, abs=1e-5)
    assert together.shifted_insertion == pytest.approx(alone.shifted_insertion, abs=1e-5)


def test_progress_reaches_its_end_and_an_unknown_class_is_an_error() -> None:
    weights, pixels = weights_and_picture()
    calls: list[tuple[int, int]] = []
    deletion_insertion(linear_bundle(weights), pixels, {"map": weights}, progress=lambda *counts: calls.append(counts))
    assert calls[-1][0] == calls[-1][1] == 25 * 2 * 9
    with pytest.raises(UsageError, match="has no class 'c'"):
        deletion_insertion(linear_bundle(weights), pixels, {"map": weights}, "c")
