"""A classifier: pixels in, logits out, its parts frozen or not, its auxiliary heads only where they belong."""

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


@pytest.mark.parametrize("model", ["lenet5", "mlp", "resnet9(width=4)", "resnet18(small_input=True)", "googlenet"])
def test_logits_are_the_heads_answer_to_the_features(model: str) -> None:
    made = create(model, num_classes=4, head=[8]).eval()
    side = 28 if made.in_chans == 1 else 32
    pictures = torch.randint(0, 256, (3, made.in_chans, side, side), dtype=torch.uint8)
    with torch.no_grad():
        logits, features = made(pictures), made.features(pictures)
        torch.testing.assert_close(logits, made.head_logits(features))
    assert features.shape == (3, made.num_features)
    assert logits.shape == (3, 4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pixels_mean_the_same_in_every_dtype_and_layout(layout: torch.memory_format) -> None:
    made = create("resnet9(width=4, in_chans=4)", num_classes=3).eval()
    pictures = torch.randint(0, 256, (2, 4, 16, 12), dtype=torch.uint8).contiguous(memory_format=layout)
    wide = (pictures.int() * 257).to(torch.uint16)
    with torch.no_grad():
        expected = made(pictures.double() / 255)
        for given in (
            pictures,
            wide,
            pictures.float() / 255,
            pictures.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        ):
            torch.testing.assert_close(made(given), expected)
    assert expected.std() > 0


def test_each_channel_is_normalised_by_its_own_mean_and_deviation() -> None:
    made = create("resnet9(width=1)", num_classes=2)
    made.net, made.head = nn.Identity(), nn.Sequential(nn.Identity())
    pixel = (made.mean + 2 * made.std).view(1, 3, 1, 1)
    torch.testing.assert_close(made(pixel), torch.full((1, 3, 1, 1), 2.0))


def test_pictures_of_other_channels_or_dtype_are_refused() -> None:
    made = create("lenet5", num_classes=2)
    with pytest.raises(UsageError, match=r"lenet5 takes batches of n x 1 x height x width; got 2 x 3 x 28 x 28"):
        made(torch.zeros(2, 3, 28, 28))
    with pytest.raises(UsageError, match=r"takes uint8, uint16 or floating pixels; got torch.int64"):
        made(torch.zeros(2, 1, 28, 28, dtype=torch.int64))


@pytest.mark.parametrize("model", _EVERY)
def test_every_parameter_is_in_one_stage_and_the_head_is_the_last(model: str) -> None:
    with torch.device("meta"):
        made = create(model, num_classes=5)
    staged = [id(parameter) for stage in made.stages() for module in stage for parameter in module.parameters()]
    assert sorted(staged) == sorted(id(parameter) for parameter in made.parameters())
    assert made.stages()[-1][0] is made.head
    assert len(made.stage_names) == len(made.stages()) > 1
    # The first convolution learns in the first stage.
    assert any(
        next(made.net.parameters()) is parameter for module in made.stages()[0] for parameter in module.parameters()
    )


@pytest.mark.parametrize(
    "model", ["resnet18(small_input=True)", "inception_v3(auxiliary=False)", 'timm("efficientnet_b0")']
)
def test_frozen_batch_norms_keep_their_statistics_in_training(model: str) -> None:
    made = create(model, num_classes=2)
    made.freeze(2)
    made.train()
    frozen = {id(inner) for stage in made.stages()[:2] for module in stage for inner in module.modules()}
    norms = [module for module in made.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [module.running_mean.clone() for module in norms if module.running_mean is not None]
    made(torch.rand(2, 3, 75, 75))
    kept = [torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True)]
    assert kept == [id(norm) in frozen for norm in norms]
    assert 0 < sum(kept) < len(kept)


def test_freezing_says_who_learns_and_can_be_taken_back() -> None:
    made = create("resnet9(width=4)", num_classes=3, head=[5])
    learning = {
        stages: [name for name, parameter in made.named_parameters() if parameter.requires_grad]
        for stages in ("all", 3, "none", 0)
        if made.freeze(stages) is None
    }
    every = [name for name, _ in made.named_parameters()]
    assert learning["all"] == [name for name in every if name.startswith("head.")]
    assert learning[3] == [name for name in every if name.startswith(("net.layer3", "head."))]
    assert learning["none"] == learning[0] == every
    assert made.net.prep[1].training


@pytest.mark.parametrize("stages", [5, -1, "some", True])
def test_no_more_stages_are_frozen_than_there_are(stages: int | str) -> None:
    with pytest.raises(UsageError, match=r"0 to 4 stages here \(prep, layer1, layer2, layer3\)"):
        create("resnet9(width=1)", num_classes=2).freeze(stages)


def test_a_frozen_backbone_computes_in_training_what_it_does_in_evaluation() -> None:
    made = create("googlenet(drop_rate=0.5)", num_classes=2)
    made.freeze("all")
    pictures = torch.rand(2, 3, 32, 32)
    assert len(made.train().forward_train(pictures)) == 1
    torch.testing.assert_close(made.train().features(pictures), made.eval().features(pictures))


def test_frozen_parts_stay_frozen_in_a_copy() -> None:
    made = create("resnet9(width=4)", num_classes=2)
    made.freeze(1)
    copied = copy.deepcopy(made).train()
    assert not copied.net.prep[1].training
    assert {id(p) for p in copied.parameters()}.isdisjoint(id(p) for p in made.parameters())
    copied.freeze("none")
    assert not next(made.net.prep.parameters()).requires_grad


def test_googlenet_learns_with_two_more_heads_and_predicts_with_none() -> None:
    made = create("googlenet", num_classes=3)
    pictures = torch.rand(2, 3, 64, 64)
    heads = made.train().forward_train(pictures)
    assert [(tuple(logits.shape), share) for logits, share in heads] == [((2, 3), 1.0), ((2, 3), 0.3), ((2, 3), 0.3)]
    # The earlier head comes first: only the later one sees inception4b.
    heads[1][0].sum().backward()
    assert made.net.aux1.fc2.weight.grad is not None
    assert made.net.aux2.fc2.weight.grad is None
    assert len(made.eval().forward_train(pictures)) == 1
    _predicts_without_heads(made, pictures, "googlenet")


def test_inception_v3_learns_with_one_more_head() -> None:
    with torch.device("meta"):
        made = create("inception_v3", num_classes=3)
        heads = made.train().forward_train(torch.empty(2, 3, 299, 299))
    assert [(tuple(logits.shape), share) for logits, share in heads] == [((2, 3), 1.0), ((2, 3), 0.4)]
    assert made.eval()(torch.empty(2, 3, 75, 75, device="meta")).shape == (2, 3)
    assert not any("AuxLogits" in name for name in made.without_auxiliary())


def test_a_model_that_ends_in_something_else_is_refused() -> None:
    with pytest.raises(UsageError, match="only networks with one classifier are taken"):
        create('timm("deit_tiny_distilled_patch16_224")', num_classes=2)


def test_what_timm_does_not_take_is_told_with_its_reason() -> None:
    with pytest.raises(UsageError, match=r"timm does not make timm\(name=\"resnet10t\", no_such=1\).*no_such"):
        create('timm("resnet10t", no_such=1)', num_classes=2)


def _predicts_without_heads(made: Classifier, pictures: torch.Tensor, model: str) -> None:
    lean = create(model, num_classes=made.num_classes, auxiliary=False)
    lean.load_state_dict(made.without_auxiliary())
    assert not any("aux" in name for name, _ in lean.named_parameters())
    torch.testing.assert_close(lean.eval()(pictures), made.eval()(pictures))
