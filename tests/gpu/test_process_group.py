"""Gradients through a process group: NCCL with one GPU, which runs the code of several (Gloo when tried out)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from jobs.train.loop import all_gather, broadcast, dist_max, dist_sum
from library.recipe import Recipe
from library.training.learner import Learner
from tests.gpu.test_learning import COUNTS, STEPS, batch, learner, losses

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def group(device: torch.device) -> Iterator[None]:
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def distributed_learner(device: torch.device, **fields: Any) -> Learner:
    """Like `learner`, with gradients that go through the process group."""
    one = learner(device, **fields)
    devices = [device] if device.type == "cuda" else None

    def wrap(module: nn.Module) -> nn.Module:
        return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)

    recipe: Recipe = one._recipe
    return Learner(
        recipe,
        one.model,
        class_counts=COUNTS,
        total_steps=STEPS,
        steps_per_epoch=STEPS,
        device=device,
        distribute=wrap,
    )


@pytest.mark.parametrize(
    "fields",
    [{}, {"accumulate": 4, "ema": 0.9}, {"precision": "bf16"}, {"compile": True}],
    ids=["plain", "parts", "bf16", "compiled"],
)
def test_averaged_gradients_of_one_worker_are_its_own(device: torch.device, fields: dict[str, Any]) -> None:
    assert losses(distributed_learner(device, **fields)) == pytest.approx(losses(learner(device, **fields)), rel=0.02)


def test_buffers_can_be_sent_to_other_workers(device: torch.device) -> None:
    one = learner(device)
    one.step(batch(), 0)
    before = [buffer.clone() for buffer in one.model.buffers()]
    for buffer in one.model.buffers():
        distributed.broadcast(buffer, 0)
    broadcast([*one.model.buffers()])
    assert all(torch.equal(was, now) for was, now in zip(before, one.model.buffers(), strict=True))


def test_sums_and_names_of_one_worker_are_its_own(device: torch.device) -> None:
    tensor = torch.tensor([1.5, -2.0], dtype=torch.float64, device=device)
    distributed.all_reduce(tensor)
    assert tensor.tolist() == dist_sum([1.5, -2.0], device) == [1.5, -2.0]
    assert dist_max(0.25, device) == 0.25
    parts: list[Any] = [None]
    distributed.all_gather_object(parts, ["a", "b"])
    assert parts == [all_gather(["a", "b"])]
