"""The filters behind gates are the steps of the same texts, written in torch."""

import numpy as np
import pytest
import torch

from library.models.build import create
from library.models.filter_gates import GATED, FilterGates
from library.pipeline import Pipeline
from tests.step_examples import picture


@pytest.mark.parametrize("text", [text for text in GATED if text])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_gated_filter_is_the_step_of_its_text(text: str, channels: int) -> None:
    pixels = picture(channels=channels)
    expected = Pipeline.parse(text).apply(pixels).astype(np.float64) / 255
    batch = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]
    result = GATED[text](batch)[0].permute(1, 2, 0).numpy()
    assert np.abs(result - expected).max() < 2 / 255  # the step rounds to 8 bits, the Gaussian's weights too


def test_gates_weigh_all_filters_equally_before_training() -> None:
    pixels = torch.rand(2, 3, 9, 9)
    gates = FilterGates()
    torch.testing.assert_close(gates.gates, torch.full((len(GATED),), 1 / len(GATED)))
    expected = torch.stack([filtered(pixels) for filtered in GATED.values()]).mean(0)
    torch.testing.assert_close(gates(pixels), expected)


def test_every_gate_gets_a_gradient_and_the_empty_text_changes_nothing() -> None:
    pixels = torch.rand(2, 1, 9, 9)
    torch.testing.assert_close(GATED[""](pixels), pixels)
    gates = FilterGates()
    (gates(pixels) * torch.rand_like(pixels)).sum().backward()
    assert gates.logits.grad is not None
    assert (gates.logits.grad != 0).all()


@pytest.mark.parametrize("gates", [False, True])
def test_filter_net_has_the_kernels_that_its_call_asks_for(gates: bool) -> None:
    model = create(f"filter_net(count=4, kernel_size=7, gates={gates}, in_chans=1)", num_classes=3).eval()
    assert model.net.kernels.weight.shape == (4, 1, 7, 7)
    assert (model.net.gates is not None) == gates
    assert model(torch.zeros(2, 1, 16, 20, dtype=torch.uint8)).shape == (2, 3)


def test_a_kernel_of_opposite_sign_computes_the_same_up_to_a_swap() -> None:
    model = create("filter_net(count=1, kernel_size=3)", num_classes=2).eval()
    pixels = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8)
    with torch.no_grad():
        before = model(pixels)
        model.net.kernels.weight.neg_()
        first = model.net.layers[0][0].weight
        first.copy_(first[:, [1, 0]])
        torch.testing.assert_close(model(pixels), before)
