"""Where tensors live and how they are computed: chosen here, assumed nowhere."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from library.errors import UsageError


def choose_device(wanted: str = "auto") -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU.

    Raises:
        UsageError: for a device that this machine lacks.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UsageError(f"unknown device '{wanted}'; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device '{wanted}': this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def autocast(device: torch.device, precision: str = "auto") -> contextlib.AbstractContextManager[Any]:
    """bfloat16 autocast for `auto` on CUDA and for `bf16`; nothing for `fp32` and on the CPU."""
    enabled = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16) if enabled else contextlib.nullcontext()
