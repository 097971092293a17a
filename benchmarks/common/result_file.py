"""The result file of a benchmark, and the facts about machine and code that it holds."""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import REPOSITORY

_PACKAGES = (
    *("striate", "ray", "simplejpeg", "opencv-python-headless", "pillow", "numpy", "pyarrow"),
    *("torch", "torchvision", "timm"),
)


def machine(cores: int) -> dict[str, Any]:
    """Returns the facts about this machine and the code at this moment.

    Args:
        cores: number of cores that the benchmark uses.
    """
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    status = _git("status", "--porcelain")
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "cores_used": cores,
        "memory_gb": round(memory / 1e9, 1),
        "os": platform.freedesktop_os_release().get("PRETTY_NAME", platform.platform()),
        "kernel": platform.release(),
        "load_1min_before": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if status is None else bool(status),
        "code_digest": code_digest(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "imagemagick": _imagemagick(),
    }


def torch_facts(device: str | None = None) -> dict[str, Any]:
    """Returns the facts about PyTorch on this machine: its number of threads, and the name of its GPU or `cpu`.

    Args:
        device: `cpu` or `cuda`; None takes the GPU if there is one.
    """
    import torch  # only in benchmarks of training

    gpu = torch.cuda.is_available() if device is None else device.startswith("cuda")
    return {"cores_used": torch.get_num_threads(), "device": torch.cuda.get_device_name() if gpu else "cpu"}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_digest() -> str:
    """Returns the SHA-256 of the measured code and of the benchmarks, which also covers uncommitted changes."""
    digest = hashlib.sha256()
    for folder in ("library", "cluster", "jobs", "serve", "benchmarks"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _imagemagick() -> str | None:
    try:
        return subprocess.run(["mogrify", "-version"], capture_output=True, text=True).stdout.splitlines()[0]
    except (FileNotFoundError, IndexError):
        return None


def save(result: Mapping[str, Any], folder: Path) -> Path:
    """Writes `BENCHMARK-DATE-COMMIT.json`, or `...-2.json` if that exists, and returns the path."""
    path = new_path(result, folder)
    write(result, path)
    return path


def new_path(result: Mapping[str, Any], folder: Path) -> Path:
    """Returns the path of a result file that does not exist yet; creates the folder."""
    described = result["machine"]
    stem = f"{result['benchmark']}-{described['date'][:10]}-{(described['commit'] or 'nocommit')[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    return next(path for name in names if not (path := folder / f"{name}.json").exists())


def write(result: Mapping[str, Any], path: Path) -> None:
    """Writes a result file."""
    path.write_text(json.dumps(result, indent=1) + "\n")
