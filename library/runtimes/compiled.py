"""Computes a network through torch.compile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from library.bundle.bundle import Bundle
from library.errors import StriateError
from library.models.classifier import autocast, probabilities
from library.pipeline.inputs import Prepared
from library.runtimes.fixed_batches import FixedBatches
from library.runtimes.onnx_session import Compute, first_line


def compiled(bundle: Bundle) -> Compute:
    """Compiles a single network with torch.compile (Inductor).

    On a CPU it is compiled once, for batches of any size. On CUDA it is compiled for each of a few fixed sizes, and the
    kernels of each size are recorded as a CUDA graph.

    The first calls compile, which takes from twenty seconds to minutes; torch's cache on disk shortens later starts. It
    computes in the same precision as eager. The bundle itself computes pictures of uint16 and float32, for which the
    network would have to be compiled again.

    Raises:
        StriateError: there is no C++ compiler, which a CPU needs.
    """
    if bundle.device.type == "cuda":
        network: Any = torch.compile(bundle.model, dynamic=False)
        return uint8_only(bundle, fixed_batches(bundle, network, graphs=True))
    _check_compiler()
    network = torch.compile(bundle.model, dynamic=True)

    def compute(pictures: Sequence[Any]) -> NDArray[np.float32]:
        batch = torch.from_numpy(np.stack(pictures))
        with torch.inference_mode(), autocast(bundle.device, bundle.record.precision):
            logits = network(batch.permute(0, 3, 1, 2))
        return probabilities(logits.float(), multilabel=bundle.record.multilabel).numpy()

    return uint8_only(bundle, compute)


def in_fixed_batches(bundle: Bundle) -> Compute:
    """Computes a single network as it is, in batches of a few fixed sizes, as cuDNN plans for each size."""
    return uint8_only(bundle, fixed_batches(bundle, bundle.model), "the network")


def fixed_batches(bundle: Bundle, network: Any, *, graphs: bool = False) -> FixedBatches:
    """Returns a bundle's network, or what was compiled from it, in fixed batches on the bundle's device."""
    record = bundle.record
    shape = (*record.input_size, record.channels)
    return FixedBatches(
        network,
        shape,
        len(bundle.classes),
        bundle.device,
        record.precision,
        multilabel=record.multilabel,
        graphs=graphs,
    )


def uint8_only(bundle: Bundle, compute: Compute, name: str = "torch.compile") -> Compute:
    """Leaves empty batches and uint16 and float32 to the bundle; raises StriateError for errors of `compute`."""

    def choose(pictures: Sequence[Prepared]) -> NDArray[np.float32]:
        if not pictures or any(isinstance(picture, tuple) or picture.dtype != np.uint8 for picture in pictures):
            return bundle.probabilities(pictures)
        try:
            return compute(pictures)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Dynamo, Inductor and CUDA graphs raise errors of any type
            raise StriateError(f"{name} fails: {first_line(error)}") from error

    return choose


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise StriateError(
            "torch.compile needs a C++ compiler on a CPU, and there is none: install g++ or clang++"
        ) from None
