"""Occlusion asks the classifier itself; Captum gives the same numbers for the same windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam, Occlusion
from torch import nn

from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord
from library.bundle.ensemble import ensemble
from library.errors import UsageError
from library.evaluation.inside.band_drawing import draw_heat, signed_overlay
from library.evaluation.inside.grad_cam import explain
from library.evaluation.inside.occlusion import fill_of, occlusion
from library.evaluation.inside.recording import as_batch
from library.models.build import create


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bundle_of(call: str, side: int, channels: int = 3, *, multilabel: bool = False) -> Bundle:
    torch.manual_seed(0)
    record = BundleRecord(
        model=call, classes=("a", "b", "c"), input_size=(side, side), channels=channels, multilabel=multilabel
    )
    network = create(call, num_classes=3)
    with torch.no_grad():
        last: Any = network.head[-1]
        last.weight.mul_(30)  # random weights hardly tell pictures apart
    return Bundle.of_model(record, network, device="cpu")


def noise(side: int, channels: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).integers(0, 256, (side, side, channels), np.uint8)


@pytest.mark.parametrize(("window", "stride"), [((8, 8), (7, 4)), ((9, 5), (6, 5)), ((28, 28), (8, 8))])
@pytest.mark.parametrize("multilabel", [False, True])
def test_occlusion_has_the_numbers_of_captum(
    window: tuple[int, int], stride: tuple[int, int], multilabel: bool
) -> None:
    bundle, pixels = bundle_of("lenet5(in_chans=3)", 28, multilabel=multilabel), noise(28)
    ours = occlusion(bundle, pixels, "b", window=window, stride=stride)
    squash = torch.sigmoid if multilabel else lambda logits: torch.softmax(logits, 1)
    fill = torch.from_numpy(np.asarray(fill_of(bundle, pixels)).astype(np.float32)).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        theirs = Occlusion(lambda x: squash(bundle.model(x))).attribute(
            as_batch(bundle.model, [pixels]).float() / 255,
            sliding_window_shapes=(3, *window),
            strides=(3, *stride),
            baselines=fill.expand(1, 3, 28, 28),
            target=1,
        )
    assert ours.drop == pytest.approx(theirs[0, 0].numpy(), abs=1e-5)
    assert np.abs(ours.drop).max() > 1e-3
    assert ours.probability == pytest.approx(float(bundle.probabilities([pixels])[0, 1]), abs=1e-6)


@pytest.mark.parametrize(("call", "layer", "side"), [("resnet18", "layer4", 64), ("resnet9(width=8)", "layer3", 32)])
def test_grad_cam_has_the_numbers_of_captum(call: str, layer: str, side: int) -> None:
    bundle, pixels = bundle_of(call, side), noise(side)
    module: nn.Module = bundle.model.net.get_submodule(layer)
    pictures = as_batch(bundle.model, [pixels]).float() / 255
    maps = 0
    for target, name in enumerate(bundle.classes):
        cam = LayerGradCam(bundle.model, module).attribute(pictures, target=target, relu_attributions=True)
        cam = nn.functional.interpolate(cam, (side, side), mode="bilinear", align_corners=False)[0, 0].detach().numpy()
        heat = explain(bundle, pixels, name).heat
        assert heat == pytest.approx(cam / max(cam.max(), 1e-12), abs=1e-4)
        maps += cam.max() > 0
    assert maps


def test_an_ensemble_is_asked_as_a_whole() -> None:
    one, other = bundle_of("resnet9(width=8)", 32), bundle_of("lenet5(in_chans=3)", 28)
    both = ensemble([one, other], [1, 1])
    prepared = (noise(32), noise(28))
    alone = [
        occlusion(member, part, "a", window=(8, 8), stride=(8, 8))
        for member, part in zip(both.members, prepared, strict=True)
    ]
    whole = occlusion(both, prepared, "a", window=(8, 8), stride=(8, 8))
    assert whole.drop.shape == (32, 32)
    assert whole.probability == pytest.approx(np.mean([each.probability for each in alone]), abs=1e-5)
    # Members hide the same part of the picture, so the drop of the first is half of what the mean loses.
    same = ensemble([one, bundle_of("resnet9(width=8)", 32)], [1, 1])
    half = occlusion(same, (prepared[0], prepared[0]), "a", window=(8, 8), stride=(8, 8))
    assert half.drop == pytest.approx(alone[0].drop, abs=1e-5)


def test_hiding_what_a_network_does_not_see_changes_nothing() -> None:
    bundle = bundle_of("lenet5(in_chans=3)", 28)
    with torch.no_grad():
        bundle.model.net.c1.weight.zero_()
    hidden = occlusion(bundle, noise(28))
    assert np.abs(hidden.drop).max() < 1e-6
    assert hidden.probability == bundle.probabilities([noise(28)]).max()


def test_progress_counts_windows_and_wrong_requests_are_errors() -> None:
    bundle, calls = bundle_of("lenet5(in_chans=3)", 28), list[tuple[int, int]]()
    occlusion(bundle, noise(28), window=(7, 7), stride=(7, 7), progress=lambda *counts: calls.append(counts))
    assert calls[-1] == (16, 16)
    with pytest.raises(UsageError, match="has no class 'd'; it has a, b, c"):
        occlusion(bundle, noise(28), "d")
    with pytest.raises(UsageError, match="at least 1 pixel"):
        occlusion(bundle, noise(28), stride=(0, 1))


def test_red_speaks_for_a_class_and_blue_against_it() -> None:
    pixels = np.full((28, 28, 1), 100, np.uint8)
    drop = np.zeros((28, 28), np.float32)
    drop[:14, :14], drop[14:, 14:] = 0.5, -0.25
    drawn = signed_overlay(pixels, drop).astype(int)
    side = drawn.shape[0]
    hot, cold, rest = drawn[10, 10], drawn[side - 10, side - 10], drawn[10, side - 10]
    assert hot[0] > hot[2]
    assert cold[2] > cold[0]
    assert (rest == 100).all()
    bundle = bundle_of("lenet5", 28, 1)
    sheet = draw_heat(pixels, explain(bundle, pixels, "a"), occlusion(bundle, pixels, "a"))
    assert sheet.shape[1] > 3 * 260
