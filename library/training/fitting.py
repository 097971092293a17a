"""How large a batch must and can be: two pictures for batch norms, and what a GPU's memory takes, found by trying."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from library.errors import StriateError, UsageError
from library.recipe import Recipe
from library.training.learner import Learner
from library.training.order import smallest_part
from library.training.training_batch import Batch

_LARGEST = 1024
#: What `auto` is on CPUs.
CPU_BATCH_SIZE = 128

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

#: Whether so many pictures, taken in so many parts, can be learned from.
Fits: TypeAlias = Callable[[int, int], bool]


def check_batch_norms(recipe: Recipe, model: Any, batch_size: int, world_size: int) -> None:
    """Refuse parts of one picture where a batch norm would learn from them: its variance is then the picture's own, or
    none at all in a map of one pixel.

    Args:
        recipe: what is frozen, and when it is thawed.
        model: a `Classifier`; it is left frozen as at the end of the training.
        batch_size: over all workers.
        world_size: workers.

    Raises:
        UsageError: with what would do.
    """
    if recipe.cache_features or smallest_part(batch_size, world_size, recipe.accumulate) > 1:
        return
    model.freeze(recipe.unfreeze[max(recipe.unfreeze)] if recipe.unfreeze else recipe.freeze)
    model.train()
    if any(isinstance(module, _BATCH_NORMS) and module.training for module in model.modules()):
        least, parts = 2 * world_size * recipe.accumulate, recipe.accumulate
        over = f" over {world_size} workers" * (world_size > 1) + f" in {parts} parts" * (parts > 1)
        fewer = ", or fewer --workers" * (world_size > 1) + ", or a smaller accumulate" * (parts > 1)
        raise UsageError(
            f"{recipe.model} has batch norms, which learn from two pictures or more at once, and {batch_size} "
            f"picture(s) a batch{over} give them one: use a batch_size (and as many training pictures) of {least} or "
            f"more{fewer}, or freeze: all"
        )


def fitting_batch_size(recipe: Recipe, device: torch.device, world_size: int, fits: Fits) -> int:
    """This worker's part of the recipe's batch size; for `auto` the largest power of two that fits.

    On CPUs nothing is tried, and `auto` is 128 over all workers.

    Args:
        recipe: `batch_size` and `accumulate` are read.
        device: whose memory it is.
        world_size: workers that share the batch.
        fits: tries, as `trial` does.

    Raises:
        StriateError: when the recipe's batch does not fit; says which would.
    """
    wanted = None if recipe.batch_size == "auto" else max(1, -(-int(recipe.batch_size) // world_size))
    if device.type != "cuda":
        return wanted if wanted is not None else max(1, CPU_BATCH_SIZE // world_size)
    size = wanted if wanted is not None else _LARGEST
    while not fits(size, recipe.accumulate):
        if size == 1:
            raise StriateError(f"not even one picture fits into the memory of {device} with '{recipe.model}'")
        size //= 2
    if wanted is not None and size < wanted:
        raise StriateError(
            f"batch_size {recipe.batch_size} does not fit into the memory of {device}: {size * world_size} would, over "
            f"{world_size} worker(s){_in_parts(recipe, wanted, size, fits)}"
        )
    return size


def _in_parts(recipe: Recipe, wanted: int, size: int, fits: Fits) -> str:
    """What else would do: the same batch in more parts, where that fits."""
    part = -(-size // min(recipe.accumulate, size))
    parts = -(-wanted // part)
    # Between the parts of a batch the gradients stay, so smaller parts may be needed than a whole batch of that size.
    while parts < wanted and not fits(wanted, parts):
        parts = min(2 * parts, wanted)
    return f"; or keep it and set accumulate: {parts}" if fits(wanted, parts) else ""


def trial(recipe: Recipe, model: Any, shape: tuple[int, int, int], device: torch.device) -> Fits:
    """Tries by learning twice from grey pictures, with all that the recipe keeps on the device beside the weights:
    gradients of what is not frozen, the optimizer's state (it is there from the second step on), the averaged copy.

    Args:
        recipe: how to learn; nothing is compiled, which takes minutes and no more memory.
        model: a copy of it learns; it stays where and as it is.
        shape: height, width and channels of its input.
        device: where.
    """
    recipe = recipe.model_copy(update={"compile": False})

    def learn(pictures: int, accumulate: int) -> None:
        counts = {str(number): 1 for number in range(model.num_classes)}
        learner = Learner(
            recipe.model_copy(update={"accumulate": accumulate}),
            copy.deepcopy(model),
            class_counts=counts,
            total_steps=2,
            steps_per_epoch=1,
            device=device,
        )
        # Once all that will ever be thawed is thawed.
        learner.start_epoch(max(recipe.unfreeze, default=0))
        seen = np.zeros((pictures, model.num_features), np.float32)
        if not recipe.cache_features:
            seen = np.zeros((pictures, *shape), np.uint8)
        batch = Batch(seen, np.zeros(pictures, np.int64), [""] * pictures, pictures)
        for step in range(2):
            learner.step(batch, step).item()

    def fits(pictures: int, accumulate: int) -> bool:
        try:
            learn(pictures, accumulate)
        except torch.OutOfMemoryError:
            return False
        finally:
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
        return True

    return fits
