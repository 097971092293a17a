"""What each training worker does: Ray Train calls `train_worker` on all of them at once."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from jobs import board
from jobs.feed import feeds_of
from library.errors import StriateError
from library.models import create
from library.recipe import Recipe
from library.training.batch import Batch
from library.training.fitting import CPU_BATCH_SIZE, fitting_batch_size
from library.training.learner import Learner, Score
from library.training.logs import Logs

_WINDOW_STEPS = 20
_EXPLODED = 1e4
_STATE = "state.pt"
_SCORING_BATCH = 256


@dataclass(frozen=True)
class TrainTask:
    """What all workers are told; plain data.

    Attributes:
        recipe: as JSON.
        run: name under which progress is told.
        logs: URI of the folder of metrics.jsonl.
        class_counts: training pictures by class, in the order of the model's outputs.
        steps_pipeline: canonical text of what is done to every picture before augmentation.
        fit: canonical text of what gives it the model's size.
        input_size: height and width of the model's input.
        channels: of the model's input.
        data: how to get at the pictures, as `jobs.feed` has it.
        threads: for torch in each worker.
    """

    recipe: str
    run: str
    logs: str
    class_counts: dict[str, int]
    steps_pipeline: str
    fit: str
    input_size: tuple[int, int]
    channels: int
    data: dict[str, Any]
    threads: int


@dataclass
class _Position:
    """How far the training is, and what has been seen on the way; kept in each checkpoint.

    `losses` is the sum over the steps of the epoch that is under way.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    batch_size: int = 0
    best: float = -math.inf
    stale_epochs: int = 0
    losses: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict[str, float])


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """The loop of one worker; its return value on rank 0 says how it ended."""
    task = TrainTask(**config["task"])
    refused = board.told(task.run).get("refused")
    if refused is not None:  # Ray starts the workers again after any error, and this one would come again
        return {"refused": refused["why"]}
    torch.set_num_threads(task.threads)
    try:
        return _Training(task, config["refs"]).run()
    except StriateError as error:
        board.tell(task.run, {"why": str(error)}, name="refused")
        raise


class _Training:
    def __init__(self, task: TrainTask, refs: dict[str, Any]) -> None:
        self._task = task
        self._recipe = Recipe.model_validate_json(task.recipe)
        context = ray.train.get_context()
        self._rank, self._world_size = context.get_world_rank(), context.get_world_size()
        self._device: torch.device = ray.train.torch.get_device()
        recipe = self._recipe
        torch.manual_seed(recipe.seed)
        model = create(recipe.model, num_classes=len(task.class_counts), head=recipe.head, weights=recipe.weights)
        self._checkpoint = _loaded(self._device)
        self._at = _Position(**self._checkpoint["position"]) if self._checkpoint else _Position()
        self._at.batch_size = self._at.batch_size or self._fitting(model)
        self._feed, self._scoring = feeds_of(
            task.data, refs, task, recipe, self._at.batch_size, self._rank, self._world_size
        )
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
        self._logs = Logs(task.logs, self._at.step) if self._rank == 0 else None
        self._saved_at = self._began = time.monotonic()
        self._from_step = self._at.step
        # Step, loss, learning rate, keys and size of each batch that was not looked at yet.
        self._window: list[tuple[int, torch.Tensor, float, list[str], int]] = []
        self._waited = 0.0
        self._first_step_at: float | None = None

    def _distributed(self, module: nn.Module) -> nn.Module:
        if self._world_size == 1 or not any(p.requires_grad for p in module.parameters()):
            return module
        return DistributedDataParallel(module, device_ids=[self._device] if self._device.type == "cuda" else None)

    def _fitting(self, model: Any) -> int:
        """The recipe's batch size, or the largest that all workers' memory takes."""
        shape = (*self._task.input_size, self._task.channels)
        local = fitting_batch_size(self._recipe, model, shape, self._device, self._world_size)
        fits = int(-_agreed(torch.tensor([-float(local)]), self._device)[0]) * self._world_size
        if self._recipe.batch_size != "auto":
            return int(self._recipe.batch_size)
        return fits if self._device.type == "cuda" else CPU_BATCH_SIZE

    def run(self) -> dict[str, Any]:
        problem: dict[str, Any] | None = None
        while self._at.step < self._total and problem is None and not self._is_stale:
            problem = self._epoch()
        if self._logs is not None:
            self._logs.close()
        return {
            "problem": problem,
            "position": asdict(self._at),
            "seconds": time.monotonic() - self._began,
            "first_step_at": self._first_step_at,
        }

    @property
    def _is_stale(self) -> bool:
        patience = self._recipe.early_stopping
        return patience is not None and self._at.stale_epochs >= patience.patience

    def _epoch(self) -> dict[str, Any] | None:
        self._learner.start_epoch(self._at.epoch)
        start = window_start = time.monotonic()
        pictures, waited = 0, 0.0
        for batch in self._timed(self._feed.epoch(self._at.epoch, self._at.step_in_epoch)):
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
                self._tell(loss, seen / seconds, self._waited / seconds)
                waited, self._waited, window_start = waited + self._waited, 0.0, time.monotonic()
                if due:
                    self._report({"score": -math.inf, **self._at.metrics})
            if ended:
                break
        seconds = time.monotonic() - start
        whole = self._at.step_in_epoch == self._feed.steps_per_epoch
        self._at.epoch += whole
        steps_done, self._at.step_in_epoch = self._at.step_in_epoch, 0 if whole else self._at.step_in_epoch
        train_loss, self._at.losses = self._at.losses / steps_done, 0.0 if whole else self._at.losses
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
        losses = torch.stack([loss for _, loss, *_ in self._window]).double()
        if self._world_size > 1:
            distributed.all_reduce(losses)
        values = losses.tolist()
        window, self._window = self._window, []
        if keeping and _agreed(torch.tensor([float(not self._learner.is_finite)]), self._device)[0]:
            values[-1] = values[-1] if not math.isfinite(values[-1]) else math.nan
        for (step, _, rate, keys, _), loss in zip(window, values, strict=True):
            if not math.isfinite(loss) or loss > _EXPLODED:
                gathered = _gathered(keys, self._world_size)
                return math.nan, {"step": step, "loss": loss, "learning_rate": rate, "keys": gathered}
        return float(np.mean(values)), None

    def _tell(self, loss: float, rate: float, wait: float) -> None:
        if self._logs is None:
            return
        values = {"loss": loss, "pictures_per_s": rate, "lr": self._learner.learning_rate, "data_wait": wait}
        self._logs.window(self._at.step, values)
        spent = time.monotonic() - self._began
        told = {
            **values,
            "epoch": self._at.epoch,
            "step": self._at.step,
            "total": self._total,
            "steps_per_epoch": self._feed.steps_per_epoch,
            "spent_s": spent,
            "from_step": self._from_step,
        }
        board.tell(self._task.run, told)

    def _due(self) -> bool:
        """Whether a checkpoint is due by the clock; rank 0's clock counts."""
        minutes = self._recipe.checkpoint_minutes
        if minutes is None:
            return False
        late = self._rank == 0 and time.monotonic() - self._saved_at > minutes * 60
        return bool(_agreed(torch.tensor([float(late)]), self._device)[0])

    def _ended(self, metrics: dict[str, float]) -> None:
        if self._world_size > 1:
            # Each worker's batch norms saw its own part; what is measured must be what is kept, and that is rank 0's.
            for buffer in (*self._learner.model.buffers(), *self._learner.best_model.buffers()):
                distributed.broadcast(buffer, 0)
        score = Score()
        for batch in self._scoring(_SCORING_BATCH):
            part = self._learner.score(batch.pictures, batch.labels)
            score = Score(*map(sum, zip(score.vector(), part.vector(), strict=True)))
        sums = torch.tensor(score.vector(), dtype=torch.float64)
        if self._world_size > 1:
            sums = sums.to(self._device)
            distributed.all_reduce(sums)
        score = Score(*sums.tolist())
        if score.pictures:
            metrics |= score.means("val")
        watched = self._recipe.best_metric or "train_loss"
        value = -metrics[watched] if watched.endswith("loss") else metrics[watched]
        value = value if math.isfinite(value) else -math.inf
        self._count_stale(metrics)
        self._at.best = max(self._at.best, value)
        self._at.metrics = metrics
        line = {"epoch": self._at.epoch, "step": self._at.step, **metrics}
        if self._logs is not None:
            self._logs.epoch(line)
            board.tell(self._task.run, {"ended": line}, name=f"epoch-{self._at.epoch:06d}")
        self._report({**line, "score": value})

    def _count_stale(self, metrics: dict[str, float]) -> None:
        rule = self._recipe.early_stopping
        if rule is None:
            return
        sign = -1.0 if rule.metric.endswith("loss") else 1.0
        before = self._at.metrics.get("stopping_best", -math.inf)
        improved = sign * metrics[rule.metric] > before + rule.min_delta
        metrics["stopping_best"] = max(before, sign * metrics[rule.metric])
        self._at.stale_epochs = 0 if improved else self._at.stale_epochs + 1

    def _report(self, metrics: dict[str, Any]) -> None:
        """Keep the state; rank 0 writes it, all take part."""
        self._saved_at = time.monotonic()
        name = f"step-{self._at.step:09d}"
        checkpoint = None
        if self._rank == 0:
            folder = tempfile.mkdtemp(prefix="striate-checkpoint-")
            kept = {"state": self._learner.state(), "position": asdict(self._at)}
            kept["best_model"] = self._learner.best_model.state_dict()
            torch.save(kept, Path(folder) / _STATE)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(
            metrics,
            checkpoint=checkpoint,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        )


def load_state(checkpoint: Any, device: torch.device) -> dict[str, Any]:
    """A checkpoint's content; tensors and plain data only, nothing in it is executed."""
    with checkpoint.as_directory() as folder:
        return torch.load(Path(folder) / _STATE, map_location=device, weights_only=True)


def _loaded(device: torch.device) -> dict[str, Any] | None:
    checkpoint = ray.train.get_checkpoint()
    return None if checkpoint is None else load_state(checkpoint, device)


def _agreed(values: torch.Tensor, device: torch.device) -> list[float]:
    """The largest over all workers, element by element."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return values.tolist()
    values = values.to(device)
    distributed.all_reduce(values, op=distributed.ReduceOp.MAX)
    return values.tolist()


def _gathered(keys: list[str], world_size: int) -> list[str]:
    if world_size == 1:
        return keys
    parts: list[Any] = [None] * world_size
    distributed.all_gather_object(parts, keys)
    return [key for part in parts for key in part]
