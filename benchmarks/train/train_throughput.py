"""Measures pictures per second of training beside the limit and beside what one would write without Striate.

On a CPU: LeNet on MNIST, batch size 128. With --device cuda: any model on photos, beside synthetic tensors on the GPU.
benchmarks/README.md defines contestants and figures.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks import REPOSITORY
from benchmarks.common.command_line import at_least, make_parser, run_benchmark, work_folder
from benchmarks.common.measuring import STEADY, measured_rounds, ratios
from benchmarks.common.report import goal, print_rounds
from benchmarks.common.result_file import torch_facts
from jobs.train.driver import train
from jobs.train.plan import plan_train
from library.dataset.manifest import load_manifest
from library.dataset.shards import ShardReader
from library.errors import StriateError, UsageError
from library.imaging import codec
from library.models import info
from library.models.build import create
from library.models.classifier import autocast, choose_device
from library.recipe import Recipe
from library.training.progress import read_metrics

_SHARED = REPOSITORY.parent / "shared" / "data"
_LR = 0.02


@dataclass(frozen=True)
class Setup:
    """The input and the settings, the same for all contestants: a dataset, and its pictures as files."""

    dataset: str
    files: Path
    work: Path
    model: str
    size: int
    channels: int
    batch_size: int
    epochs: int
    device: str
    workers: int


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(
        __file__,
        __doc__,
        "",
        "--epochs 3 --rounds 1 --out /tmp/results",
        "--device cuda --model resnet50 --size 224 --batch-size 256",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--model", default="lenet5", help="call of the model (lenet5)")
    parser.add_argument("--size", type=at_least(1), help="side of the model's input in pixels (the model's default)")
    parser.add_argument("--source", type=Path, help="pictures (MNIST for one channel, photos-500.tar for three)")
    parser.add_argument("--batch-size", type=at_least(1), default=128, help="pictures per step (128)")
    parser.add_argument("--epochs", type=at_least(2), default=4, help="epochs; the first is not counted (4)")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="number of rounds (3)")
    parser.add_argument("--workers", type=at_least(1), default=1, help="training workers of striate (1)")
    return run_benchmark(
        __file__, parser, _measure, print_rounds, machine_facts=lambda options: torch_facts(options.device)
    )


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    channels, height, _ = info(options.model).input_size
    with work_folder(None) as work:
        setup = _setup(options, work, channels, options.size or height)
        contestants = {"limit": _limit, "striate": _striate, "image_folder": _image_folder}
        runs = {name: functools.partial(run, setup) for name, run in contestants.items()}
        rounds = measured_rounds(runs, options.rounds)
        pictures = load_manifest(setup.dataset).rows
    min_ratios = {"limit": 0.95 if options.device.startswith("cuda") else 0.85, "image_folder": 1.0}
    return {
        "parameters": {
            "model": options.model,
            "size": setup.size,
            "batch_size": options.batch_size,
            "epochs": options.epochs,
            "pictures": pictures,
            "workers": options.workers,
            "rounds": options.rounds,
        },
        "contestants": rounds,
        "goals": [
            goal(f"steady epochs, striate / {name}", ratios(rounds["striate"], rounds[name], STEADY), at_least=least)
            for name, least in min_ratios.items()
        ],
    }


def _setup(options: argparse.Namespace, work: Path, channels: int, size: int) -> Setup:
    source = options.source or _SHARED / ("mnist" if channels == 1 else "photos-500.tar")
    if not source.exists():
        raise UsageError(f"{source} does not exist; name pictures with --source")
    striate = Path(sys.executable).with_name("striate")
    done = subprocess.run([striate, "ingest", source, work / "data"], capture_output=True, text=True)
    if done.returncode:
        raise StriateError(f"ingest of {source} failed: {done.stderr.strip()[-500:]}")
    dataset = work / "data" / "train" if (work / "data" / "train").is_dir() else work / "data"
    for number, (label, data, name) in enumerate(_pictures(str(dataset))):
        folder = work / "files" / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:07d}.{name}").write_bytes(data)
    return Setup(
        str(dataset),
        work / "files",
        work,
        options.model,
        size,
        channels,
        options.batch_size,
        options.epochs,
        options.device,
        options.workers,
    )


def _pictures(dataset: str) -> Iterator[tuple[str, bytes, str]]:
    """Yields class, encoded picture and format of all rows."""
    for shard in load_manifest(dataset).shards:
        for table in ShardReader(f"{dataset}/{shard.name}"):
            columns = (table["label"].to_pylist(), table["image"].to_pylist(), table["format"].to_pylist())
            for label, image, name in zip(*columns, strict=True):
                yield label, image["bytes"], name


def _limit(setup: Setup) -> dict[str, Any]:
    """Measures a plain PyTorch loop over float tensors in memory, or over one synthetic batch on the GPU."""
    device = choose_device(setup.device)
    if device.type == "cuda":
        x = torch.rand(setup.batch_size, setup.channels, setup.size, setup.size, device=device)
        y = torch.zeros(setup.batch_size, dtype=torch.int64, device=device)
        x = x.contiguous(memory_format=torch.channels_last)
        steps = max(1, load_manifest(setup.dataset).rows // setup.batch_size)
        return _loop(setup, lambda: iter([(x, y)] * steps))
    pixels, labels = [], []
    classes: dict[str, int] = {}
    for label, data, _ in _pictures(setup.dataset):
        pixels.append(codec.decode(data))
        labels.append(classes.setdefault(label, len(classes)))
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous().float() / 255
    y = torch.tensor(labels)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.randperm(len(x))
        for first in range(0, len(x) - setup.batch_size + 1, setup.batch_size):
            rows = order[first : first + setup.batch_size]
            yield x[rows], y[rows]

    return _loop(setup, batches)


def _image_folder(setup: Setup) -> dict[str, Any]:
    """Measures torchvision's ImageFolder and a DataLoader with one process per core."""
    steps: list[Any] = [transforms.Grayscale()] if setup.channels == 1 else []
    steps += [transforms.Resize((setup.size, setup.size)), transforms.ToTensor()]
    folder = datasets.ImageFolder(str(setup.files), transforms.Compose(steps))
    loader = DataLoader(
        folder,
        setup.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=torch.get_num_threads(),
        persistent_workers=True,
        pin_memory=setup.device.startswith("cuda"),
    )
    return _loop(setup, lambda: iter(loader))


def _loop(setup: Setup, batches: Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]) -> dict[str, Any]:
    """Trains on the batches of each epoch; returns the median rate of all epochs but the first, and two times."""
    device = choose_device(setup.device)
    classes = len(load_manifest(setup.dataset).tally.classes)
    model = create(setup.model, num_classes=classes).to(device)
    if device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=_LR, momentum=0.9, nesterov=True)
    model.train()
    rates: list[float] = []
    began = time.perf_counter()
    first: float | None = None
    for _ in range(setup.epochs):
        start, pictures_read = time.perf_counter(), 0
        for x, y in batches():
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            optimizer.zero_grad(set_to_none=True)
            with autocast(device):
                logits = model(x)
            functional.cross_entropy(logits.float(), y).backward()
            optimizer.step()
            first = first or time.perf_counter() - began
            pictures_read += len(x)
        if device.type == "cuda":
            torch.cuda.synchronize()
        rates.append(pictures_read / (time.perf_counter() - start))
    return {
        STEADY: round(statistics.median(rates[1:]), 1),
        "first_step_s": round(first or 0.0, 2),
        "whole_s": round(time.perf_counter() - began, 2),
    }


def _striate(setup: Setup) -> dict[str, Any]:
    """Measures a recipe through Ray Train; checkpoints count in the whole time, not in the steady rate."""
    out = Path(tempfile.mkdtemp(dir=setup.work)) / "bundle"
    recipe = Recipe.parse(
        json.dumps(
            {
                "data": {"train": setup.dataset},
                "input": {"size": setup.size},
                "model": setup.model,
                "optimizer": {"name": "sgd", "lr": _LR, "momentum": 0.9},
                "schedule": {"name": "constant"},
                "batch_size": setup.batch_size,
                "epochs": setup.epochs,
            }
        )
    )
    clock, start = time.time(), time.perf_counter()
    result = train(plan_train(recipe, str(out)), workers=str(setup.workers), gpu=setup.device.startswith("cuda"))
    whole = time.perf_counter() - start
    lines = read_metrics(str(out / "logs"))
    return {
        STEADY: round(statistics.median(line["pictures_per_s"] for line in lines[1:]), 1),
        "data_wait": round(statistics.median(line["data_wait"] for line in lines[1:]), 4),
        "first_step_s": round((result.times.first_step or clock) - clock, 2),
        "whole_s": round(whole, 2),
    }


if __name__ == "__main__":
    sys.exit(main())
