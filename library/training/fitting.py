"""How large a batch a GPU's memory takes: found by trying, before training starts."""

from __future__ import annotations

from typing import Any

import torch

from library.device import autocast
from library.errors import StriateError
from library.recipe import Recipe

_LARGEST = 1024
#: What `auto` is on CPUs.
CPU_BATCH_SIZE = 128


def fitting_batch_size(
    recipe: Recipe, model: Any, shape: tuple[int, int, int], device: torch.device, world_size: int
) -> int:
    """This worker's part of the recipe's batch size; for `auto` the largest power of two that fits.

    On CPUs `auto` is 128 over all workers.

    Args:
        recipe: `batch_size`, `accumulate` and `precision` are read.
        model: moved to the device, where it stays.
        shape: height, width and channels of its input.
        device: whose memory it is.
        world_size: workers that share the batch.

    Raises:
        StriateError: when the recipe's batch does not fit; says which would.
    """
    wanted = None if recipe.batch_size == "auto" else max(1, -(-int(recipe.batch_size) // world_size))
    if device.type != "cuda":
        return wanted if wanted is not None else max(1, CPU_BATCH_SIZE // world_size)
    model.to(device)
    size = wanted if wanted is not None else _LARGEST
    while not _fits(recipe, model, shape, device, max(1, size // recipe.accumulate)):
        if size == 1:
            raise StriateError(
                f"not even one picture of {shape} fits into the memory of {device} with '{recipe.model}'"
            )
        size //= 2
    if wanted is not None and size < wanted:
        raise StriateError(
            f"batch_size {recipe.batch_size} does not fit into the memory of {device}: {size * world_size} would, over "
            f"{world_size} worker(s); or keep it and set accumulate: {-(-wanted // size) * recipe.accumulate}"
        )
    return size


def _fits(recipe: Recipe, model: Any, shape: tuple[int, int, int], device: torch.device, pictures: int) -> bool:
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        x = torch.zeros((pictures, shape[2], *shape[:2]), dtype=torch.uint8, device=device)
        with autocast(device, recipe.precision):
            loss = sum(logits.float().sum() for logits, _ in model.train().forward_train(x))
        torch.autograd.backward(torch.as_tensor(loss))
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        for name, buffer in model.named_buffers():  # batch norms have seen zeros
            buffer.copy_(kept[name])
        torch.cuda.empty_cache()
    return True
