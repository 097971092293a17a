"""Measures how many pictures a second a model of the catalogue answers, with random weights on pictures of noise.

measured = measure_throughput("resnet50", batch_size=8, device="cpu", seconds=5)
measured.pictures_per_s
"""

from __future__ import annotations

import platform
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from library.errors import UsageError
from library.models.build import create
from library.models.call import parse_call
from library.models.lookup import info


@dataclass(frozen=True)
class Throughput:
    """Pictures a second of one model, forward only, from uint8 pictures on the device to logits, in float32.

    Attributes:
        pictures_per_s: from the median time of a batch.
        batch_size: pictures of a batch.
        batches: batches that were timed.
        fastest_s: time of the fastest batch in seconds.
        slowest_s: of the slowest, likewise.
    """

    pictures_per_s: float
    batch_size: int
    batches: int
    fastest_s: float
    slowest_s: float


def measure_throughput(name: str, *, batch_size: int, device: str, seconds: float) -> Throughput:
    """Times the forward pass of a model.

    Weights do not change how long a network takes, so they are random. One batch runs first and is not timed.

    Args:
        name: of the model, or its call.
        batch_size: number of pictures in a batch.
        device: `cpu`, `cuda` or `cuda:1`.
        seconds: time after which no further batch begins; at least one is timed.

    Raises:
        UsageError: the model does not exist, or a batch does not fit into the memory of a GPU.
    """
    call = parse_call(name)
    facts = info(call)
    where = torch.device(device)
    try:
        model = create(call, num_classes=facts.num_classes, auxiliary=False).eval().to(where)
        pictures = torch.randint(0, 256, (batch_size, *facts.input_size), dtype=torch.uint8, device=where)
        times: list[float] = []
        with torch.inference_mode():
            model(pictures)
            _wait(where)
            end = time.perf_counter() + seconds
            while not times or time.perf_counter() < end:
                start = time.perf_counter()
                model(pictures)
                _wait(where)
                times.append(time.perf_counter() - start)
    except torch.cuda.OutOfMemoryError as error:
        raise UsageError(f"{call}: {batch_size} pictures do not fit into the memory of {device}: {error}") from error
    return Throughput(batch_size / statistics.median(times), batch_size, len(times), min(times), max(times))


def chosen_device(device: str) -> str:
    """Returns `cuda` or `cpu` for `auto`, and any other usable device as it is.

    Raises:
        UsageError: there is no such device, or no GPU.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"--device {device}: use auto, cpu, cuda or cuda:1") from error
    if kind.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {device}: use auto, cpu, cuda or cuda:1")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {device}: this machine has {torch.cuda.device_count()} usable GPUs")
    return device


def device_name(device: str) -> str:
    """Names what computes, e.g. `NVIDIA H100` or `AMD EPYC 7B13, 2 threads`."""
    where = torch.device(device)
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    facts = Path("/proc/cpuinfo")
    line = re.search(r"^model name\s*:\s*(.+)$", facts.read_text("utf-8"), re.MULTILINE) if facts.exists() else None
    name = line[1] if line else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def _wait(device: torch.device) -> None:
    # A GPU computes while Python goes on.
    if device.type == "cuda":
        torch.cuda.synchronize(device)
