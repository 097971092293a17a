"""Training steps on a GPU: the CPU's losses, mixed precision, compiled steps, pinned copies, and saved states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import yaml

from library.models.build import create
from library.recipe import Recipe
from library.training.batches import Batch
from library.training.learner import Learner

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
COUNTS = {"even": 24, "odd": 8}
RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.integers(0, 256, (32, 32, 32, 3), np.uint8)
LABELS = np.array([0] * 24 + [1] * 8)
STEPS = 6


def learner(device: torch.device, **fields: Any) -> Learner:
    """A learner of a small ResNet with these fields in its recipe; its weights are the same on every device."""
    values = {
        "data": {"train": "train", "val": "val"},
        "model": "resnet9(width=8)",
        "optimizer": {"name": "sgd", "lr": 0.02},
        "schedule": {"name": "constant"},
        "batch_size": 32,
        "epochs": 1,
        "precision": "fp32",
        **fields,
    }
    torch.manual_seed(0)
    model = create(values["model"], num_classes=len(COUNTS))
    return Learner(
        Recipe.parse(yaml.safe_dump(values)),
        model,
        class_counts=COUNTS,
        total_steps=STEPS,
        steps_per_epoch=STEPS,
        device=device,
    )


def batch(pictures: Any = PICTURES) -> Batch:
    return Batch(pictures, LABELS, [""] * len(LABELS), len(LABELS))


def losses(one: Learner) -> list[float]:
    return [float(one.step(batch(), step)) for step in range(STEPS)]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"ema": 0.9, "clip_grad": 1.0, "accumulate": 4},
        {"optimizer": {"name": "adamw", "lr": 0.002}, "loss": {"class_weights": "balanced", "label_smoothing": 0.1}},
        {"freeze": 1, "layer_decay": 0.7},
    ],
    ids=["sgd", "ema_and_parts", "adamw_and_weights", "frozen"],
)
def test_a_gpu_learns_what_a_cpu_learns(device: torch.device, fields: dict[str, Any]) -> None:
    here, there = learner(CPU, **fields), learner(device, **fields)
    expected, got = losses(here), losses(there)
    # cuDNN convolves in TF32, and each step magnifies the differences of the one before.
    assert got[0] == pytest.approx(expected[0], rel=2e-3)
    assert got == pytest.approx(expected, rel=0.05)
    ours, theirs = there.score(batch()), here.score(batch())
    assert ours.pictures == theirs.pictures
    assert ours.loss == pytest.approx(theirs.loss, rel=0.1)


@pytest.mark.parametrize("mix", [{"mixup": 0.5}, {"cutmix": 1.0}])
def test_mixed_pictures_stay_on_the_device(device: torch.device, mix: dict[str, float]) -> None:
    one = learner(device, **mix)
    loss = one.step(batch(), 0)
    assert loss.device.type == device.type
    assert loss.isfinite()


def test_bf16_learns_what_float32_learns(device: torch.device) -> None:
    exact, mixed = losses(learner(device)), losses(learner(device, precision="bf16"))
    assert mixed[0] == pytest.approx(exact[0], rel=0.02)
    assert mixed == pytest.approx(exact, rel=0.15)
    assert mixed[-1] < mixed[0]


def test_auto_is_bf16_and_channels_last_on_a_gpu_only(device: torch.device) -> None:
    on_gpu = device.type == "cuda"
    auto, mixed = learner(device, precision="auto"), learner(device, precision="bf16" if on_gpu else "fp32")
    assert losses(auto) == pytest.approx(losses(mixed), rel=1e-3)
    weight = next(parameter for parameter in auto.model.parameters() if parameter.ndim == 4 and parameter.shape[1] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last) == on_gpu


def test_the_memory_format_changes_no_result(device: torch.device) -> None:
    last, first = learner(device, channels_last=True), learner(device, channels_last=False)
    assert losses(last) == pytest.approx(losses(first), rel=0.02)


def test_a_compiled_step_learns_what_an_eager_one_learns(device: torch.device) -> None:
    eager, compiled = learner(device), learner(device, compile=True)
    assert losses(compiled) == pytest.approx(losses(eager), rel=0.02)


def test_a_batchs_memory_may_be_reused_as_soon_as_its_step_returns(device: torch.device) -> None:
    kept, reused = learner(device), learner(device)
    memory = np.empty_like(PICTURES)
    batches = [np.roll(PICTURES, step, axis=0) for step in range(STEPS)]
    expected, got = [], []
    for step, pictures in enumerate(batches):
        expected.append(kept.step(batch(pictures), step))
        memory[:] = pictures
        got.append(reused.step(batch(memory), step))
        memory[:] = 255  # the copy to the GPU may still be in progress
    assert torch.stack(got).tolist() == pytest.approx(torch.stack(expected).tolist(), rel=1e-2)
    # Nothing was read between the steps: no step waited for the GPU to end the one before.
    assert not np.isnan(torch.stack(got).cpu().numpy()).any()


def test_random_numbers_on_the_gpu_depend_on_the_step_alone(device: torch.device) -> None:
    fields: dict[str, Any] = {"model": "resnet18(drop_rate=0.5)"}
    one, other = learner(device, **fields), learner(device, **fields)
    torch.rand(7, device=device)
    first = float(one.step(batch(), 3))
    torch.rand(11, device=device)
    assert float(other.step(batch(), 3)) == pytest.approx(first, rel=1e-4)
    assert float(learner(device, **fields).step(batch(), 4)) != pytest.approx(first, rel=1e-4)


def test_a_state_from_a_gpu_resumes_there_and_loads_on_a_cpu(device: torch.device) -> None:
    fields: dict[str, Any] = {"ema": 0.9, "optimizer": {"name": "adamw", "lr": 0.002}}
    undisturbed, first = learner(device, **fields), learner(device, **fields)
    expected = losses(undisturbed)
    for step in range(3):
        first.step(batch(), step)
    second, on_cpu = learner(device, **fields), learner(CPU, **fields)
    second.restore(first.state())
    on_cpu.restore(first.state())
    assert float(second.step(batch(), 3)) == pytest.approx(expected[3], rel=0.02)
    assert float(on_cpu.step(batch(), 3)) == pytest.approx(expected[3], rel=0.05)


def test_weights_that_are_not_finite_are_detected_on_the_device(device: torch.device) -> None:
    one = learner(device)
    assert one.is_finite
    next(one.model.parameters()).data[0] = torch.nan
    assert not one.is_finite
