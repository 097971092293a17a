"""Pictures per second that are augmented picture by picture, and a batch at a time.

Both forms draw the same parameters for the same pictures, on one CPU thread and on all CPUs, in turn in every round:
CIFAR's augmentation of 32 x 32 pictures, and ImageNet's of photos. Picture by picture, each thread takes a batch, as
training from memory does; a batch at a time, torch has the threads. With CUDA, batches are also augmented there: what
they need is drawn on one CPU thread, and the pictures are copied to the GPU each time.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common.command_line import at_least, make_parser, run_benchmark
from benchmarks.common.measuring import RATE, measured_rounds
from benchmarks.common.report import print_table, spread
from library.pipeline import Pipeline
from library.pipeline.augmentation import Augmenter
from library.pipeline.inputs import InputPipeline, stack
from library.training.augmenting.choice import DeviceType
from library.training.augmenting.drawing import BatchDrawer
from library.training.augmenting.execution import augmented_tensor
from library.training.augmenting.operations import RaggedPictures


@dataclass(frozen=True)
class Workload:
    """Pictures and their augmentation.

    Attributes:
        name: for the result.
        augment: the augmentation.
        shapes: height and width of the pictures, in turn.
        side: side of the results.
        batch: pictures of a batch.
    """

    name: str
    augment: str
    shapes: Sequence[tuple[int, int]]
    side: int
    batch: int

    def pictures(self, batches: int) -> list[NDArray[np.uint8]]:
        """Blocks of colour with noise."""
        rng = np.random.default_rng(0)
        shapes = itertools.islice(itertools.cycle(self.shapes), self.batch * batches)
        return [_picture(rng, *shape) for shape in shapes]


_CIFAR = "random_crop(32, padding=4) | flip | random_erase(p=0.5, scale=[0.02, 0.2])"
_WORKLOADS = (
    Workload("CIFAR", _CIFAR, ((32, 32),), 32, 512),
    Workload("photos", "random_resized_crop(224) | flip", ((375, 500), (500, 375), (333, 500)), 224, 64),
)


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(__file__, __doc__, "", "--rounds 1 --batches 1 --out /tmp/results")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="measured rounds, after one that warms up (5)")
    parser.add_argument(
        "--batches", type=at_least(1), default=8, help="batches of a CIFAR round; photos: a quarter (8)"
    )
    return run_benchmark(__file__, parser, _measure, _show)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    cv2.setNumThreads(1)
    cores = len(os.sched_getaffinity(0))
    forms: list[tuple[str, DeviceType, int]] = [("one thread", "cpu", 1), (f"{cores} threads", "cpu", cores)]
    if torch.cuda.is_available():
        forms.append((torch.cuda.get_device_name(), "cuda", 1))
    workloads = {
        workload.name: _one_workload(workload, forms, options.rounds, options.batches) for workload in _WORKLOADS
    }
    return {
        "parameters": {"rounds": options.rounds, "batches": options.batches, "threads": cores},
        "workloads": workloads,
    }


def _one_workload(
    workload: Workload, forms: Sequence[tuple[str, DeviceType, int]], rounds: int, batches: int
) -> dict[str, Any]:
    batches = batches if workload.side <= 64 else max(1, batches // 4)
    pictures = workload.pictures(batches)
    inputs = InputPipeline.parse(
        "", f'resize([{workload.side}, {workload.side}], mode="exact")', (workload.side, workload.side), 3
    )
    augmenter = Augmenter(Pipeline.parse(workload.augment), 0)
    contestants: dict[str, Callable[[], dict[str, Any]]] = {}
    for name, device, threads in forms:
        if device == "cpu":
            contestants[f"one by one, {name}"] = lambda threads=threads: _rate(
                len(pictures), lambda epoch: _one_by_one(augmenter, inputs, pictures, workload.batch, threads, epoch)
            )
        contestants[f"in batches, {name}"] = lambda device=device, threads=threads: _rate(
            len(pictures),
            lambda epoch: _in_batches(
                BatchDrawer(augmenter, inputs), pictures, workload.batch, threads, torch.device(device), epoch
            ),
        )
    for run in contestants.values():
        run()
    measured = measured_rounds(contestants, rounds, workload.name)
    rates = {name: [figures[RATE] for figures in runs] for name, runs in measured.items()}
    ratios = {
        name: spread(
            [batch / one for batch, one in zip(rates[f"in batches, {name}"], rates[f"one by one, {name}"], strict=True)]
        )
        for name, device, _ in forms
        if device == "cpu"
    }
    return {
        "augment": workload.augment,
        "sizes": list(workload.shapes),
        "batch_size": workload.batch,
        RATE: {name: spread(values) for name, values in rates.items()},
        "ratio": ratios,
        "rounds": measured,
    }


def _rate(pictures: int, run: Callable[[int], None]) -> dict[str, Any]:
    start = time.perf_counter()
    run(int(start * 1000))  # another epoch each time
    seconds = time.perf_counter() - start
    return {RATE: round(pictures / seconds, 1), "seconds": round(seconds, 4)}


def _one_by_one(
    augmenter: Augmenter,
    inputs: InputPipeline,
    pictures: Sequence[NDArray[np.uint8]],
    batch: int,
    threads: int,
    epoch: int,
) -> None:
    def augment(first: int) -> None:
        numbers = range(first, first + batch)
        stack([inputs.fitted(augmenter.apply(pictures[number], epoch, f"train/{number}")) for number in numbers])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(augment, range(0, len(pictures), batch)))


def _in_batches(
    drawer: BatchDrawer,
    pictures: Sequence[NDArray[np.uint8]],
    batch: int,
    threads: int,
    device: torch.device,
    epoch: int,
) -> None:
    torch.set_num_threads(threads)
    for first in range(0, len(pictures), batch):
        part = RaggedPictures.pack(pictures[first : first + batch])
        keys = [f"train/{number}" for number in range(first, first + batch)]
        augmented_tensor(drawer.undone(part, epoch, keys), device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _picture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    blocks = rng.integers(0, 200, (-(-height // 16), -(-width // 16), 3), np.uint8)
    picture = blocks.repeat(16, 0).repeat(16, 1)[:height, :width]
    return picture + rng.integers(0, 50, picture.shape, np.uint8)


def _show(result: Mapping[str, Any]) -> None:
    for name, figures in result["workloads"].items():
        rows = [(form, *(rates[each] for each in ("min", "median", "max"))) for form, rates in figures[RATE].items()]
        rows += [
            (f"in batches / one by one, {form}", *(ratios[each] for each in ("min", "median", "max")))
            for form, ratios in figures["ratio"].items()
        ]
        print_table(f"{name}: {figures['augment']}", ("pictures/s", "min", "median", "max"), rows)


if __name__ == "__main__":
    sys.exit(main())
