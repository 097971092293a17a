"""The optimizer and the learning-rate schedule of a recipe, from timm and torch."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from timm.optim import (
    create_optimizer_v2,  # pyright: ignore[reportPrivateImportUsage] -- its documented name
    get_optimizer_class,  # pyright: ignore[reportPrivateImportUsage] -- a public function of timm, too
)
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.poly_lr import PolyLRScheduler
from timm.scheduler.step_lr import StepLRScheduler
from torch import nn

from library.recipe import Recipe


def make_optimizer(recipe: Recipe, stages: list[list[nn.Module]]) -> torch.optim.Optimizer:
    """The recipe's optimizer. Parameters with the same settings share a group, because each group costs time per step.

    Args:
        recipe: `optimizer` and `layer_decay` are used; stage s of n has the learning rate lr x layer_decay^(n - 1 - s).
        stages: modules from input to output, as `Classifier.stages`. Biases and norms have no weight decay.
    """
    settings = recipe.optimizer
    shared: dict[tuple[float, float], list[nn.Parameter]] = {}
    for number, stage in enumerate(stages):
        scale = 1.0 if recipe.layer_decay is None else recipe.layer_decay ** (len(stages) - 1 - number)
        for parameter in (parameter for module in stage for parameter in module.parameters()):
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            shared.setdefault((scale, decay), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (scale, decay), parameters in shared.items()
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
    """Whether one kernel updates all weights of a group, which saves a small network on a CPU 2 to 10% of a step."""
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    if not devices <= {"cpu", "cuda"}:
        return False
    # Fused SGD fails where some weights of a group are unfrozen later than others and have no momentum yet.
    has_fused = "fused" in inspect.signature(get_optimizer_class(recipe.optimizer.name)).parameters
    return has_fused and not recipe.unfreeze


class Schedule:
    """Sets the learning rate of each step, which depends on the step's number alone.

    Args:
        recipe: `schedule` and `optimizer.lr` are used.
        optimizer: the optimizer, whose groups have an `lr_scale` each.
        total_steps: steps of the whole training.
        steps_per_epoch: steps of an epoch, the unit of `warmup_epochs` and `step_epochs`.
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
            # Smith's one-cycle policy is a warm-up (`warmup_epochs`) and a decay to nearly zero.
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
        """Sets the learning rate of step `step`, from 0."""
        self._timm.step_update(min(step, self._total - 1))
