"""Calls that can wait a moment, made together and out of the way of requests.

Each record of Ray's metrics lets another thread run: in the midst of a request that costs many times the record itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

_log = logging.getLogger("striate.serve")

_EVERY_S = 0.2
#: A thread that cannot keep up loses the oldest, rather than filling the memory.
_MOST = 100_000


class Notes:
    """A thread that makes the calls it is given, a few times a second."""

    def __init__(self) -> None:
        self._calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque(maxlen=_MOST)
        threading.Thread(target=self._run, name="notes", daemon=True).start()

    def add(self, call: Callable[..., None], *arguments: Any) -> None:
        """Have `call(*arguments)` made soon."""
        self._calls.append((call, arguments))

    def _run(self) -> None:
        while True:
            while self._calls:
                call, arguments = self._calls.popleft()
                try:
                    call(*arguments)
                except Exception:  # a note that cannot be taken is no reason to lose the others
                    _log.exception("a measure could not be taken")
            time.sleep(_EVERY_S)  # to be woken for each would cost the event loop a system call a request
