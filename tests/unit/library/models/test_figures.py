"""Parameters, depth, FLOPs and receptive fields agree with the published figures."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from jobs.inspection.catalogs import agrees
from library.errors import UsageError
from library.models import info, names
from library.models.analysis import Layer, analyse, check_input
from library.models.build import create
from library.models.catalog import CATALOG

#: Published numbers of parameters: with 1000 classes (LeNet-5: 10), without auxiliary heads.
_PARAMETERS = {
    "lenet5": 61_706,
    "alexnet": 61_100_840,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "googlenet": 6_624_904,
    "inception_v3": 23_834_568,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "xception": 22_855_952,
    "inception_v4": 42_679_816,
    "inception_resnet_v2": 55_843_464,
    "resnet9(width=64)": 6_573_120,
}

_DEPTH = {"lenet5": 5, "alexnet": 8, "vgg16": 16, "vgg19": 19, "googlenet": 22, "inception_v3": 48, "xception": 71}


@pytest.mark.parametrize(("model", "parameters"), _PARAMETERS.items())
def test_parameters_are_those_of_the_published_network(model: str, parameters: int) -> None:
    analysis = analyse(model)
    assert analysis.parameters == parameters
    assert sum(layer.parameters for layer in analysis.layers) == parameters


@pytest.mark.parametrize(("model", "layers"), [*_DEPTH.items(), *((f"resnet{n}", n) for n in (18, 34, 50, 101, 152))])
def test_depth_counts_weighted_layers_on_the_longest_path(model: str, layers: int) -> None:
    assert analyse(model).depth == layers


@pytest.mark.parametrize(
    "model",
    [*names(), 'timm("vit_tiny_patch16_224")', 'timm("swin_tiny_patch4_window7_224")', 'timm("efficientnet_b0")'],
)
def test_flops_are_those_of_torchs_own_counter(model: str) -> None:
    facts = info(model)
    with torch.device("meta"), torch.no_grad():
        network = create(model, num_classes=facts.num_classes, auxiliary=False).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, *facts.input_size))
    analysis = analyse(model)
    assert analysis.flops == counter.get_total_flops() == 2 * analysis.multiply_adds


def test_receptive_fields_are_the_published_ones() -> None:
    """Fields of the last map before the final pooling: Araujo, Norris, Sim 2019, doi 10.23915/distill.00021."""
    known = {"alexnet": 195, "vgg16": 212, "inception_v3": 1311, "inception_v4": 2071, "inception_resnet_v2": 3039}
    for model, side in known.items():
        maps = [layer for layer in analyse(model).layers if len(layer.output) == 3 and min(layer.output[1:]) > 1]
        # A branch may end in a 1x3 convolution and its neighbour in a 3x1.
        assert [max(layer.receptive_field[axis] for layer in maps) for axis in (0, 1)] == [side, side], model


def test_lenets_layers_are_those_of_the_paper() -> None:
    layers = _by_name("lenet5")
    assert layers["net.c1"].connections == 122_304
    assert layers["net.c1"].parameters == 156
    assert layers["net.s2"].receptive_field == (6, 6)
    assert layers["net.c5"].parameters == layers["net.c5"].connections == 48_120
    assert layers["net.c5"].receptive_field == (32, 32)
    assert layers["net.f6"].parameters == 10_164


def test_a_dense_layer_would_need_a_weight_per_input_and_output() -> None:
    first = _by_name("vgg16", (200, 200))["net.features.0"]
    assert first.dense_weights == (200 * 200 * 3) * (200 * 200 * 64)
    assert first.parameters == 3 * 3 * 3 * 64 + 64
    assert first.stage == "conv1"


def test_figures_follow_the_input_and_the_classes() -> None:
    small, large = (
        analyse("resnet18", size=(64, 96), num_classes=7),
        analyse("resnet18", size=(128, 192), num_classes=7),
    )
    assert small.parameters == large.parameters == analyse("resnet18").parameters - 993 * 513
    assert 3.9 < large.flops / small.flops < 4.1
    assert small.layers[-1].output == (7,)


def test_pictures_that_do_not_fit_are_refused_before_training() -> None:
    check_input("vgg16", (32, 32))
    with pytest.raises(UsageError, match="vgg16 cannot take pictures of 16x16"):
        check_input("vgg16", (16, 16))
    with pytest.raises(UsageError, match=r"lenet5 cannot take pictures of 32x32.*its own size is 28x28"):
        check_input("lenet5", (32, 32))
    with pytest.raises(UsageError, match="auxiliary=False leaves them out"):
        check_input("inception_v3", (96, 96))
    check_input("inception_v3(auxiliary=False)", (96, 96))


@pytest.mark.parametrize("name", [name for name, facts in CATALOG.items() if facts.source == "timm"])
def test_facts_agree_with_timm(name: str) -> None:
    facts = info(name)
    config: Any = timm.get_pretrained_cfg(facts.library_name)
    assert (facts.input_size, facts.mean, facts.std) == (config.input_size, config.mean, config.std)
    assert facts.crop_fraction == config.crop_pct
    assert facts.interpolation == {"bilinear": "linear", "bicubic": "cubic"}[config.interpolation]
    assert facts.weights_source.removeprefix("https://huggingface.co/") in (config.hf_hub_id, config.url)


@pytest.mark.parametrize("name", ["alexnet", "googlenet"])
def test_facts_agree_with_torchvision(name: str) -> None:
    facts = info(name)
    model, _, tag = facts.library_name.partition(".")
    weights: Any = torchvision.models.get_model_weights(model)[tag]
    assert weights.url == facts.weights_source
    preset = weights.transforms()
    assert preset.crop_size == [facts.input_size[1]]
    assert facts.crop_fraction == preset.crop_size[0] / preset.resize_size[0]
    assert preset.interpolation.value == {"linear": "bilinear", "cubic": "bicubic"}[facts.interpolation]
    if name == "alexnet":
        assert (facts.mean, facts.std) == (tuple(preset.mean), tuple(preset.std))
        return
    # torchvision normalises as for ImageNet, and its network then converts that to our normalisation.
    pixels = torch.rand(1, 3, 4, 4)
    imagenet = (pixels - torch.tensor(preset.mean).view(3, 1, 1)) / torch.tensor(preset.std).view(3, 1, 1)
    with torch.device("meta"):
        net: Any = torchvision.models.googlenet(transform_input=True, init_weights=False)
    expected = (pixels - torch.tensor(facts.mean).view(3, 1, 1)) / torch.tensor(facts.std).view(3, 1, 1)
    torch.testing.assert_close(net._transform_input(imagenet), expected)


def test_a_published_figure_agrees_to_its_last_digit() -> None:
    assert agrees(138_357_544, Decimal("138E6"))
    assert not agrees(61_100_840, Decimal("60E6"))
    assert agrees(3_640_000, Decimal("3.6E6"))
    assert not agrees(22_855_953, Decimal(22_855_952))


def _by_name(model: str, size: tuple[int, int] | None = None) -> dict[str, Layer]:
    return {layer.name: layer for layer in analyse(model, size=size).layers}
