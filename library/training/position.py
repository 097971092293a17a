"""How far a training is, and what has been seen on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from library.recipe.schema import EarlyStopping


@dataclass
class Position:
    """Kept in each checkpoint, so that a training which goes on is the one that was begun.

    Attributes:
        epoch: the one under way, from 0.
        step_in_epoch: steps of it that are done.
        step: steps done in all.
        batch_size: over all workers; 0 where it is not chosen yet.
        losses: sum over the steps of the epoch under way.
        stopping_best: best value by now of what early stopping watches; larger is better.
        stale_epochs: epochs since.
        metrics: of the last epoch.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    batch_size: int = 0
    losses: float = 0.0
    stopping_best: float = -math.inf
    stale_epochs: int = 0
    metrics: dict[str, float] = field(default_factory=dict[str, float])

    def end_epoch(self, steps_per_epoch: int) -> float:
        """Go on to the next epoch, unless this one is broken off by the last step; returns its mean loss."""
        mean = self.losses / max(self.step_in_epoch, 1)
        if self.step_in_epoch == steps_per_epoch:
            self.epoch, self.step_in_epoch, self.losses = self.epoch + 1, 0, 0.0
        return mean

    def judge(self, rule: EarlyStopping | None, metrics: Mapping[str, float]) -> None:
        """Note whether an epoch was better than all before; only what is better by `min_delta` counts."""
        if rule is None:
            return
        value = -metrics[rule.metric] if rule.metric.endswith("loss") else metrics[rule.metric]
        if value > self.stopping_best + rule.min_delta:
            self.stopping_best, self.stale_epochs = value, 0
        else:
            self.stale_epochs += 1

    def is_stale(self, rule: EarlyStopping | None) -> bool:
        """Whether training stops here."""
        return rule is not None and self.stale_epochs >= rule.patience
