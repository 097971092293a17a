"""Waiting for what other processes and threads do, and what to wait for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Return when `condition` holds; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def has_checkpoint(run: Path) -> bool:
    """Whether Ray Train has taken up a checkpoint of the run in this folder, from which it would go on."""
    snapshot = run / "checkpoint_manager_snapshot.json"
    return snapshot.exists() and "step-" in snapshot.read_text()
