"""Every model of the catalog at full size: it learns, and a bundle of it predicts the same."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch.nn import functional

from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord
from library.evaluation.inside.grad_cam import explain
from library.evaluation.inside.occlusion import occlusion
from library.evaluation.inside.trust import deletion_insertion
from library.models import info, names
from library.models.build import create

#: Sides in pixels of small pictures that still leave batch norm several positions in the last maps; other models take
#: their own size.
_SIDES = {"alexnet": 63, "resnet9": 8, "xception": 64, "inception_v3": 139, "inception_v4": 139}
_SIDES |= {"inception_resnet_v2": 139, "vgg16": 32, "vgg19": 32, "googlenet": 32}
_SIDES |= {f"resnet{layers}": 32 for layers in (18, 34, 50, 101, 152)}
_CLASSES = ("a", "b", "c")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that is removed after the test: pytest would keep gigabytes of weights."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.mark.parametrize("name", names())
def test_a_step_lowers_the_loss_and_a_bundle_predicts_the_same(name: str, folder: Path) -> None:
    torch.manual_seed(0)
    # The auxiliary head of Inception v3 needs pictures of its full size.
    call = "inception_v3(auxiliary=False)" if name == "inception_v3" else name
    channels, side = info(call).input_size[0], _SIDES.get(name, info(call).input_size[1])
    model = create(call, num_classes=3).train()
    pictures = torch.randint(0, 256, (4, channels, side, side), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0])
    weights = next(model.net.parameters()).detach().clone()

    def loss() -> torch.Tensor:
        torch.manual_seed(1)  # the same dropout both times
        heads = model.forward_train(pictures)
        return torch.stack([share * functional.cross_entropy(logits, labels) for logits, share in heads]).sum()

    before = loss()
    before.backward()
    # Gradients of untrained networks differ by a factor of 10,000 among these models. With this rate the loss falls by
    # a tenth if it is linear.
    slope = sum(float(parameter.grad.square().sum()) for parameter in model.parameters() if parameter.grad is not None)
    torch.optim.SGD(model.parameters(), lr=0.1 * before.item() / slope).step()
    with torch.no_grad():
        assert loss() < 0.99 * before
    assert not torch.equal(next(model.net.parameters()), weights)

    record = BundleRecord(model=call, classes=_CLASSES, input_size=(side, side), channels=channels)
    bundle = Bundle.of_model(record, model, device="cpu")
    bundle.save(str(folder))
    again = Bundle.load(str(folder), device="cpu")
    batch = np.ascontiguousarray(pictures.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(again.log_probabilities(batch), bundle.log_probabilities(batch), rtol=1e-4, atol=1e-4)
    assert again.id == bundle.id
    # Its inside can be seen, too. An mlp has no maps over the picture.
    hidden = occlusion(again, batch[0], "b", window=(side, side))
    assert hidden.drop.shape == (side, side)
    if name != "mlp":
        trust = deletion_insertion(again, batch[0], {"map": explain(again, batch[0], "b").heat}, "b", steps=1)["map"]
        assert trust.deletion[0] == pytest.approx(hidden.probability, abs=1e-4)
        assert trust.deletion[1] == pytest.approx(hidden.probability - float(hidden.drop[0, 0]), abs=1e-4)
    with torch.inference_mode():
        expected = torch.log_softmax(model.eval()(pictures.contiguous(memory_format=torch.channels_last)), 1)
    np.testing.assert_allclose(again.log_probabilities(batch), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_inception_v3_learns_through_its_auxiliary_head() -> None:
    torch.manual_seed(0)
    model = create("inception_v3", num_classes=3).train()
    heads = model.forward_train(torch.rand(1, 3, 299, 299).expand(2, -1, -1, -1))
    heads[1][0].square().sum().backward()
    assert model.net.Mixed_6e.branch1x1.conv.weight.grad is not None
    assert model.net.Mixed_7a.branch3x3_1.conv.weight.grad is None


def test_weights_of_torchvisions_vgg_fit_that_of_timm(folder: Path) -> None:
    torch.manual_seed(0)
    reference: Any = torchvision.models.vgg16(init_weights=False).eval()
    save_file(reference.state_dict(), folder / "vgg.safetensors")
    model = create("vgg16", num_classes=1000, weights=str(folder / "vgg.safetensors")).eval()
    pixels = torch.rand(1, 3, 224, 224)
    normalised = (pixels - model.mean.view(3, 1, 1)) / model.std.view(3, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels), reference(normalised), rtol=1e-4, atol=1e-5)
