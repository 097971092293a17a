"""One replica of a model in training: takes batches, returns losses, and can save and restore its state."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from timm.data.mixup import Mixup
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.nn import functional

from library.models.classifier import Classifier, autocast
from library.randomness import seed_of
from library.recipe import Recipe
from library.training.batches import Batch
from library.training.compilation import compiled, is_compiled
from library.training.device_feed import DeviceBatch, moved
from library.training.optimization import Schedule, make_optimizer

_SCALES = {torch.uint8: 255.0, torch.uint16: 65535.0}


@dataclass
class Score:
    """Sums over scored pictures; scores of several batches and workers add up.

    Attributes:
        pictures: number of pictures.
        loss: sum of their cross entropies, in nats.
        top1: pictures whose class ranks first.
        top5: pictures whose class is among the first five.
        hits: where a picture may have several classes, predictions (probability 0.5 or more) that are right.
        false_alarms: predictions that are wrong.
        misses: classes of pictures that are not predicted.
    """

    pictures: float = 0.0
    loss: float = 0.0
    top1: float = 0.0
    top5: float = 0.0
    hits: float = 0.0
    false_alarms: float = 0.0
    misses: float = 0.0

    def vector(self) -> list[float]:
        """All fields in order, for adding up."""
        return [self.pictures, self.loss, self.top1, self.top5, self.hits, self.false_alarms, self.misses]

    @classmethod
    def from_vector(cls, vector: Sequence[float]) -> Score:
        """The inverse of `vector`."""
        return cls(*vector)

    def means(self, prefix: str, *, several_labels: bool = False) -> dict[str, float]:
        """Mean loss, and the fractions of pictures whose class ranks first or among the first five.

        With several labels a picture, instead of the fractions F1 over all pictures and classes (micro).
        """
        count = max(self.pictures, 1.0)
        if several_labels:
            wrong = self.false_alarms + self.misses
            f1 = 2 * self.hits / (2 * self.hits + wrong) if self.hits + wrong else 1.0
            return {f"{prefix}_loss": self.loss / count, f"{prefix}_f1": f1}
        return {f"{prefix}_{name}": getattr(self, name) / count for name in ("loss", "top1", "top5")}


class Learner:
    """A model with its optimizer and its averaged copy on one device.

    Args:
        recipe: the recipe.
        model: moved to `device` and frozen as the recipe says.
        class_counts: training pictures of each class, in the order of the outputs.
        total_steps: steps of the whole training.
        steps_per_epoch: batches of an epoch.
        device: device to train on.
        world_size: number of replicas whose gradients are averaged.
        label_sets: where a picture may have several classes: their numbers, for each number that stands for a set of
            labels (`library.training.label_sets`); None where it has one.
        distribute: wraps the module that averages gradients, e.g. in DistributedDataParallel.
        agree: takes whether compiling worked in this worker, and returns whether it worked in all of them.
        report: takes lines for the log.

    Attributes:
        compile_seconds: time that torch.compile has taken so far.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: Classifier,
        *,
        class_counts: Mapping[str, int],
        total_steps: int,
        steps_per_epoch: int,
        device: torch.device,
        world_size: int = 1,
        label_sets: Sequence[Sequence[int]] | None = None,
        distribute: Callable[[nn.Module], nn.Module] = lambda module: module,
        agree: Callable[[bool], bool] = lambda worked: worked,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._recipe, self.device, self._distribute = recipe, device, distribute
        self._agree, self._report = agree, report
        self._world_size = world_size
        channels_last = device.type == "cuda" if recipe.channels_last == "auto" else recipe.channels_last
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(device).to(memory_format=self._format)
        self._optimizer = make_optimizer(recipe, model.stages())
        self._schedule = Schedule(recipe, self._optimizer, total_steps, steps_per_epoch)
        self._ema = ModelEmaV3(model, decay=recipe.ema, use_warmup=True) if recipe.ema is not None else None
        self._class_weights = _class_weights(recipe, class_counts, device)
        self._mixup = _mixup(recipe, len(class_counts))
        self._targets = None if label_sets is None else _targets(label_sets, len(class_counts), device)
        self._frozen: int | str | None = None
        self._module: nn.Module = model
        self._compiles, self._is_compiled = is_compiled(recipe, device, total_steps), False
        self.compile_seconds = 0.0
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Unfreezes the stages that the recipe trains from this epoch on."""
        frozen: int | str = self._recipe.freeze
        for first, stages in sorted(self._recipe.unfreeze.items()):
            if epoch >= first:
                frozen = stages
        if frozen != self._frozen:
            self._frozen = frozen
            self.model.freeze(frozen)
            self._module, self._is_compiled = self._forward(), False
            if not self._compiles:
                self._module = self._distribute(self._module)
        self.model.train()

    def _forward(self) -> nn.Module:
        return _TrainingForward(self.model, on_features=self._recipe.cache_features)

    def _compile(self, parts: Sequence[DeviceBatch]) -> None:
        """Compiles the forward and backward pass for the shapes of a batch's parts, which are those of all batches."""
        of_each_size = {len(part.labels): part for part in parts}

        def run(module: nn.Module) -> None:
            for part in of_each_size.values():
                self._loss(module, part).backward()

        compilation = compiled(self._forward(), run, may_fail=self._recipe.compile == "auto", agree=self._agree)
        self.compile_seconds += compilation.seconds
        self._report(str(compilation))
        self._compiles = compilation.error is None  # what failed once is not tried again after `unfreeze`
        self._module, self._is_compiled = self._distribute(compilation.module), True

    def step(self, batch: Batch | DeviceBatch, step: int) -> torch.Tensor:
        """Takes one optimizer step. The first one compiles, if the recipe says so.

        Args:
            batch: this worker's part of the batch, on the device or in this process's memory.
            step: number of the step in the whole training, from 0; determines the learning rate and random numbers.

        Returns:
            A scalar on the device: the sum of this part's losses over the size of the whole batch. The sum over
            workers is the batch's mean loss.
        """
        if isinstance(batch, Batch):
            batch = moved(batch, self.device)
        count = len(batch.labels)
        number_of_parts = min(self._recipe.accumulate, count)
        bounds = [count * number // number_of_parts for number in range(number_of_parts + 1)]
        parts = [batch.part(slice(first, last)) for first, last in itertools.pairwise(bounds)]
        if self._compiles and not self._is_compiled:
            self._compile(parts)
        self._schedule.set(step)
        seed = seed_of("step", self._recipe.seed, step) % 2**32
        # On a CPU, torch.manual_seed would also record the caller's stack for absent GPUs, each time.
        (torch.manual_seed if self.device.type == "cuda" else torch.default_generator.manual_seed)(seed)
        if self._mixup is not None:
            np.random.seed(seed)  # timm's mixup draws from NumPy's global generator
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for part in parts:
            no_sync = getattr(self._module, "no_sync", None)
            with no_sync() if no_sync is not None and part is not parts[-1] else contextlib.nullcontext():
                loss = self._loss(self._module, part) / batch.size
                # DistributedDataParallel averages the replicas' gradients; the step needs their sum.
                (loss * self._world_size).backward()
            total += loss.detach()
        if self._recipe.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._recipe.clip_grad)
        self._optimizer.step()
        if self._ema is not None:
            self._ema.update(self.model, step=step)
        return total

    def _loss(self, module: nn.Module, part: DeviceBatch) -> torch.Tensor:
        """The sum of the pictures' losses, with the logits that `module` computes."""
        x, target = self._channels_first(part.pictures), part.labels
        weights = None if self._class_weights is None else self._class_weights[target]
        if self._mixup is not None:
            # Mixing takes pairs; the last picture of an odd batch stays as it is.
            x = x.float() / _SCALES.get(x.dtype, 1.0)
            even = len(x) // 2 * 2
            smoothing = self._recipe.loss.label_smoothing
            mixed, soft = self._mixup(x[:even], target[:even])
            off = smoothing / self._mixup.num_classes
            rest = functional.one_hot(target[even:], self._mixup.num_classes) * (1 - smoothing) + off
            x, target = torch.cat([mixed, x[even:]]), torch.cat([soft, rest.to(soft)])
        with autocast(self.device, self._recipe.precision):
            heads = module(x)
        total = torch.zeros((), device=self.device)
        for logits, share in heads:
            smoothing = 0.0 if self._mixup is not None else self._recipe.loss.label_smoothing
            if self._targets is not None:
                losses = _binary_losses(logits.float(), self._targets[target])
            else:
                losses = functional.cross_entropy(logits.float(), target, reduction="none", label_smoothing=smoothing)
            total = total + share * (losses if weights is None else losses * weights).sum()
        return total

    def _channels_first(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 4:
            return x
        x = x.permute(0, 3, 1, 2)
        return x if self._format is torch.channels_last else x.contiguous()

    @property
    def best_model(self) -> Classifier:
        """The averaged copy if the recipe has one, else the model."""
        return self.model if self._ema is None else cast(Classifier, self._ema.module)

    @property
    def is_finite(self) -> bool:
        """Whether all weights and batch-norm statistics are finite numbers."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        largest = [tensor.detach().float().abs().amax() for tensor in tensors if tensor.numel()]
        return bool(torch.stack(largest).isfinite().all())

    def score(self, batch: Batch | DeviceBatch) -> Score:
        """Scores the best model on pictures without training on them."""
        if isinstance(batch, Batch):
            batch = moved(batch, self.device)
        model, target = self.best_model.eval(), batch.labels
        with torch.inference_mode(), autocast(self.device, self._recipe.precision):
            x = self._channels_first(batch.pictures)
            logits = (model.head_logits(x) if x.ndim == 2 else model(x)).float()
        if self._targets is not None:
            self.model.train()
            return _score_of_sets(logits, self._targets[target])
        top = logits.topk(min(5, logits.shape[1]), 1).indices == target[:, None]
        loss = functional.cross_entropy(logits, target, reduction="sum")
        self.model.train()
        sums = torch.stack([loss, top[:, 0].sum(), top.any(1).sum()])
        return Score(len(target), *sums.tolist())

    @property
    def learning_rate(self) -> float:
        """The current learning rate of the last stage."""
        return float(self._optimizer.param_groups[-1]["lr"])

    def state(self) -> dict[str, Any]:
        """Tensors and plain data for `restore`."""
        averaged = None if self._ema is None else self._ema.module.state_dict()
        return {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict(), "averaged": averaged}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Loads a state; the training then continues as if it had not been interrupted."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._ema is not None:
            self._ema.module.load_state_dict(state["averaged"])


class _TrainingForward(nn.Module):
    """The differentiated part of the model: the logits of all heads, each with its weight in the loss."""

    def __init__(self, model: Classifier, *, on_features: bool) -> None:
        super().__init__()
        self.model = model
        self._on_features = on_features

    def forward(self, x: torch.Tensor) -> list[tuple[torch.Tensor, float]]:
        return [(self.model.head_logits(x), 1.0)] if self._on_features else self.model.forward_train(x)


def _targets(label_sets: Sequence[Sequence[int]], classes: int, device: torch.device) -> torch.Tensor:
    """For each set of labels (rows) 1 for its classes, else 0; float32."""
    targets = torch.zeros((len(label_sets), classes))
    for row, numbers in enumerate(label_sets):
        targets[row, list(numbers)] = 1
    return targets.to(device)


def _binary_losses(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of each picture, the mean over the classes, in nats."""
    return functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)


def _score_of_sets(logits: torch.Tensor, target: torch.Tensor) -> Score:
    found, wanted = logits >= 0, target > 0
    sums = [_binary_losses(logits, target), found & wanted, found & ~wanted, ~found & wanted]
    loss, hits, false_alarms, misses = torch.stack([part.sum().float() for part in sums]).tolist()
    return Score(len(target), loss, hits=hits, false_alarms=false_alarms, misses=misses)


def _class_weights(recipe: Recipe, counts: Mapping[str, int], device: torch.device) -> torch.Tensor | None:
    """Weights whose mean over the training pictures is 1, so that the learning rate keeps its meaning."""
    settings = recipe.loss.class_weights
    if settings is None:
        return None
    number = torch.tensor(list(counts.values()), dtype=torch.float32)
    if settings == "balanced":
        weights = number.sum() / (len(counts) * number.clamp(min=1))
    else:
        weights = torch.tensor([settings.get(name, 1.0) for name in counts], dtype=torch.float32)
        weights = weights * number.sum() / (weights * number).sum()
    return weights.to(device)


def _mixup(recipe: Recipe, num_classes: int) -> Mixup | None:
    if not recipe.mixup and not recipe.cutmix:
        return None
    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        label_smoothing=recipe.loss.label_smoothing,
        num_classes=num_classes,
    )
