"""The limits of the batch size: two pictures for batch norms, and the memory of a GPU, which is found by trying."""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Callable, Generator
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from library.errors import StriateError, UsageError
from library.models.classifier import Classifier
from library.recipe import Recipe
from library.training.batches import Batch
from library.training.learner import Learner
from library.training.sampling import smallest_part

_LARGEST = 1024
#: The batch size `auto` on CPUs.
CPU_BATCH_SIZE = 128

# PyTorch has no exception of its own for the memory of a CPU; this names its allocator.
_CPU_ALLOCATOR = "DefaultCPUAllocator"

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

#: Whether a batch fits into memory: takes its pictures, and the number of parts in which the model processes it.
Fits: TypeAlias = Callable[[int, int], bool]


def check_batch_norms(recipe: Recipe, model: Classifier, batch_size: int, world_size: int) -> None:
    """Checks that trainable batch norms get two pictures or more in each pass.

    The variance of one picture is that of its own pixels, and zero in a feature map of one pixel.

    Args:
        recipe: `freeze`, `unfreeze`, `accumulate` and `cache_features` are used.
        model: its layers are frozen as at the end of the training.
        batch_size: pictures of a batch over all workers.
        world_size: number of workers.

    Raises:
        UsageError: names the settings that would work.
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
            f"{recipe.model} has batch norms, which need two pictures or more in each pass, but a batch of "
            f"{batch_size} picture(s){over} gives them one: use a batch_size (and as many training pictures) of "
            f"{least} or more{fewer}, or freeze: all"
        )


def fitting_batch_size(recipe: Recipe, device: torch.device, world_size: int, fits: Fits) -> int:
    """This worker's part of the recipe's batch size; for `auto` the largest power of two that fits.

    On CPUs nothing is tried, and `auto` is 128 over all workers.

    Args:
        recipe: `batch_size` and `accumulate` are used.
        device: device to train on.
        world_size: workers that share the batch.
        fits: tries a batch size, as `trial` does.

    Raises:
        StriateError: when the recipe's batch does not fit; names a size that does.
    """
    requested = None if recipe.batch_size == "auto" else max(1, -(-int(recipe.batch_size) // world_size))
    if device.type != "cuda":
        return requested if requested is not None else max(1, CPU_BATCH_SIZE // world_size)
    size = requested if requested is not None else _LARGEST
    while not fits(size, recipe.accumulate):
        if size == 1:
            raise StriateError(f"'{recipe.model}' does not fit into the memory of {device}, not even with one picture")
        size //= 2
    if requested is not None and size < requested:
        raise StriateError(
            f"batch_size {recipe.batch_size} does not fit into the memory of {device}; {size * world_size} over "
            f"{world_size} worker(s) fits{_accumulate_hint(recipe, requested, size, fits)}"
        )
    return size


def _accumulate_hint(recipe: Recipe, requested: int, size: int, fits: Fits) -> str:
    """Suggests the same batch in more parts, if that fits."""
    part = -(-size // min(recipe.accumulate, size))
    parts = -(-requested // part)
    # Gradients stay in memory between the parts of a batch, so a part may have to be smaller than a batch that fits.
    while parts < requested and not fits(requested, parts):
        parts = min(2 * parts, requested)
    return f", or keep it and set accumulate: {parts}" if fits(requested, parts) else ""


def spare_memory(fits: Fits, pictures: int, accumulate: int, device: torch.device) -> int:
    """Measures the bytes of a GPU's memory that a training step leaves free.

    Args:
        fits: tries a batch size, as `trial` does.
        pictures: this worker's part of a batch.
        accumulate: parts in which the model processes it.
        device: the GPU.
    """
    free, _ = torch.cuda.mem_get_info(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    fits(pictures, accumulate)
    return max(0, free - (torch.cuda.max_memory_reserved(device) - before))


def is_lack_of_memory(error: BaseException) -> bool:
    """Returns whether PyTorch found too little memory, of a GPU or of the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)
    )


@contextlib.contextmanager
def memory_errors_explained(recipe: Recipe, batch_size: int, device: torch.device) -> Generator[None]:
    """Turns a lack of memory inside the block into an error that says what needs less.

    Args:
        recipe: `accumulate` is used.
        batch_size: pictures of a batch over all workers.
        device: device to train on.

    Raises:
        StriateError: when the memory of the device cannot hold what a training step needs.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lack_of_memory(error):
            raise
        raise StriateError(
            f"a training step with batch_size {batch_size} does not fit into the memory of {device}: use a smaller "
            f"batch_size or batch_size: auto, or keep it and set accumulate: {2 * recipe.accumulate} or more"
        ) from error


def trial(recipe: Recipe, model: Classifier, shape: tuple[int, int, int], device: torch.device) -> Fits:
    """Returns a function that tries a batch size by two training steps on black pictures.

    Two steps allocate all that a training does beside the weights: the gradients of what is not frozen, the optimizer's
    state (from the second step on) and the averaged copy.

    Args:
        recipe: the recipe; nothing is compiled, which would take minutes and no more memory.
        model: the model; it is copied and stays unchanged.
        shape: height, width and channels of its input.
        device: device to train on.
    """
    recipe = recipe.model_copy(update={"compile": False})

    def learn(pictures: int, accumulate: int) -> None:
        counts = {str(number): 1 for number in range(model.num_classes)}
        learner = Learner(
            recipe.model_copy(update={"accumulate": accumulate}),
            copy.deepcopy(model),
            class_counts=counts,
            label_sets=None if recipe.data.labels is None else [[]],
            total_steps=2,
            steps_per_epoch=1,
            device=device,
        )
        # The epoch in which the most layers are trained.
        learner.start_epoch(max(recipe.unfreeze, default=0))
        x = np.zeros((pictures, model.num_features), np.float32)
        if not recipe.cache_features:
            x = np.zeros((pictures, *shape), np.uint8)
        batch = Batch(x, np.zeros(pictures, np.int64), [""] * pictures, pictures)
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
