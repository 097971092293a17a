"""Grad-CAM: heat lies where a network looks, for every kind of network that has maps."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord
from library.bundle.ensemble import ensemble
from library.errors import UsageError
from library.evaluation.inside.grad_cam import explain, overlay, overlay_png
from library.imaging import codec
from library.models.build import create
from library.models.classifier import Classifier
from tests.bundles import PROBABILITY_TOLERANCE

_CORNERS = [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bundle_of(network: Classifier, model: str, side: int, classes: tuple[str, ...] = ("a", "b")) -> Bundle:
    record = BundleRecord(model=model, classes=classes, input_size=(side, side), channels=network.in_chans)
    return Bundle.of_model(record, network, device="cpu")


def untrained(model: str, side: int, classes: tuple[str, ...] = ("a", "b")) -> Bundle:
    torch.manual_seed(0)
    return bundle_of(create(model, num_classes=len(classes)), model, side, classes)


def bright_detector(corner: tuple[int, int] | None = None) -> Bundle:
    """A LeNet that answers `a` for a bright spot, anywhere or in one corner only."""
    call = 'lenet5(activation="relu", pooling="max")'
    network = create(call, num_classes=2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        net = network.net
        net.c1.weight[0, 0, 2, 2] = net.c3.weight[0, 0, 2, 2] = net.f6.weight[0, 0] = 1
        if corner is None:
            net.c5.weight[0, 0] = 1
        else:
            net.c5.weight[0, 0, -corner[0], -corner[1]] = 1
        (last,) = [module for module in network.head if isinstance(module, nn.Linear)]
        last.weight[0, 0], last.weight[1, 0] = 1, -1
    return bundle_of(network, call, 28)


def spot(corner: tuple[int, int], side: int = 28) -> NDArray[np.uint8]:
    """A grey disc in one corner of a black picture."""
    pixels = np.zeros((side, side), np.uint8)
    y, x = (side // 5 if not place else side - 1 - side // 5 for place in corner)
    return cv2.circle(pixels, (x, y), side // 7, 200, -1)[:, :, None]


def share_in(heat: NDArray[np.float32], corner: tuple[int, int]) -> float:
    """Share of the heat in the quarter at a corner."""
    height, width = heat.shape
    rows, columns = (
        slice(place * size // 2, (place + 1) * size // 2) for place, size in zip(corner, heat.shape, strict=True)
    )
    assert (height, width) == (28, 28)
    return float(heat[rows, columns].sum() / heat.sum())


@pytest.mark.parametrize("corner", _CORNERS)
def test_heat_lies_on_the_spot_that_the_network_detects(corner: tuple[int, int]) -> None:
    explanation = explain(bright_detector(), spot(corner))
    assert explanation.class_name == "a"
    assert (explanation.heat.shape, explanation.heat.dtype) == ((28, 28), np.float32)
    assert (float(explanation.heat.min()), float(explanation.heat.max())) == (0.0, 1.0)
    assert share_in(explanation.heat, corner) > 0.9


def test_evidence_against_a_class_has_no_heat() -> None:
    assert explain(bright_detector(), spot((0, 0)), "b").heat.max() == 0


@pytest.mark.parametrize("corner", _CORNERS)
def test_corners_that_the_network_ignores_have_no_heat(corner: tuple[int, int]) -> None:
    bundle = bright_detector(corner)
    for other in _CORNERS:
        heat = explain(bundle, spot(other), "a").heat
        assert share_in(heat, corner) > 0.9 if other == corner else heat.max() == 0


@pytest.mark.parametrize(
    ("model", "side"),
    [
        ("lenet5", 28),
        ("resnet9(width=8)", 32),
        ("resnet18", 64),
        ("googlenet", 64),
        ("alexnet", 64),
        ('timm("convnext_atto")', 64),
        ('timm("efficientnet_b0")', 64),
        ('timm("vit_tiny_patch16_224", img_size=64)', 64),
    ],
)
def test_every_kind_of_network_has_a_map_of_the_whole_picture(model: str, side: int) -> None:
    bundle = untrained(model, side, ("a", "b", "c"))
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, bundle.record.channels), np.uint8)
    before = bundle.probabilities([pixels])
    maps = [explain(bundle, pixels, name).heat for name in bundle.classes]
    for heat in maps:
        assert heat.shape == (side, side)
        assert heat.min() >= 0
        assert heat.max() in (0, 1)
    # A random network's map may be flat for one class, but not for all three.
    assert any(heat.std() > 0.01 for heat in maps)
    np.testing.assert_allclose(bundle.probabilities([pixels]), before, rtol=0, atol=PROBABILITY_TOLERANCE)


def test_a_network_without_maps_is_an_error() -> None:
    with pytest.raises(UsageError, match="mlp has no map over the picture"):
        explain(untrained("mlp", 28), spot((0, 0)))


def test_an_unknown_class_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="has no class 'dog'; it has a, b"):
        explain(bright_detector(), spot((0, 0)), "dog")


def test_an_ensembles_map_is_the_weighted_mean_of_its_members() -> None:
    picture = np.maximum(spot((0, 0)), spot((1, 1)))
    both = ensemble([bright_detector((0, 0)), bright_detector((1, 1))], [3, 1])
    heat = explain(both, (picture, picture), "a").heat
    one, other = (explain(member, picture, "a").heat for member in both.members)
    mean = 0.75 * one + 0.25 * other
    assert heat == pytest.approx(mean / mean.max(), abs=1e-6)


def test_uint16_and_float32_pictures_have_the_same_heat() -> None:
    pixels = spot((0, 1))
    heats = [
        explain(bright_detector(), one).heat
        for one in (pixels, pixels.astype(np.uint16) * 257, pixels.astype(np.float32) / 255)
    ]
    for heat in heats[1:]:
        assert heat == pytest.approx(heats[0], abs=1e-5)


def test_the_overlay_colours_hot_pixels_and_leaves_the_others() -> None:
    pixels = np.full((28, 20, 3), 120, np.uint8)
    heat = np.zeros((28, 20), np.float32)
    heat[:7, :5] = 1
    drawn = overlay(pixels, heat)
    assert drawn.shape == (336, 240, 3)
    assert (drawn[-40:, -40:] == 120).all()
    hot = drawn[:40, :30].reshape(-1, 3).mean(0)
    assert hot[0] > hot[2]
    assert np.array_equal(codec.decode(overlay_png(pixels, heat)), drawn)
