"""Who gets a core first where there are too few."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_NICE = 5
_THREADS = Path("/proc/self/task")


def yield_to_others() -> None:
    """Let HAProxy, and Serve's own looks at whether it lives, have the cores before this process.

    Under too much load refusals come late otherwise: HAProxy, which refuses in no time, gets no time. Threads that
    start later do as those that start them. Nothing is done where threads cannot be told from each other (macOS).
    """
    if not _THREADS.is_dir():
        return
    for thread in map(int, os.listdir(_THREADS)):
        with contextlib.suppress(ProcessLookupError):  # ended since it was listed
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICE)
