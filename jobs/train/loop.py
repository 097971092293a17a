"""The training loop of one worker. Ray Train runs it on all workers, which call its collectives in the same order."""

from __future__ import annotations

import functools
import math
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from cluster.logging_setup import WorkLog
from jobs.progress import status
from jobs.progress.job_metrics import TrainMetrics
from jobs.train.checkpoint import CHECKPOINT_PREFIX, TrainingCheckpoint, make_local_folder, remove_local_folders
from jobs.train.data import TrainData, make_loader
from jobs.train.reporting import EPOCH_KEY_PREFIX, NOTE_KEY_PREFIX, STEP_KEY
from jobs.train.worker_task import Divergence, TrainOutcome, TrainTask, TrainTimes
from library import storage
from library.bundle.description import weights_file
from library.errors import StriateError
from library.models.build import create
from library.recipe import Recipe
from library.training.batch_size import (
    CPU_BATCH_SIZE,
    Fits,
    check_batch_norms,
    fitting_batch_size,
    memory_errors_explained,
    spare_memory,
    trial,
)
from library.training.device_feed import DeviceBatch, DeviceFeed, placing
from library.training.learner import Learner, Score
from library.training.progress import EpochReport, MetricsWriter, StepReport, TrainingProgress
from library.training.rows import missing_classes_error

_WINDOW_STEPS = 20
# The driver polls twice a second; publishing more often only costs time.
_PUBLISH_EVERY_S = 0.5
_MAX_LOSS = 1e4
_VALIDATION_BATCH = 256
_ERROR_KEY = "error"


def run_loop(task: TrainTask, data: TrainData, entered: float) -> TrainOutcome:
    """Runs the training loop in this worker.

    Ray Train restarts the workers after any exception. An error that would occur again is therefore published, and the
    restarted workers return it.

    Args:
        task: the worker's task.
        data: the pictures in Ray's object store.
        entered: Unix time at which Ray Train called the worker's function.
    """
    times = TrainTimes(entered=entered, imported=time.time())
    error = status.published(task.progress_key).get(_ERROR_KEY)
    if error is not None:
        return TrainOutcome(error=error["message"])
    torch.set_num_threads(task.threads)
    if ray.train.get_context().get_local_rank() == 0:
        remove_local_folders(task.out)  # left by a killed worker
    try:
        return TrainingLoop(task, data, times).run()
    except StriateError as raised:
        status.publish(task.progress_key, {"message": str(raised)}, name=_ERROR_KEY)
        raise


class DivergedError(Exception):
    """Ends the loop of all workers after the same step; carries the step that diverged."""

    def __init__(self, divergence: Divergence) -> None:
        super().__init__(f"the loss is {divergence.loss} at step {divergence.step}")
        self.divergence = divergence


@dataclass(frozen=True)
class _Step:
    """A completed step whose loss may still be on the device."""

    number: int
    loss: torch.Tensor
    learning_rate: float
    keys: Sequence[str]
    pictures: int
    rejected: int
    on_cpu: int


@dataclass
class _Window:
    """The steps since the losses were last read, and the seconds of waiting for their batches."""

    start: float = field(default_factory=time.monotonic)
    steps: list[_Step] = field(default_factory=list[_Step])
    waited: float = 0.0


class TrainingLoop:
    """Trains a model: `epoch` calls `step` for each batch, then `validate` and `checkpoint`.

    Losses stay on the device and are read once per window of some steps, so that no step waits for the one before.

    Args:
        task: the worker's task.
        data: the pictures in Ray's object store.
        times: when the worker completed its parts so far.
    """

    def __init__(self, task: TrainTask, data: TrainData, times: TrainTimes) -> None:
        self._task = task
        self._recipe = recipe = Recipe.model_validate_json(task.recipe)
        context = ray.train.get_context()
        self._rank, self._world_size = context.get_world_rank(), context.get_world_size()
        self._device: torch.device = ray.train.torch.get_device()
        torch.backends.cudnn.benchmark = True  # on CUDA: batches have one shape, for which cuDNN tries its kernels
        torch.manual_seed(recipe.seed)
        weights = weights_file(recipe.weights)
        model = create(recipe.model, num_classes=len(task.class_counts), head=recipe.head, weights=weights)
        checkpoint = self.resume()
        self._progress = checkpoint.progress if checkpoint is not None else TrainingProgress()
        fits = trial(recipe, model, (*task.input_size, task.channels), self._device)
        self._progress.batch_size = self._progress.batch_size or self._choose_batch_size(fits)
        if recipe.batch_size == "auto":  # the driver has checked any other size
            check_batch_norms(recipe, model, self._progress.batch_size, self._world_size)
        part = -(-self._progress.batch_size // self._world_size)
        place = placing(self._device, functools.partial(spare_memory, fits, part, recipe.accumulate, self._device))
        sizes = self._progress.batch_size, self._rank, self._world_size
        device = "cuda" if self._device.type == "cuda" else "cpu"
        self._loader = make_loader(data, task, recipe, *sizes, place, device)
        self._feed = DeviceFeed(self._device)
        steps = self._loader.steps_per_epoch
        self._total_steps = recipe.steps if recipe.steps is not None else max(1, round((recipe.epochs or 0) * steps))
        self._learner = Learner(
            recipe,
            model,
            class_counts=task.class_counts,
            total_steps=self._total_steps,
            steps_per_epoch=steps,
            device=self._device,
            world_size=self._world_size,
            label_sets=task.label_sets,
            distribute=self._distribute,
            agree=lambda worked: not dist_max(float(not worked), self._device),
            report=self._note,
        )
        if checkpoint is not None:
            self._learner.start_epoch(self._progress.epoch)
            self._learner.restore(checkpoint.learner)
        self._metrics = TrainMetrics(task.out, self._rank)
        self._writer = MetricsWriter(task.logs, self._progress.step) if self._rank == 0 else None
        names = {"command": "train", "run": task.progress_key, "out": task.out, "run_id": storage.uri_id(task.out)}
        self._log = WorkLog(**names, recipe_digest=task.recipe_digest)
        self._started = self._checkpoint_at = time.monotonic()
        self._published_at = -math.inf
        self._first_step = self._progress.step
        self._window = _Window()
        self._times = replace(times, built=time.time())

    def run(self) -> TrainOutcome:
        """Trains until the last step, until early stopping, or until the loss diverges."""
        progress, divergence = self._progress, None
        nodes = all_gather([ray.get_runtime_context().get_node_id()])
        if self._loader.augmentation is not None and self._rank == 0:
            self._log.info("augmentation", extra={"augment_on": str(self._loader.augmentation)})
        self._loader.start(progress.epoch, progress.step_in_epoch, self._total_steps - progress.step)
        try:
            while progress.step < self._total_steps and not progress.should_stop(self._recipe.early_stopping):
                self.epoch()
        except DivergedError as error:
            divergence = error.divergence
        if self._writer is not None:
            self._writer.close()
        seconds = time.monotonic() - self._started
        times = replace(self._times, trained=time.time())
        place = self._loader.augmentation
        augmentation = None if place is None else place.after(progress.pictures, progress.on_cpu)
        return TrainOutcome(progress, seconds, self._learner.compile_seconds, times, nodes, augmentation, divergence)

    def epoch(self) -> None:
        """Trains for the rest of the current epoch, validates, and saves a checkpoint.

        Raises:
            DivergedError: on all workers, when the loss of a step is not finite or too large.
        """
        progress, start = self._progress, time.monotonic()
        self._learner.start_epoch(progress.epoch)
        self._window = _Window()
        pictures, waited = 0, 0.0
        for batch in self._timed(self._feed(self._loader.training())):
            self.step(batch)
            pictures += batch.size
            is_last = progress.step_in_epoch == self._loader.steps_per_epoch or progress.step == self._total_steps
            if is_last or len(self._window.steps) == _WINDOW_STEPS:
                is_due = not is_last and self._is_checkpoint_due()
                waited += self._close_window(before_checkpoint=is_last or is_due)
                if is_due:
                    self.checkpoint({"score": -math.inf, **progress.metrics})
            if is_last:
                break
        seconds, steps, rejected = time.monotonic() - start, progress.step_in_epoch, progress.rejected
        progress.metrics = {
            "train_loss": progress.end_epoch(self._loader.steps_per_epoch),
            "pictures_per_s": pictures / seconds,
            "seconds": seconds,
            "data_wait": waited / seconds,
            "lr": self._learner.learning_rate,
            "rejected": float(self._loader.left_out + rejected),
            "steps": float(steps),
        }
        progress.metrics |= self.validate()
        progress.update_stopping(self._recipe.early_stopping, progress.metrics)
        report = EpochReport(progress.epoch, progress.step, progress.metrics)
        self._report_epoch(report)
        self.checkpoint({**report.to_dict(), "score": self._checkpoint_score(progress.metrics)})

    def step(self, batch: DeviceBatch) -> None:
        """Takes one optimizer step."""
        progress = self._progress
        with memory_errors_explained(self._recipe, progress.batch_size, self._device):
            loss = self._learner.step(batch, progress.step)
        counts = batch.size, batch.rejected, batch.on_cpu
        self._window.steps.append(_Step(progress.step, loss, self._learner.learning_rate, batch.keys, *counts))
        if self._times.first_step is None:
            self._times = replace(self._times, first_step=time.time())
        progress.step += 1
        progress.step_in_epoch += 1

    def validate(self) -> dict[str, float]:
        """Scores the best model on the validation pictures of all workers.

        Returns:
            `val_loss`, `val_top1` and `val_top5`, or with several labels `val_loss` and `val_f1`; empty without
            validation pictures.

        Raises:
            StriateError: when no picture of some class could be used in this epoch.
        """
        # The batch norms of workers differ, as each saw other pictures. Checkpoints hold rank 0's, so these are scored.
        broadcast([*self._learner.model.buffers(), *self._learner.best_model.buffers()])
        sums = Score().vector()
        for batch in self._feed(self._loader.validation(self._validation_batch_size())):
            sums = [*map(sum, zip(sums, self._learner.score(batch).vector(), strict=True))]
        total = Score.from_vector(dist_sum(sums, self._device))
        self._check_classes()
        if not total.pictures:
            return {}
        several = self._task.label_sets is not None
        metrics = total.means("val", several_labels=several)
        if not several:
            self._metrics.validated(metrics["val_top1"])
        return metrics

    def checkpoint(self, metrics: dict[str, float]) -> None:
        """Saves a checkpoint with its metrics. Rank 0 writes it, and it is uploaded while training continues."""
        self._checkpoint_at = time.monotonic()
        context = ray.train.get_context()
        storage_context: Any = context.get_storage()

        def upload(checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            try:
                uploaded = storage_context.persist_current_checkpoint(checkpoint, name)
            except BaseException:  # Ray removes the local folder after a success only
                shutil.rmtree(checkpoint.path, ignore_errors=True)
                raise
            self._metrics.checkpoint_uploaded()
            return uploaded

        checkpoint = None
        if self._rank == 0:
            folder = make_local_folder(self._task.out)
            state = self._learner.state(), self._learner.best_model.state_dict()
            TrainingCheckpoint(*state, self._progress).save(folder)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(
            metrics,
            checkpoint=checkpoint,
            checkpoint_dir_name=f"{CHECKPOINT_PREFIX}{self._progress.step:09d}",
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
        )

    def resume(self) -> TrainingCheckpoint | None:
        """Returns the last checkpoint of this run; None if there is none."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return TrainingCheckpoint.load(folder, str(self._device))

    def _distribute(self, module: nn.Module) -> nn.Module:
        if self._world_size == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
            return module
        devices = [self._device] if self._device.type == "cuda" else None
        # The view avoids a second copy of all gradients.
        return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)

    def _choose_batch_size(self, fits: Fits) -> int:
        """Returns the recipe's batch size; for `auto` the largest that fits into the memory of every worker."""
        local = fitting_batch_size(self._recipe, self._device, self._world_size, fits)
        smallest = int(-dist_max(-local, self._device))
        if self._recipe.batch_size != "auto":
            return int(self._recipe.batch_size)
        return smallest * self._world_size if self._device.type == "cuda" else CPU_BATCH_SIZE

    def _timed(self, batches: Iterable[DeviceBatch]) -> Iterator[DeviceBatch]:
        """Yields batches, and adds the time spent waiting for them to the window."""
        iterator = iter(batches)
        while True:
            start = time.monotonic()
            batch = next(iterator, None)
            self._window.waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def _close_window(self, *, before_checkpoint: bool) -> float:
        """Checks and reports the window's losses and starts the next window; returns the seconds spent waiting."""
        window, progress = self._window, self._progress
        loss = self._mean_loss(window, before_checkpoint=before_checkpoint)
        progress.losses += loss * len(window.steps)
        seconds = time.monotonic() - window.start
        pictures = sum(step.pictures for step in window.steps)
        self._count(window, pictures)
        rate = self._learner.learning_rate
        self._metrics.window(pictures, seconds, window.waited, epoch=progress.epoch + 1, loss=loss, learning_rate=rate)
        self._report_steps(loss, pictures / seconds, window.waited / seconds)
        self._window = _Window()
        return window.waited

    def _count(self, window: _Window, pictures: int) -> None:
        """Adds the pictures of a window to the progress, those that were not used as planned over all workers."""
        progress = self._progress
        sums = [float(sum(step.rejected for step in window.steps)), float(sum(step.on_cpu for step in window.steps))]
        rejected, on_cpu = map(int, dist_sum(sums, self._device))
        if on_cpu and not progress.on_cpu:
            self._note("batches with pictures of other than 8 bits are augmented on the CPU")
        progress.pictures += pictures
        progress.rejected += rejected
        progress.on_cpu += on_cpu

    def _mean_loss(self, window: _Window, *, before_checkpoint: bool) -> float:
        """Returns the mean loss of a window over all workers.

        A loss belongs to the weights before its step, so the weights themselves are checked before a checkpoint.

        Raises:
            DivergedError: on all workers.
        """
        losses = dist_sum(torch.stack([step.loss for step in window.steps]).double().tolist(), self._device)
        if before_checkpoint and dist_max(float(not self._learner.is_finite), self._device):
            losses[-1] = losses[-1] if not math.isfinite(losses[-1]) else math.nan
        for step, loss in zip(window.steps, losses, strict=True):
            if not math.isfinite(loss) or loss > _MAX_LOSS:
                raise DivergedError(Divergence(step.number, loss, step.learning_rate, all_gather(step.keys)))
        return float(np.mean(losses))

    def _report_steps(self, loss: float, pictures_per_s: float, data_wait: float) -> None:
        if self._writer is None:
            return
        now = time.monotonic()
        report = StepReport(
            epoch=self._progress.epoch,
            step=self._progress.step,
            total_steps=self._total_steps,
            first_step=self._first_step,
            seconds=now - self._started,
            loss=loss,
            pictures_per_s=pictures_per_s,
            lr=self._learner.learning_rate,
            data_wait=data_wait,
        )
        self._writer.write_steps(report)
        if now - self._published_at >= _PUBLISH_EVERY_S:
            self._published_at = now
            status.publish(self._task.progress_key, asdict(report), name=STEP_KEY)

    def _report_epoch(self, report: EpochReport) -> None:
        if self._writer is None:
            return
        self._writer.write_epoch(report)
        self._log.info("epoch done", extra=report.to_dict())
        status.publish(self._task.progress_key, report.to_dict(), name=f"{EPOCH_KEY_PREFIX}{report.epoch:06d}")

    def _note(self, line: str) -> None:
        """Logs a line, and shows it on the terminal."""
        if self._rank == 0:
            self._log.info(line)
            status.publish(self._task.progress_key, {"line": line}, name=f"{NOTE_KEY_PREFIX}{self._progress.step:09d}")

    def _is_checkpoint_due(self) -> bool:
        """Whether `checkpoint_minutes` have passed on rank 0's clock."""
        minutes = self._recipe.checkpoint_minutes
        if minutes is None:
            return False
        is_due = self._rank == 0 and time.monotonic() - self._checkpoint_at > minutes * 60
        return bool(dist_max(float(is_due), self._device))

    def _checkpoint_score(self, metrics: dict[str, float]) -> float:
        """Returns the score by which Ray Train chooses the best checkpoint; larger is better."""
        metric = self._recipe.best_metric or "train_loss"
        score = -metrics[metric] if metric.endswith("loss") else metrics[metric]
        return score if math.isfinite(score) else -math.inf

    def _validation_batch_size(self) -> int:
        """Returns a fixed size; on a GPU at most a worker's part of a training batch, which is known to fit."""
        if self._device.type != "cuda":
            return _VALIDATION_BATCH
        parts = self._world_size * self._recipe.accumulate
        return min(_VALIDATION_BATCH, -(-self._progress.batch_size // parts))

    def _check_classes(self) -> None:
        """Checks that every class has a usable picture, which a stream knows only after an epoch."""
        if self._task.label_sets is not None:
            return  # a set of labels may be that of a single picture
        for unusable in self._loader.unusable:
            unusable_counts = dist_sum(unusable.by_class.tolist(), self._device)
            counts = unusable.rows.class_counts.items()
            missing = [name for (name, count), n in zip(counts, unusable_counts, strict=True) if n and n == count]
            if missing:
                reasons = Counter(all_gather(list(unusable.by_reason.elements())))
                raise missing_classes_error(unusable.rows.dataset, missing, reasons)


def dist_max(value: float, device: torch.device) -> float:
    """Returns the maximum of `value` over all workers."""
    return _all_reduce([value], device, distributed.ReduceOp.MAX)[0]


def dist_sum(values: Sequence[float], device: torch.device) -> list[float]:
    """Returns the sum over all workers, element by element."""
    return _all_reduce(values, device, distributed.ReduceOp.SUM)


def all_gather(names: Sequence[str]) -> list[str]:
    """Returns the names from all workers, in the order of the ranks."""
    if _is_single():
        return list(names)
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, list(names))
    return [name for part in parts for name in part]


def broadcast(buffers: Sequence[torch.Tensor]) -> None:
    """Overwrites the buffers of all workers with those of rank 0."""
    if _is_single():
        return
    for buffer in buffers:
        distributed.broadcast(buffer, 0)


def _all_reduce(values: Sequence[float], device: torch.device, operation: Any) -> list[float]:
    if _is_single():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(tensor, op=operation)
    return tensor.tolist()


def _is_single() -> bool:
    return not distributed.is_initialized() or distributed.get_world_size() == 1
