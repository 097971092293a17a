"""Priorities of a process's threads."""

from __future__ import annotations

import subprocess
import sys

import pytest

_LOWEST = 19  # the limit of the system; the tests themselves may run under `nice`

_PRINTED = """
import os, threading
from serve.processes import yield_to_others
ready, end = threading.Event(), threading.Event()
def wait():
    ready.set()
    end.wait()
threading.Thread(target=wait).start()
ready.wait()
before = os.getpriority(os.PRIO_PROCESS, 0)
yield_to_others()
print(before, *(os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir("/proc/self/task")))
end.set()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux")
def test_threads_that_run_already_let_others_have_the_cores_too() -> None:
    printed = subprocess.run([sys.executable, "-c", _PRINTED], check=True, capture_output=True, text=True).stdout
    before, *threads = map(int, printed.split())
    assert len(threads) >= 2
    assert set(threads) == {min(before + 5, _LOWEST)}
