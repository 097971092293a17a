"""How far a training is, and what was measured by then."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from library.recipe.schema import EarlyStopping


@dataclass
class Position:
    """How far a training is; kept in each checkpoint, so that a resumed training is the one that was started.

    Attributes:
        epoch: the current one, from 0.
        step_in_epoch: steps of it that are done.
        step: steps done in all.
        batch_size: over all workers; 0 until it is chosen.
        losses: sum over the steps of the current epoch.
        stopping_best: best value by now of the metric of early stopping; larger is better.
        stale_epochs: epochs since then.
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
        """Advances to the next epoch, unless the last step ended this one early; returns its mean loss."""
        mean = self.losses / max(self.step_in_epoch, 1)
        if self.step_in_epoch == steps_per_epoch:
            self.epoch, self.step_in_epoch, self.losses = self.epoch + 1, 0, 0.0
        return mean

    def judge(self, rule: EarlyStopping | None, metrics: Mapping[str, float]) -> None:
        """Notes whether an epoch was better than all before, by at least `min_delta`."""
        if rule is None:
            return
        value = -metrics[rule.metric] if rule.metric.endswith("loss") else metrics[rule.metric]
        if value > self.stopping_best + rule.min_delta:
            self.stopping_best, self.stale_epochs = value, 0
        else:
            self.stale_epochs += 1

    def is_stale(self, rule: EarlyStopping | None) -> bool:
        """Whether early stopping ends the training here."""
        return rule is not None and self.stale_epochs >= rule.patience
