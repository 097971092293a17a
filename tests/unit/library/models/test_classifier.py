"""Classifiers: from pixels to logits, with frozen stages, and auxiliary heads in training only."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from library.errors import UsageError
from library.models import names
from library.models.build import create
from library.models.classifier import Classifier

_EVERY = [*names(), 'timm("vit_tiny_patch16_224")', 'timm("convnext_atto")', 'timm("efficientnet_b0")']


@pytest.fixture(autouse=True)
def one_seed_and_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("call", ["lenet5", "mlp", "resnet9(width=4)", "resnet18(small_input=True)", "googlenet"])
def test_logits_are_the_heads_output_for_the_features(call: str) -> None:
    model = create(call, num_classes=4, head=[8]).eval()
    side = 28 if model.in_chans == 1 else 32
    pictures = torch.randint(0, 256, (3, model.in_chans, side, side), dtype=torch.uint8)
    with torch.no_grad():
        logits, features = model(pictures), model.features(pictures)
        torch.testing.assert_close(logits, model.head_logits(features))
    assert features.shape == (3, model.num_features)
    assert logits.shape == (3, 4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pixels_give_the_same_logits_in_every_dtype_and_layout(layout: torch.memory_format) -> None:
    model = create("resnet9(width=4, in_chans=4)", num_classes=3).eval()
    pictures = torch.randint(0, 256, (2, 4, 16, 12), dtype=torch.uint8).contiguous(memory_format=layout)
    wide = (pictures.int() * 257).to(torch.uint16)
    with torch.no_grad():
        expected = model(pictures.double() / 255)
        for same in (
            pictures,
            wide,
            pictures.float() / 255,
            pictures.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        ):
            torch.testing.assert_close(model(same), expected)
    assert expected.std() > 0


def test_each_channel_is_normalised_by_its_own_mean_and_deviation() -> None:
    model = create("resnet9(width=1)", num_classes=2)
    model.net, model.head = nn.Identity(), nn.Sequential(nn.Identity())
    pixel = (model.mean + 2 * model.std).view(1, 3, 1, 1)
    torch.testing.assert_close(model(pixel), torch.full((1, 3, 1, 1), 2.0))


def test_pictures_of_other_channels_or_dtype_are_refused() -> None:
    model = create("lenet5", num_classes=2)
    with pytest.raises(UsageError, match=r"lenet5 takes batches of N x 1 x height x width; got 2 x 3 x 28 x 28"):
        model(torch.zeros(2, 3, 28, 28))
    with pytest.raises(UsageError, match=r"takes uint8, uint16 or floating pixels; got torch.int64"):
        model(torch.zeros(2, 1, 28, 28, dtype=torch.int64))


@pytest.mark.parametrize("call", _EVERY)
def test_every_parameter_is_in_one_stage_and_the_head_is_the_last(call: str) -> None:
    with torch.device("meta"):
        model = create(call, num_classes=5)
    staged = [id(parameter) for stage in model.stages() for module in stage for parameter in module.parameters()]
    assert sorted(staged) == sorted(id(parameter) for parameter in model.parameters())
    assert model.stages()[-1][0] is model.head
    assert len(model.stage_names) == len(model.stages()) > 1
    # The first convolution is in the first stage.
    assert any(
        next(model.net.parameters()) is parameter for module in model.stages()[0] for parameter in module.parameters()
    )


@pytest.mark.parametrize(
    "call", ["resnet18(small_input=True)", "inception_v3(auxiliary=False)", 'timm("efficientnet_b0")']
)
def test_frozen_batch_norms_keep_their_statistics_in_training(call: str) -> None:
    model = create(call, num_classes=2)
    model.freeze(2)
    model.train()
    frozen = {id(inner) for stage in model.stages()[:2] for module in stage for inner in module.modules()}
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [module.running_mean.clone() for module in norms if module.running_mean is not None]
    model(torch.rand(2, 3, 75, 75))
    unchanged = [torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True)]
    assert unchanged == [id(norm) in frozen for norm in norms]
    assert 0 < sum(unchanged) < len(unchanged)


def test_freezing_chooses_what_is_trained_and_can_be_undone() -> None:
    model = create("resnet9(width=4)", num_classes=3, head=[5])
    trained = {
        stages: [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        for stages in ("all", 3, "none", 0)
        if model.freeze(stages) is None
    }
    every = [name for name, _ in model.named_parameters()]
    assert trained["all"] == [name for name in every if name.startswith("head.")]
    assert trained[3] == [name for name in every if name.startswith(("net.layer3", "head."))]
    assert trained["none"] == trained[0] == every
    assert model.net.prep[1].training


@pytest.mark.parametrize("stages", [5, -1, "some", True])
def test_a_number_of_stages_that_does_not_exist_is_refused(stages: int | str) -> None:
    with pytest.raises(UsageError, match=r"0 to 4 stages here \(prep, layer1, layer2, layer3\)"):
        create("resnet9(width=1)", num_classes=2).freeze(stages)


def test_a_frozen_backbone_computes_the_same_in_training_and_evaluation() -> None:
    model = create("googlenet(drop_rate=0.5)", num_classes=2)
    model.freeze("all")
    pictures = torch.rand(2, 3, 32, 32)
    assert len(model.train().forward_train(pictures)) == 1
    torch.testing.assert_close(model.train().features(pictures), model.eval().features(pictures))


def test_frozen_stages_stay_frozen_in_a_copy() -> None:
    model = create("resnet9(width=4)", num_classes=2)
    model.freeze(1)
    copied = copy.deepcopy(model).train()
    assert not copied.net.prep[1].training
    assert {id(p) for p in copied.parameters()}.isdisjoint(id(p) for p in model.parameters())
    copied.freeze("none")
    assert not next(model.net.prep.parameters()).requires_grad


def test_googlenet_trains_with_two_auxiliary_heads_and_predicts_without() -> None:
    model = create("googlenet", num_classes=3)
    pictures = torch.rand(2, 3, 64, 64)
    heads = model.train().forward_train(pictures)
    assert [(tuple(logits.shape), share) for logits, share in heads] == [((2, 3), 1.0), ((2, 3), 0.3), ((2, 3), 0.3)]
    # The earlier head comes first: only the later one sees inception4b.
    heads[1][0].sum().backward()
    assert model.net.aux1.fc2.weight.grad is not None
    assert model.net.aux2.fc2.weight.grad is None
    assert len(model.eval().forward_train(pictures)) == 1
    _predicts_without_heads(model, pictures, "googlenet")


def test_inception_v3_trains_with_one_auxiliary_head() -> None:
    with torch.device("meta"):
        model = create("inception_v3", num_classes=3)
        heads = model.train().forward_train(torch.empty(2, 3, 299, 299))
    assert [(tuple(logits.shape), share) for logits, share in heads] == [((2, 3), 1.0), ((2, 3), 0.4)]
    assert model.eval()(torch.empty(2, 3, 75, 75, device="meta")).shape == (2, 3)
    assert not any("AuxLogits" in name for name in model.without_auxiliary())


def test_a_model_with_two_classifiers_is_refused() -> None:
    with pytest.raises(UsageError, match="only networks with one classifier are supported"):
        create('timm("deit_tiny_distilled_patch16_224")', num_classes=2)


def test_parameters_that_timm_refuses_are_an_error_with_its_reason() -> None:
    with pytest.raises(UsageError, match=r"timm cannot build timm\(name=\"resnet10t\", no_such=1\).*no_such"):
        create('timm("resnet10t", no_such=1)', num_classes=2)


def _predicts_without_heads(model: Classifier, pictures: torch.Tensor, call: str) -> None:
    without_heads = create(call, num_classes=model.num_classes, auxiliary=False)
    without_heads.load_state_dict(model.without_auxiliary())
    assert not any("aux" in name for name, _ in without_heads.named_parameters())
    torch.testing.assert_close(without_heads.eval()(pictures), model.eval()(pictures))
