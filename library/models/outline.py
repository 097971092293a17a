"""Finds the names, dtypes and shapes of a model's weights from its call, without allocating them.

A call may come from an untrusted bundle: if the model were simply built, a head of 10^9 units would fill the memory
before its weights are found not to fit.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch.nn.modules.module import register_module_module_registration_hook

from library.errors import UsageError
from library.models.analysis import run
from library.models.build import SkipInitialisation, create
from library.models.lookup import info

#: Dtype and shape of each tensor, by name.
Outline: TypeAlias = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

#: Limit for the modules of a network; timm's largest have a few thousand.
_MAX_MODULES = 10_000


def outline(call: str, *, num_classes: int, head: Sequence[int], channels: int, size: tuple[int, int]) -> Outline:
    """Dtypes and shapes of the tensors in a model's weights.

    Args:
        call: the model's call.
        num_classes: number of outputs.
        head: units of the dense layers before the classifier.
        channels: channels of its pictures.
        size: height and width of its pictures in pixels.

    Raises:
        UsageError: the model does not exist, is too large, or cannot take such pictures.
    """
    with torch.device("meta"), torch.no_grad():
        try:
            with _limited_modules(call), SkipInitialisation():
                model = create(call, num_classes=num_classes, head=head, auxiliary=False).eval()
        except RuntimeError as error:  # a shape too large for torch's integers
            raise UsageError(f"the model '{call}' cannot be built: {error}") from error
        if info(call).input_size != (channels, *size):
            # Only for other sizes: torch loads its compiler for it, which takes seconds.
            run(model, torch.empty(1, channels, *size), training=False)
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}


@contextmanager
def _limited_modules(call: str) -> Generator[None]:
    """Raises UsageError when too many modules are created within the block."""
    num_modules = 0

    def count(*_: Any) -> None:
        nonlocal num_modules
        num_modules += 1
        if num_modules > _MAX_MODULES:
            raise UsageError(f"the model '{call}' has more than {_MAX_MODULES:,} parts")

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
