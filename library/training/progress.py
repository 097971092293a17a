"""How far a training is and what it has measured: its progress, metrics.jsonl and TensorBoard files."""

from __future__ import annotations

import functools
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library import storage
from library.recipe.schema import EarlyStopping

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

METRICS = "metrics.jsonl"


@dataclass
class TrainingProgress:
    """How far a training is; part of each checkpoint, so that a resumed training repeats the uninterrupted one.

    Attributes:
        epoch: the current epoch, from 0.
        step_in_epoch: completed steps of the current epoch.
        step: completed steps in all.
        batch_size: pictures of a batch over all workers; 0 until it is chosen.
        losses: sum of the losses of the current epoch's steps.
        rejected: pictures of the current epoch that could not be used, over all workers.
        pictures: pictures learned from in all.
        on_cpu: of these, pictures that were augmented on the CPU, although the device augments others.
        stopping_best: best value so far of the metric of early stopping; larger is better.
        stale_epochs: epochs since that best value.
        metrics: metrics of the last epoch.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    batch_size: int = 0
    losses: float = 0.0
    rejected: int = 0
    pictures: int = 0
    on_cpu: int = 0
    stopping_best: float = -math.inf
    stale_epochs: int = 0
    metrics: dict[str, float] = field(default_factory=dict[str, float])

    def end_epoch(self, steps_per_epoch: int) -> float:
        """Returns the epoch's mean loss; advances to the next epoch unless the last step ended this one early."""
        mean = self.losses / max(self.step_in_epoch, 1)
        if self.step_in_epoch == steps_per_epoch:
            self.epoch, self.step_in_epoch, self.losses, self.rejected = self.epoch + 1, 0, 0.0, 0
        return mean

    def update_stopping(self, rule: EarlyStopping | None, metrics: Mapping[str, float]) -> None:
        """Records whether an epoch was better than all earlier ones by at least `min_delta`."""
        if rule is None:
            return
        value = -metrics[rule.metric] if rule.metric.endswith("loss") else metrics[rule.metric]
        if value > self.stopping_best + rule.min_delta:
            self.stopping_best, self.stale_epochs = value, 0
        else:
            self.stale_epochs += 1

    def should_stop(self, rule: EarlyStopping | None) -> bool:
        """Whether early stopping ends the training here."""
        return rule is not None and self.stale_epochs >= rule.patience


@dataclass(frozen=True)
class StepReport:
    """The state of a training after some steps, for the terminal.

    Attributes:
        epoch: the current epoch, from 0.
        step: completed steps in all.
        total_steps: steps of the whole training.
        first_step: completed steps when this run started or resumed.
        seconds: time since then.
        loss: mean loss of the last steps.
        pictures_per_s: rate over all workers.
        lr: learning rate.
        data_wait: fraction of the time that was spent waiting for batches.
    """

    epoch: int
    step: int
    total_steps: int
    first_step: int
    seconds: float
    loss: float
    pictures_per_s: float
    lr: float
    data_wait: float


@dataclass(frozen=True)
class EpochReport:
    """A completed epoch; one line of metrics.jsonl.

    Attributes:
        epoch: epochs completed.
        step: steps completed in all.
        metrics: `train_loss`, `pictures_per_s`, `seconds`, `data_wait` (fraction), `lr`, `rejected` (pictures of this
            epoch that could not be used) and `steps` (of this epoch); with validation pictures also `val_loss`,
            `val_top1` and `val_top5` (fractions).
    """

    epoch: int
    step: int
    metrics: Mapping[str, float]

    def to_dict(self) -> dict[str, float]:
        """All values in one flat mapping, as in metrics.jsonl."""
        return {"epoch": self.epoch, "step": self.step, **self.metrics}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EpochReport:
        """The inverse of `to_dict`."""
        metrics = {name: float(value) for name, value in values.items() if name not in ("epoch", "step")}
        return cls(int(values["epoch"]), int(values["step"]), metrics)


class MetricsWriter:
    """Writes metrics.jsonl, one line for each epoch, and scalars for TensorBoard.

    Args:
        uri: folder to write to; files for an object store are uploaded after each epoch.
        step: completed steps of the run that is resumed; lines of later steps, which a killed run wrote, are removed.
    """

    def __init__(self, uri: str, step: int) -> None:
        self._uri = uri
        self._folder = Path(tempfile.mkdtemp(prefix="striate-logs-")) if storage.is_remote(uri) else Path(uri)
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = [line for line in read_metrics(uri) if line["step"] <= step]
        self._text = "".join(json.dumps(line) + "\n" for line in lines)
        storage.write_bytes(storage.join(uri, METRICS), self._text.encode())
        self._step = step

    @functools.cached_property
    def _tensorboard(self) -> SummaryWriter:
        from tensorboardX import SummaryWriter  # takes a part of a second, which the first step does not wait for

        return SummaryWriter(str(self._folder), purge_step=self._step, flush_secs=30)

    def write_steps(self, report: StepReport) -> None:
        """Writes scalars of a few steps, for TensorBoard only."""
        for name in ("loss", "pictures_per_s", "lr", "data_wait"):
            self._tensorboard.add_scalar(f"steps/{name}", getattr(report, name), report.step)

    def write_epoch(self, report: EpochReport) -> None:
        """Appends one line to metrics.jsonl and writes the same values for TensorBoard."""
        self._text += json.dumps(report.to_dict()) + "\n"
        storage.write_bytes(storage.join(self._uri, METRICS), self._text.encode())  # replaces the file atomically
        for name, value in report.metrics.items():
            self._tensorboard.add_scalar(f"epochs/{name}", value, report.step)
        self._tensorboard.flush()
        if storage.is_remote(self._uri):
            for path in self._folder.iterdir():
                storage.write_bytes(storage.join(self._uri, path.name), path.read_bytes())

    def close(self) -> None:
        """Closes the TensorBoard file."""
        self._tensorboard.close()


def read_metrics(uri: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in a folder, as in `EpochReport.to_dict`; empty where there is no such file."""
    path = storage.join(uri, METRICS)
    if not storage.exists(path):
        return []
    return [json.loads(line) for line in storage.read_bytes(path).decode().splitlines()]
