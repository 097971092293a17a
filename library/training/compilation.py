"""Compiles the differentiated part of a training step with torch.compile, and checks that it works before its use."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from library.errors import StriateError
from library.recipe import Recipe
from library.recipe.schema import COMPILED_STEPS
from library.runtimes.onnx_session import first_line


@dataclass(frozen=True)
class Compilation:
    """The result of compiling.

    Attributes:
        module: what computes the training step: the compiled module, or the eager one if compiling failed.
        seconds: duration, with the first run of each shape.
        error: type and first line of the compiler's error; None if it succeeded.
    """

    module: nn.Module
    seconds: float
    error: str | None = None

    def __str__(self) -> str:
        """A line for the log."""
        if self.error is None:
            return f"compiled the training step in {self.seconds:.1f} s"
        return f"compile: auto: training without torch.compile, which failed: {self.error}"


def is_compiled(recipe: Recipe, device: torch.device, total_steps: int) -> bool:
    """Whether a training is compiled; with `compile: auto` on CUDA only, from `COMPILED_STEPS` steps on."""
    if recipe.cache_features:
        return False
    if recipe.compile == "auto":
        return device.type == "cuda" and total_steps >= COMPILED_STEPS
    return recipe.compile


def compiled(
    module: nn.Module,
    run: Callable[[nn.Module], None],
    *,
    may_fail: bool,
    agree: Callable[[bool], bool] = lambda worked: worked,
) -> Compilation:
    """Compiles a module for fixed shapes, and runs it once before it is used for training.

    Args:
        module: computes the logits of a step. Its buffers are restored after the run, its gradients are removed.
        run: computes losses and gradients with the module that it is given, for each shape that will occur.
        may_fail: whether the module itself is used if the compiler fails; otherwise that is an error.
        agree: takes whether compiling worked in this worker, and returns whether it worked in all of them.

    Raises:
        StriateError: when the compiler failed, and `may_fail` is false.
    """
    start, error = time.monotonic(), None
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    network = _compile(module)
    try:
        run(network)
    except (torch.OutOfMemoryError, StriateError):
        raise
    except Exception as raised:  # Dynamo and Inductor raise errors of any type; the eager step raises others again
        error = first_line(raised)
        if not may_fail:
            raise StriateError(
                f"compile: true: torch.compile failed: {error}; compile: auto trains without it if it fails, and "
                "compile: false never uses it"
            ) from raised
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        module.zero_grad(set_to_none=True)
    if not agree(error is None):
        return Compilation(module, time.monotonic() - start, error or "it failed in another worker")
    return Compilation(network, time.monotonic() - start)


def _compile(module: nn.Module) -> nn.Module:
    # Batches have the same shape throughout a training. With fixed shapes the code is faster than for any shape.
    network = torch.compile(module, dynamic=False)
    assert isinstance(network, nn.Module)
    return network
