"""What training workers say to each other. All of them must call each of these, equally often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed


def _alone() -> bool:
    return not distributed.is_initialized() or distributed.get_world_size() == 1


def largest(value: float, device: torch.device) -> float:
    """Over all workers."""
    return _reduced([value], device, distributed.ReduceOp.MAX)[0]


def summed(values: Sequence[float], device: torch.device) -> list[float]:
    """Over all workers, element by element."""
    return _reduced(values, device, distributed.ReduceOp.SUM)


def _reduced(values: Sequence[float], device: torch.device, how: Any) -> list[float]:
    if _alone():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(tensor, op=how)
    return tensor.tolist()


def gathered(names: list[str]) -> list[str]:
    """Of all workers, by rank."""
    if _alone():
        return names
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, names)
    return [name for part in parts for name in part]


def take_from_first(buffers: list[torch.Tensor]) -> None:
    """Everybody's buffers become those of rank 0."""
    if _alone():
        return
    for buffer in buffers:
        distributed.broadcast(buffer, 0)
