"""Feature maps stage by stage, first kernels, and receptive fields with their places."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord
from library.bundle.ensemble import ensemble
from library.evaluation.inside.band_drawing import draw_fields, draw_kernels, draw_maps, png
from library.evaluation.inside.recording import activations, as_batch, blank, feature_maps, networks
from library.evaluation.inside.units import field_of, first_kernels, most_active
from library.imaging import codec
from library.models import info, names
from library.models.build import create
from library.models.classifier import Classifier

#: Sides of the smallest pictures that a network takes, as it has no batch norm in training here.
_SIDES = {"lenet5": 28, "mlp": 28, "resnet9": 16, "alexnet": 63, "inception_v3": 75, "inception_v4": 75}
_SIDES |= {"inception_resnet_v2": 75, "xception": 48}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(call: str) -> Classifier:
    torch.manual_seed(0)
    return create(call, num_classes=2, auxiliary=False).eval()


def noise(side: int, channels: int, dtype: Any = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (side, side, channels), dtype)


def bundle_of(call: str, side: int, channels: int = 3) -> Bundle:
    record = BundleRecord(model=call, classes=("a", "b"), input_size=(side, side), channels=channels)
    return Bundle.of_model(record, network(call), device="cpu")


@pytest.mark.parametrize("name", names())
def test_every_model_shows_its_stages_and_first_kernels(name: str) -> None:
    model = network(name)
    side = _SIDES.get(name, 32)
    pixels = noise(side, info(name).input_size[0])
    stages = feature_maps(model, pixels)
    # A stage without a result of its own would be missing from the page.
    assert [stage.stage for stage in stages] == list(model.stage_names[:-1])
    for stage in stages:
        assert np.isfinite(stage.values).all()
        top, left, bottom, right = field_of(stage, *most_active(stage)[1:], (side, side))
        assert top < min(bottom, side)
        assert left < min(right, side)
    kernels = first_kernels(model, (side, side))
    assert kernels is not None
    assert kernels.values.shape[1] == model.in_chans
    for drawn in (draw_maps(stages), draw_kernels(kernels), draw_fields(pixels, stages)):
        assert np.array_equal(codec.decode(png(drawn)), drawn)


def test_stages_are_what_hooks_on_the_same_modules_record() -> None:
    model, pixels = network("resnet18"), noise(64, 3)
    recorded: dict[str, torch.Tensor] = {}
    for path in ("maxpool", "layer1", "layer2", "layer3", "layer4"):
        module: nn.Module = model.net.get_submodule(path)
        module.register_forward_hook(lambda _, __, result, path=path: recorded.update({path: result.clone()}))
    with torch.inference_mode():
        model(as_batch(model, [pixels]))
    stages = feature_maps(model, pixels)
    assert [stage.module for stage in stages] == list(recorded)
    for stage in stages:
        np.testing.assert_array_equal(stage.values, recorded[stage.module][0].numpy())


def test_a_batch_has_the_activations_of_its_pictures() -> None:
    model = network("lenet5(in_chans=2)")
    pictures = [noise(28, 2), noise(28, 2)[::-1].copy()]
    stages = feature_maps(model, pictures[0])
    batch = activations(model, pictures, stages)
    for number, pixels in enumerate(pictures):
        for stage, values in zip(feature_maps(model, pixels), batch, strict=True):
            np.testing.assert_allclose(values[number], stage.values, atol=1e-6)


def test_a_transformers_tokens_become_the_grid_of_its_patches() -> None:
    model, pixels = network('timm("vit_tiny_patch16_224", img_size=64)'), noise(64, 3)
    stages = feature_maps(model, pixels)
    assert {stage.values.shape for stage in stages} == {(192, 4, 4)}
    with torch.inference_mode():
        tokens = model.net.patch_embed(model._normalised(as_batch(model, [pixels])))[0].numpy()
    np.testing.assert_allclose(stages[0].values, tokens.T.reshape(192, 4, 4), atol=1e-5)
    # A patch sees itself; after attention each token depends on all.
    assert stages[0].view is not None
    assert stages[0].view.field == (16, 16)
    assert stages[-1].view is None
    for stage in stages:
        assert field_of(stage, 1, 2, (64, 64)) == (16, 32, 32, 48)


@pytest.mark.parametrize(("call", "side"), [("lenet5", 28), ("resnet18", 64), ("googlenet", 96), ("xception", 96)])
def test_a_units_gradient_lies_in_its_receptive_field(call: str, side: int) -> None:
    model = network(call)
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.abs_()  # nothing cancels, and no ReLU is closed
    stage = next(stage for stage in feature_maps(model, noise(side, model.in_chans)) if stage.is_map)
    for row, column in ((0, 0), (1, 2), (stage.values.shape[1] - 1, stage.values.shape[2] - 1)):
        pixels = torch.rand(1, model.in_chans, side, side, requires_grad=True)
        found: list[torch.Tensor] = []
        module: nn.Module = model.net.get_submodule(stage.module)
        handle = module.register_forward_hook(lambda _, __, result, found=found: found.append(result))
        model(pixels)
        handle.remove()
        found[0][0, :, row, column].sum().backward()
        assert pixels.grad is not None
        reached = pixels.grad[0].abs().sum(0).numpy() > 0
        top, left, bottom, right = field_of(stage, row, column, (side, side))
        inside = reached[max(top, 0) : bottom, max(left, 0) : right]
        assert inside.sum() == reached.sum() > 0
        if stage.module == "s2":  # a mean of a convolution: every pixel of the field counts
            assert inside.all()


def test_first_kernels_are_the_weights_of_the_first_layer() -> None:
    model = network("lenet5(in_chans=5)")
    kernels = first_kernels(model, (28, 28))
    assert kernels is not None
    assert not kernels.is_dense
    np.testing.assert_array_equal(kernels.values, model.net.c1.weight.detach().numpy())
    dense = first_kernels(network("mlp(in_chans=2)"), (28, 28))
    assert dense is not None
    assert dense.is_dense
    assert dense.values.shape == (300, 2, 28, 28)


def test_an_ensemble_has_the_networks_of_its_members() -> None:
    one, other = bundle_of("lenet5(in_chans=3)", 28), bundle_of("resnet9(width=8)", 32)
    inner = ensemble([one, other], [3, 1])
    both = ensemble([inner, one], [1, 1])
    parts = list(networks(both, blank(both)))
    assert [part.title for part in parts] == [
        "member 1: lenet5(in_chans=3)",
        "member 2: resnet9(width=8)",
        "member 3: lenet5(in_chans=3)",
    ]
    assert [part.weight for part in parts] == pytest.approx([0.375, 0.125, 0.5])
    assert [part.pixels.shape for part in parts] == [(28, 28, 3), (32, 32, 3), (28, 28, 3)]


def test_pictures_of_uint16_have_the_maps_of_their_8_bits() -> None:
    model, pixels = network("lenet5"), noise(28, 1)
    wide = pixels.astype(np.uint16) * 257
    for narrow, broad in zip(feature_maps(model, pixels), feature_maps(model, wide), strict=True):
        np.testing.assert_allclose(broad.values, narrow.values, atol=1e-4)
    assert draw_fields(wide, feature_maps(model, wide)).ndim == 3
