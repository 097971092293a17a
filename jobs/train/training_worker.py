"""What each training worker does: Ray Train calls `train_worker` on all of them at once."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cluster.logging_setup import WorkLog
from jobs.feed.feeds import feed_of
from jobs.progress import status
from jobs.progress.job_metrics import TrainMetrics
from jobs.train.checkpoint import keep, last_state
from jobs.train.claim import remove_local_checkpoints
from jobs.train.collectives import gathered, largest, summed, take_from_first
from jobs.train.loop import TrainTask
from library import storage
from library.bundle.description import weights_file
from library.errors import StriateError
from library.models.build import create
from library.recipe import Recipe
from library.steps import plugins
from library.training.batch_size import CPU_BATCH_SIZE, check_batch_norms, fitting_batch_size, trial
from library.training.batches import Batch
from library.training.learner import Learner, Score
from library.training.progress import EpochReport, MetricsWriter, StepReport, TrainingProgress
from library.training.rows import missing_classes_error

_WINDOW_STEPS = 20
# The driver looks twice a second; what is told more often only takes time from the step.
_TELL_EVERY_S = 0.5
_EXPLODED = 1e4
_SCORING_BATCH = 256


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """The loop of one worker; its return value on rank 0 says how it ended."""
    task = TrainTask(**config["task"])
    plugins.install(config["plugins"])
    refused = status.published(task.run).get("refused")
    if refused is not None:  # Ray starts the workers again after any error, and this one would come again
        return {"refused": refused["why"]}
    torch.set_num_threads(task.threads)
    if ray.train.get_context().get_local_rank() == 0:
        remove_local_checkpoints(task.out)  # of a worker that was killed
    try:
        return _Training(task, config["refs"]).run()
    except StriateError as error:
        status.publish(task.run, {"why": str(error)}, name="refused")
        raise


class _Training:
    def __init__(self, task: TrainTask, refs: dict[str, Any]) -> None:
        self._task = task
        self._recipe = Recipe.model_validate_json(task.recipe)
        context = ray.train.get_context()
        names = {"command": "train", "run": task.run, "out": task.out, "run_id": storage.uri_id(task.out)}
        self._work_log = WorkLog(**names, recipe_digest=task.recipe_digest)
        self._rank, self._world_size = context.get_world_rank(), context.get_world_size()
        self._device: torch.device = ray.train.torch.get_device()
        recipe = self._recipe
        torch.manual_seed(recipe.seed)
        model = create(
            recipe.model, num_classes=len(task.class_counts), head=recipe.head, weights=weights_file(recipe.weights)
        )
        self._checkpoint = last_state(self._device)
        self._at = TrainingProgress(**self._checkpoint["position"]) if self._checkpoint else TrainingProgress()
        self._at.batch_size = self._at.batch_size or self._fitting(model)
        if recipe.batch_size == "auto":  # else the driver has looked
            check_batch_norms(recipe, model, self._at.batch_size, self._world_size)
        self._feed = feed_of(refs, task, recipe, self._at.batch_size, self._rank, self._world_size)
        steps = self._feed.steps_per_epoch
        self._total = recipe.steps if recipe.steps is not None else max(1, round((recipe.epochs or 0) * steps))
        self._learner = Learner(
            recipe,
            model,
            class_counts=task.class_counts,
            total_steps=self._total,
            steps_per_epoch=steps,
            device=self._device,
            world_size=self._world_size,
            distribute=self._distributed,
        )
        if self._checkpoint:
            self._learner.start_epoch(self._at.epoch)
            self._learner.restore(self._checkpoint["state"])
        self._metrics = TrainMetrics(task.out, self._rank)
        self._logs = MetricsWriter(task.logs, self._at.step) if self._rank == 0 else None
        self._saved_at = self._began = time.monotonic()
        self._told_at = -math.inf
        self._from_step = self._at.step
        # Step, loss, learning rate, keys and size of each batch that was not looked at yet.
        self._window: list[tuple[int, torch.Tensor, float, list[str], int]] = []
        self._waited = 0.0
        self._first_step_at: float | None = None

    def _distributed(self, module: nn.Module) -> nn.Module:
        if self._world_size == 1 or not any(p.requires_grad for p in module.parameters()):
            return module
        devices = [self._device] if self._device.type == "cuda" else None
        # Gradients then lie where they are exchanged from, and not there and once more beside it.
        return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)

    def _fitting(self, model: Any) -> int:
        """The recipe's batch size, or the largest that all workers' memory takes."""
        shape = (*self._task.input_size, self._task.channels)
        fits = trial(self._recipe, model, shape, self._device)
        local = fitting_batch_size(self._recipe, self._device, self._world_size, fits)
        smallest = int(-largest(-local, self._device))
        if self._recipe.batch_size != "auto":
            return int(self._recipe.batch_size)
        return smallest * self._world_size if self._device.type == "cuda" else CPU_BATCH_SIZE

    def run(self) -> dict[str, Any]:
        problem: dict[str, Any] | None = None
        nodes = gathered([ray.get_runtime_context().get_node_id()])
        rule = self._recipe.early_stopping
        self._feed.start(self._at.epoch, self._at.step_in_epoch, self._total - self._at.step)
        while self._at.step < self._total and problem is None and not self._at.should_stop(rule):
            problem = self._epoch()
        if self._logs is not None:
            self._logs.close()
        return {
            "problem": problem,
            "position": asdict(self._at),
            "seconds": time.monotonic() - self._began,
            "first_step_at": self._first_step_at,
            "nodes": nodes,
        }

    def _epoch(self) -> dict[str, Any] | None:
        self._learner.start_epoch(self._at.epoch)
        start = window_start = time.monotonic()
        pictures, waited = 0, 0.0
        for batch in self._timed(self._feed.training()):
            loss = self._learner.step(batch, self._at.step)
            self._window.append((self._at.step, loss, self._learner.learning_rate, list(batch.keys), batch.size))
            self._first_step_at = self._first_step_at or time.time()
            self._at.step += 1
            self._at.step_in_epoch += 1
            pictures += batch.size
            ended = self._at.step_in_epoch == self._feed.steps_per_epoch or self._at.step == self._total
            if ended or len(self._window) == _WINDOW_STEPS:
                seen = sum(size for *_, size in self._window)
                steps = len(self._window)
                due = not ended and self._due()
                loss, problem = self._checked(keeping=ended or due)
                if problem is not None:
                    return problem
                self._at.losses += loss * steps
                seconds = time.monotonic() - window_start
                self._metrics.window(
                    seen,
                    seconds,
                    self._waited,
                    epoch=self._at.epoch + 1,
                    loss=loss,
                    learning_rate=self._learner.learning_rate,
                )
                self._tell(loss, seen / seconds, self._waited / seconds)
                waited, self._waited, window_start = waited + self._waited, 0.0, time.monotonic()
                if due:
                    self._keep({"score": -math.inf, **self._at.metrics})
            if ended:
                break
        seconds = time.monotonic() - start
        steps_done = self._at.step_in_epoch
        train_loss = self._at.end_epoch(self._feed.steps_per_epoch)
        self._ended(
            {
                "train_loss": train_loss,
                "pictures_per_s": pictures / seconds,
                "seconds": seconds,
                "data_wait": waited / seconds,
                "lr": self._learner.learning_rate,
                "rejected": float(sum(self._feed.rejected.values())),
                "steps": float(steps_done),
            }
        )
        return None

    def _timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches, with the time spent waiting for them counted."""
        iterator = iter(batches)
        while True:
            start = time.monotonic()
            batch = next(iterator, None)
            self._waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def _checked(self, *, keeping: bool) -> tuple[float, dict[str, Any] | None]:
        """Mean loss of the window over all workers; or what is wrong with it.

        A loss is that of the weights before its step: where these are to be kept, they are looked at themselves.
        """
        values = summed(torch.stack([loss for _, loss, *_ in self._window]).double().tolist(), self._device)
        window, self._window = self._window, []
        if keeping and largest(float(not self._learner.is_finite), self._device):
            values[-1] = values[-1] if not math.isfinite(values[-1]) else math.nan
        for (step, _, rate, keys, _), loss in zip(window, values, strict=True):
            if not math.isfinite(loss) or loss > _EXPLODED:
                return math.nan, {"step": step, "loss": loss, "learning_rate": rate, "keys": gathered(keys)}
        return float(np.mean(values)), None

    def _tell(self, loss: float, rate: float, wait: float) -> None:
        if self._logs is None:
            return
        values = {"loss": loss, "pictures_per_s": rate, "lr": self._learner.learning_rate, "data_wait": wait}
        now = time.monotonic()
        self._logs.write_steps(StepReport(self._at.epoch, self._at.step, 0, 0, 0.0, loss, rate, values["lr"], wait))
        if now - self._told_at < _TELL_EVERY_S:
            return
        self._told_at = now
        spent = now - self._began
        told = {
            **values,
            "epoch": self._at.epoch,
            "step": self._at.step,
            "total": self._total,
            "steps_per_epoch": self._feed.steps_per_epoch,
            "spent_s": spent,
            "from_step": self._from_step,
        }
        status.publish(self._task.run, told)

    def _due(self) -> bool:
        """Whether a checkpoint is due by the clock; rank 0's clock counts."""
        minutes = self._recipe.checkpoint_minutes
        if minutes is None:
            return False
        late = self._rank == 0 and time.monotonic() - self._saved_at > minutes * 60
        return bool(largest(float(late), self._device))

    def _ended(self, metrics: dict[str, float]) -> None:
        # Each worker's batch norms saw its own part; what is measured must be what is kept, and that is rank 0's.
        take_from_first([*self._learner.model.buffers(), *self._learner.best_model.buffers()])
        score = Score()
        for batch in self._feed.validation(self._scoring_batch()):
            part = self._learner.score(batch.pictures, batch.labels)
            score = Score.from_vector([*map(sum, zip(score.vector(), part.vector(), strict=True))])
        score = Score.from_vector(summed(score.vector(), self._device))
        self._check_classes()
        if score.pictures:
            metrics |= score.means("val")
            self._metrics.validated(metrics["val_top1"])
        watched = self._recipe.best_metric or "train_loss"
        value = -metrics[watched] if watched.endswith("loss") else metrics[watched]
        value = value if math.isfinite(value) else -math.inf
        self._at.update_stopping(self._recipe.early_stopping, metrics)
        self._at.metrics = metrics
        line = {"epoch": self._at.epoch, "step": self._at.step, **metrics}
        if self._logs is not None:
            self._logs.write_epoch(EpochReport(self._at.epoch, self._at.step, metrics))
            self._work_log.info("epoch done", extra=line)
            status.publish(self._task.run, {"ended": line}, name=f"epoch-{self._at.epoch:06d}")
        self._keep({**line, "score": value})

    def _scoring_batch(self) -> int:
        """On a GPU no more than what is learned from at once, which is known to fit."""
        parts = self._world_size * self._recipe.accumulate
        return min(_SCORING_BATCH, -(-self._at.batch_size // parts)) if self._device.type == "cuda" else _SCORING_BATCH

    def _check_classes(self) -> None:
        """Whether no picture of some class can be used, which a stream knows only after an epoch."""
        for unusable in self._feed.unusable:
            lost = summed(unusable.by_class.tolist(), self._device)
            counts = unusable.rows.class_counts
            gone = [name for (name, count), each in zip(counts.items(), lost, strict=True) if each and each == count]
            if gone:
                reasons = Counter(gathered(list(unusable.by_reason.elements())))
                raise missing_classes_error(unusable.rows.dataset, gone, reasons)

    def _keep(self, metrics: dict[str, Any]) -> None:
        self._saved_at = time.monotonic()
        keep(self._learner, self._at, metrics, self._task.out, self._metrics.kept)
