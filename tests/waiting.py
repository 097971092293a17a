"""Waiting for other processes and threads."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], object], seconds: float = 180, *, every_s: float = 0.02) -> None:
    """Returns as soon as `condition()` is true, which is tried every `every_s` seconds; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(every_s)
