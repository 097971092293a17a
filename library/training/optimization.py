"""Optimizer and learning rate of a recipe, out of timm and torch."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from timm.optim import (
    create_optimizer_v2,  # pyright: ignore[reportPrivateImportUsage] -- its documented name
    get_optimizer_class,  # pyright: ignore[reportPrivateImportUsage] -- likewise
)
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.poly_lr import PolyLRScheduler
from timm.scheduler.step_lr import StepLRScheduler
from torch import nn

from library.recipe import Recipe


def make_optimizer(recipe: Recipe, stages: list[list[nn.Module]]) -> torch.optim.Optimizer:
    """The optimizer; parameters that are learned in the same way share a group, for each group costs time a step.

    Args:
        recipe: `optimizer` and `layer_decay` are read; stage s of n learns at lr x layer_decay^(n - 1 - s).
        stages: modules, the input's side first, as `Classifier.stages`. Biases and norms are not decayed.
    """
    settings = recipe.optimizer
    shared: dict[tuple[float, float], list[nn.Parameter]] = {}
    for number, stage in enumerate(stages):
        scale = 1.0 if recipe.layer_decay is None else recipe.layer_decay ** (len(stages) - 1 - number)
        for parameter in (parameter for module in stage for parameter in module.parameters()):
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            shared.setdefault((scale, decay), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": chosen, "weight_decay": decay, "lr_scale": scale} for (scale, decay), chosen in shared.items()
    ]
    extra: dict[str, Any] = {
        name: value for name, value in (("betas", settings.betas), ("eps", settings.eps)) if value is not None
    }
    if settings.momentum is not None:
        extra["momentum"] = settings.momentum
    if _is_fused(recipe, groups):
        extra["fused"] = True
    return create_optimizer_v2(groups, opt=settings.name, lr=settings.lr, weight_decay=settings.weight_decay, **extra)


def _is_fused(recipe: Recipe, groups: list[dict[str, Any]]) -> bool:
    """Whether one call may move all weights of a group: it saves a small network on a CPU 2 to 10% of a step."""
    if any(parameter.device.type != "cpu" for group in groups for parameter in group["params"]):
        return False  # torch's own choice is the better one there
    # Fused SGD cannot begin with the momentum of weights that are thawed later than others of their group.
    takes_it = "fused" in inspect.signature(get_optimizer_class(recipe.optimizer.name)).parameters
    return takes_it and not recipe.unfreeze


class Schedule:
    """Sets the learning rate for each step; a function of the step's number alone.

    Args:
        recipe: `schedule` and `optimizer.lr` are read.
        optimizer: whose groups are set; each by its own `lr_scale`.
        total_steps: of the whole training.
        steps_per_epoch: what an epoch means in `warmup_epochs` and `step_epochs`.
    """

    def __init__(
        self, recipe: Recipe, optimizer: torch.optim.Optimizer, total_steps: int, steps_per_epoch: int
    ) -> None:
        settings = recipe.schedule
        warmup = min(round(settings.warmup_epochs * steps_per_epoch), total_steps)
        self._total = total_steps
        common: dict[str, Any] = {
            "warmup_t": warmup,
            "warmup_lr_init": recipe.optimizer.lr / max(warmup, 1),
            "t_in_epochs": False,
        }
        rest = max(1, total_steps - warmup)
        if settings.name in ("cosine", "onecycle"):
            # Smith's one cycle is a warm-up and a way down to nearly nothing; `warmup_epochs` is the way up.
            self._timm: Any = CosineLRScheduler(
                optimizer, t_initial=rest, lr_min=settings.min_lr or 0.0, warmup_prefix=True, cycle_limit=1, **common
            )
        elif settings.name == "linear":
            self._timm = PolyLRScheduler(
                optimizer, t_initial=rest, power=1.0, lr_min=settings.min_lr or 0.0, warmup_prefix=True, **common
            )
        else:
            epochs = settings.step_epochs if settings.name == "step" else None
            every = total_steps + 1 if epochs is None else max(1, round(epochs * steps_per_epoch))
            self._timm = StepLRScheduler(optimizer, decay_t=every, decay_rate=settings.gamma or 1.0, **common)

    def set(self, step: int) -> None:
        """Set the rate of step `step`, from 0."""
        self._timm.step_update(min(step, self._total - 1))
