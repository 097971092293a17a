"""Computes a network through torch.compile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from library.bundle.bundle import Bundle
from library.errors import StriateError
from library.imaging.picture import Pixels
from library.models.classifier import autocast
from library.runtimes.onnx_session import Compute, first_line


def compiled(bundle: Bundle) -> Compute:
    """Compiles a single network with torch.compile (Inductor), for batches of any size.

    The first calls compile, which takes from twenty seconds to minutes; torch's cache on disk shortens later starts. It
    computes in the same precision as eager. The bundle itself computes pictures of uint16 and float32, for which the
    network would have to be compiled again.

    Raises:
        StriateError: there is no C++ compiler, which a CPU needs.
    """
    if bundle.device.type == "cpu":
        _check_compiler()
    device, precision = bundle.device, bundle.record.precision
    network: Any = torch.compile(bundle.model, dynamic=True)

    def compute(pictures: Sequence[Any]) -> NDArray[np.float32]:
        if not pictures or any(_dtype(picture) != np.uint8 for picture in pictures):
            return bundle.probabilities(pictures)
        batch = torch.from_numpy(np.stack(pictures))
        if device.type == "cuda":
            batch = batch.pin_memory().to(device, non_blocking=True)
        try:
            with torch.inference_mode(), autocast(device, precision):
                logits = network(batch.permute(0, 3, 1, 2))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Dynamo and Inductor raise errors of any type
            raise StriateError(f"torch.compile fails: {first_line(error)}") from error
        return torch.softmax(logits.float(), 1).cpu().numpy()

    return compute


def _dtype(picture: Pixels) -> Any:
    return picture.dtype


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise StriateError(
            "torch.compile needs a C++ compiler on a CPU, and there is none: install g++ or clang++"
        ) from None
