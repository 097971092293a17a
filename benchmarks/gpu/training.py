"""Parts of the GPU benchmark that train: a plain loop, ImageFolder, and recipes through the command line.

Each runs in a process of its own and prints its figures as JSON. benchmarks/README.md defines them.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks import REPOSITORY
from benchmarks.gpu.settings import Folder, Settings, parse_part, run_striate
from library.models.build import create
from library.models.classifier import autocast, choose_device
from library.training.progress import read_metrics

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]

_CLASSES = 10
_LR = 0.02
_WARM_UP_STEPS = 8


def main() -> None:
    """Prints the figures of one part, as JSON."""
    name, settings, folder = parse_part(__doc__, tuple(_PARTS))
    print(json.dumps(_PARTS[name](settings, folder)))


def _synthetic(settings: Settings, _: Folder) -> dict[str, Any]:
    """Measures a plain PyTorch loop over one batch that is on the device already: the limit."""
    device = choose_device(settings.device)
    x = torch.rand(settings.batch_size, 3, settings.side, settings.side, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.zeros(settings.batch_size, dtype=torch.int64, device=device)

    def batches() -> Batches:
        while True:
            yield x, y

    return _plain_loop(settings, device, batches())


def _image_folder(settings: Settings, folder: Folder) -> dict[str, Any]:
    """Measures torchvision's ImageFolder and a DataLoader with one process per CPU, with the streamed augmentation."""
    device, processes = choose_device(settings.device), len(os.sched_getaffinity(0))
    steps = [
        transforms.RandomResizedCrop(settings.side),
        transforms.RandomHorizontalFlip(),
        transforms.PILToTensor(),
    ]
    files = datasets.ImageFolder(str(folder.classes), transforms.Compose(steps))
    loader: Any = DataLoader(
        files,
        settings.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=processes,
        persistent_workers=True,
        pin_memory=settings.on_gpu,
    )

    def batches() -> Batches:
        while True:
            yield from loader

    return {"processes": processes, **_plain_loop(settings, device, batches())}


def _plain_loop(settings: Settings, device: torch.device, batches: Batches) -> dict[str, Any]:
    """Trains in bf16 with channels last until the time is over; the first steps are not counted."""
    model = create(settings.model, num_classes=_CLASSES).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=_LR, momentum=0.9, nesterov=True)
    model.train()

    def step() -> int:
        x, y = next(batches)
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        with autocast(device):
            logits = model(x)
        functional.cross_entropy(logits.float(), y).backward()
        optimizer.step()
        return len(x)

    began = time.perf_counter()
    step()
    _wait_for(device)
    first_step_s = time.perf_counter() - began
    for _ in range(_WARM_UP_STEPS):
        step()
    _wait_for(device)
    start, pictures, steps = time.perf_counter(), 0, 0
    while time.perf_counter() - start < settings.seconds or not steps:
        pictures += step()
        steps += 1
        if steps % 10 == 0:
            _wait_for(device)  # otherwise steps would be enqueued faster than they run
    _wait_for(device)
    return {
        "pictures_per_s": round(pictures / (time.perf_counter() - start), 1),
        "first_step_s": round(first_step_s, 2),
        "steps": steps,
    }


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _resident(settings: Settings, folder: Folder) -> dict[str, Any]:
    """Measures a recipe whose pictures are decoded in memory, without augmentation."""
    return _recipe(settings, folder, "resident", {})


def _resident_augmented(settings: Settings, folder: Folder) -> dict[str, Any]:
    """Measures a recipe whose pictures are decoded in memory and augmented anew in each epoch."""
    return _recipe(settings, folder, "resident-augmented", {"augment": _augment(settings)})


def _streamed(settings: Settings, folder: Folder) -> dict[str, Any]:
    """Measures a recipe whose pictures are read from shards, decoded and augmented in each epoch."""
    return _recipe(settings, folder, "streamed", {"augment": _augment(settings)}, max_resident_mb=0)


def _augment(settings: Settings) -> str:
    return f"random_resized_crop({settings.side}) | flip"


def _recipe(
    settings: Settings, folder: Folder, name: str, fields: Mapping[str, Any], max_resident_mb: int = 16_384
) -> dict[str, Any]:
    values = {
        "data": {"train": str(folder.dataset), "max_resident_mb": max_resident_mb},
        "input": {"steps": "rgb", "size": settings.side},
        "model": settings.model,
        "optimizer": {"name": "sgd", "lr": _LR, "momentum": 0.9},
        "schedule": {"name": "constant"},
        "batch_size": settings.batch_size,
        "epochs": settings.epochs,
        **fields,
    }
    recipe = folder.path / f"{name}.json"
    recipe.write_text(json.dumps(values))
    return _trained(settings, str(recipe), str(folder.path / name))


def _cifar10_fast(settings: Settings, folder: Folder) -> dict[str, Any]:
    """Measures the recipe cifar10-fast with one seed, as a command."""
    recipe = REPOSITORY / "jobs" / "recipes" / "cifar10-fast.yaml"
    overrides = [f"data.train={folder.small / 'train'}", f"data.val={folder.small / 'test'}", *settings.overrides]
    sets = [word for override in overrides for word in ("--set", override)]
    return _trained(settings, str(recipe), str(folder.path / "cifar10-fast"), *sets)


def _trained(settings: Settings, recipe: str, out: str, *options: str) -> dict[str, Any]:
    """Trains by a command; returns its time, and rate and waiting of its epochs without the first."""
    gpu = "--gpu" if settings.on_gpu else "--no-gpu"
    report, whole_s = run_striate("train", recipe, "--out", out, gpu, *options)
    epochs = read_metrics(f"{out}/logs")
    counted = epochs[1:] or epochs
    return {
        "pictures_per_s": round(statistics.median(epoch["pictures_per_s"] for epoch in counted), 1),
        "data_wait": round(statistics.median(epoch["data_wait"] for epoch in counted), 4),
        "training_s": report["seconds"],
        "whole_s": whole_s,
        "epochs": [{name: epoch[name] for name in ("seconds", "pictures_per_s", "data_wait")} for epoch in epochs],
        **{name: report[name] for name in ("train_loss", "val_top1") if name in report},
    }


_PARTS: Mapping[str, Callable[[Settings, Folder], dict[str, Any]]] = {
    "synthetic": _synthetic,
    "streamed": _streamed,
    "resident": _resident,
    "resident_augmented": _resident_augmented,
    "image_folder": _image_folder,
    "cifar10_fast": _cifar10_fast,
}

if __name__ == "__main__":
    sys.exit(main())
