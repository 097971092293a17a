"""The tests of tests/gpu can be collected without a GPU, so that a change that breaks their imports is noticed."""

from __future__ import annotations

import subprocess
import sys

from tests import ROOT


def test_the_tests_for_gpus_can_be_collected_on_any_machine() -> None:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--collect-only", "-q", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "test_learning.py" in done.stdout


def test_no_other_command_runs_them() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/gpu/test_learning.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 5, "pytest has found tests without -m gpu"
