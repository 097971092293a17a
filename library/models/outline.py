"""What a model's weights must look like, from its call alone: the model is made without memory.

A call may come with the bundle of a stranger. Made right away, a network with a head of 10^9 units would take all
memory before its weights are seen not to fit.
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

#: Of each tensor by name: dtype and shape.
Outline: TypeAlias = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

#: The largest networks of timm have a few thousand.
_MAX_MODULES = 10_000


def outline(call: str, *, num_classes: int, head: Sequence[int], channels: int, size: tuple[int, int]) -> Outline:
    """Tensors that the weights of a model hold.

    Args:
        call: of the model.
        num_classes: outputs.
        head: units of its dense layers.
        channels: of its pictures.
        size: height and width of its pictures.

    Raises:
        UsageError: no such model, one without end, or one that does not take such pictures.
    """
    with torch.device("meta"), torch.no_grad():
        try:
            with _few_modules(call), SkipInitialisation():
                model = create(call, num_classes=num_classes, head=head, auxiliary=False).eval()
        except RuntimeError as error:  # a shape beyond what torch can count
            raise UsageError(f"the model '{call}' cannot be made: {error}") from error
        if info(call).input_size != (channels, *size):
            # Torch loads its compiler for that, which takes seconds.
            run(model, torch.empty(1, channels, *size), training=False)
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}


@contextmanager
def _few_modules(call: str) -> Generator[None]:
    """Ends what makes modules without end within the block."""
    made = 0

    def count(*_: Any) -> None:
        nonlocal made
        made += 1
        if made > _MAX_MODULES:
            raise UsageError(f"the model '{call}' has more than {_MAX_MODULES:,} parts")

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
