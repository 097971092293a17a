"""torch.compile in training: when it is used, that it computes the same, and what happens if it fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from library.errors import StriateError
from library.models.build import create
from library.recipe import Recipe
from library.recipe.schema import COMPILED_STEPS
from library.training.batches import Batch
from library.training.compilation import is_compiled
from library.training.learner import Learner

CPU, GPU = torch.device("cpu"), torch.device("cuda")
RANDOM = np.random.default_rng(0)
BATCH = Batch(RANDOM.integers(0, 256, (10, 28, 28, 1), np.uint8), RANDOM.integers(0, 3, 10), [""] * 10, 10)


def recipe(**fields: Any) -> Recipe:
    values: dict[str, Any] = {
        "data": {"train": "train"},
        "model": "lenet5",
        "optimizer": {"name": "sgd", "lr": 0.05},
        "batch_size": 10,
        "epochs": 4,
        **fields,
    }
    return Recipe.parse(yaml.safe_dump(values))


def learner(lines: list[str] | None = None, **fields: Any) -> Learner:
    torch.manual_seed(0)
    settings = recipe(**fields)
    return Learner(
        settings,
        create(settings.model, num_classes=3),
        class_counts={"a": 1, "b": 1, "c": 1},
        total_steps=20,
        steps_per_epoch=5,
        device=CPU,
        report=[].append if lines is None else lines.append,
    )


@pytest.mark.parametrize(
    ("fields", "device", "steps", "expected"),
    [
        ({}, GPU, COMPILED_STEPS, True),
        ({}, GPU, COMPILED_STEPS - 1, False),
        ({}, CPU, 10**6, False),
        ({"compile": True}, CPU, 1, True),
        ({"compile": True}, GPU, 1, True),
        ({"compile": False}, GPU, 10**6, False),
        ({"freeze": "all", "cache_features": True}, GPU, 10**6, False),
    ],
)
def test_auto_compiles_long_trainings_on_gpus(
    fields: dict[str, Any], device: torch.device, steps: int, expected: bool
) -> None:
    assert is_compiled(recipe(**fields), device, steps) is expected


@pytest.mark.skipif(
    "ATEN_CPU_CAPABILITY" in os.environ,
    reason="the cache of torch.compile on disk holds code for the processor's own kernels, not for those named here",
)
def test_a_compiled_training_learns_what_an_eager_one_learns() -> None:
    lines: list[str] = []
    # Ten pictures in three parts: two shapes.
    fields: dict[str, Any] = {"model": "mlp(hidden=[16])", "accumulate": 3}
    eager, fast = learner(compile=False, **fields), learner(lines, compile=True, **fields)
    eager_losses, losses = ([float(one.step(BATCH, step)) for step in range(4)] for one in (eager, fast))
    assert losses == pytest.approx(eager_losses, rel=1e-4)
    assert losses[-1] < losses[0]
    for name, tensor in eager.model.state_dict().items():
        torch.testing.assert_close(fast.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    assert fast.compile_seconds > 0 == eager.compile_seconds
    assert len(lines) == 1
    assert lines[0].startswith("compiled the training step in ")


@pytest.fixture
def no_compiler() -> Iterator[None]:
    """A machine without a C++ compiler, which torch.compile needs on a CPU."""
    from torch._inductor import config

    torch._dynamo.reset()
    with config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        yield


@pytest.mark.usefixtures("no_compiler")
def test_compile_true_fails_with_the_reason_if_the_compiler_fails() -> None:
    with pytest.raises(StriateError, match=r"compile: true: torch.compile failed: .*; compile: auto trains without it"):
        learner(compile=True).step(BATCH, 0)


@pytest.mark.usefixtures("no_compiler")
def test_auto_says_that_it_trains_without_a_failing_compiler() -> None:
    lines: list[str] = []
    eager, fallen = learner(compile=False, model="resnet9(width=4)"), learner(lines, model="resnet9(width=4)")
    fallen._compiles = True  # as on a GPU
    colours = Batch(np.repeat(BATCH.pictures, 3, axis=3), BATCH.labels, BATCH.keys, BATCH.size)
    for step in range(2):
        assert float(fallen.step(colours, step)) == float(eager.step(colours, step))
    assert [line.split(":")[:2] for line in lines] == [["compile", " auto"]]
    # The failed attempt has left no trace, neither in the weights nor in the statistics of batch norms.
    for name, tensor in eager.model.state_dict().items():
        assert torch.equal(fallen.model.state_dict()[name], tensor), name


def test_a_worker_does_not_compile_if_another_one_cannot() -> None:
    from library.training.compilation import compiled

    module = nn.Linear(2, 2)
    result = compiled(module, lambda _: None, may_fail=True, agree=lambda worked: not worked)
    assert result.module is module
    assert str(result) == "compile: auto: training without torch.compile, which failed: it failed in another worker"
