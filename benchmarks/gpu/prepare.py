"""Makes the input of the GPU benchmark: photos as files and in shards, CIFAR-10 or pictures like it, and a bundle."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks import REPOSITORY
from benchmarks.common.datasets import write_dataset
from benchmarks.common.photo_files import make_photos
from benchmarks.gpu.settings import Folder, Settings, parse_part, run_striate
from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord
from library.models.build import create

_CLASSES = 10
_OUTPUTS = 1000
_SHARD_MB, _SMALL_SHARD_MB = 64.0, 16.0
_SMALL_PX = 32
#: Different pictures of each class of the CIFAR-like dataset; they are repeated.
_DISTINCT_SMALL = 5000
_CIFAR10 = REPOSITORY.parent / "shared" / "data" / "cifar10.tar.gz"


def main() -> None:
    """Prints what was made, as JSON."""
    _, settings, folder = parse_part(__doc__, ("prepare",))
    start = time.perf_counter()
    photos = make_photos(None, folder.photos, settings.photos)
    labels = [f"class-{number % _CLASSES}" for number in range(photos.distinct)]
    distinct = [(path.read_bytes(), label) for path, label in zip(photos.paths, labels, strict=False)]
    write_dataset(distinct, folder.dataset, settings.photos, _SHARD_MB, photos.source)
    for number, path in enumerate(photos.paths):
        target = folder.classes / labels[number % photos.distinct] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)
    small = _make_small(folder.small, settings)
    _make_bundle(folder, settings)
    facts: dict[str, Any] = {"photos": photos.facts | {"source": photos.source}, "cifar10": small}
    print(json.dumps(facts | {"seconds": round(time.perf_counter() - start, 2)}))


def _make_small(folder: Path, settings: Settings) -> str:
    """Ingests CIFAR-10 if it is beside the checkout, else writes pictures like it; returns what it is."""
    if _CIFAR10.is_file() and settings.small_pictures >= 50_000:
        run_striate("ingest", str(_CIFAR10), str(folder))
        return f"CIFAR-10 from {_CIFAR10.name}"
    distinct = min(_DISTINCT_SMALL, settings.small_pictures)
    numbers = {"train": range(distinct), "test": range(distinct, distinct + max(_CLASSES, distinct // 5))}
    for (name, chosen), count in zip(
        numbers.items(), (settings.small_pictures, settings.small_pictures // 5), strict=True
    ):
        write_dataset([_like_cifar(number) for number in chosen], folder / name, count, _SMALL_SHARD_MB, "synthetic")
    return f"synthetic, {distinct:,} different pictures: its accuracy says nothing about CIFAR-10"


def _like_cifar(number: int) -> tuple[bytes, str]:
    """A PNG of 32 x 32 pixels whose colours and stripes depend on its class, with noise."""
    label = number % _CLASSES
    random = np.random.default_rng(number)
    y, x = np.mgrid[0:_SMALL_PX, 0:_SMALL_PX]
    wave = np.sin((x * np.cos(label) + y * np.sin(label)) * (0.3 + 0.05 * label) + random.uniform(0, 6))
    base = np.array([25 * label, 255 - 20 * label, 128 + 12 * (label % 5)])
    pixels = base + 60 * wave[:, :, None] + random.normal(0, 30, (_SMALL_PX, _SMALL_PX, 3))
    _, data = cv2.imencode(".png", np.clip(pixels, 0, 255).astype(np.uint8))
    return data.tobytes(), f"class-{label}"


def _make_bundle(folder: Folder, settings: Settings) -> None:
    torch.manual_seed(0)
    record = BundleRecord(
        model=settings.model,
        classes=tuple(f"class {number}" for number in range(_OUTPUTS)),
        steps="rgb",
        fit=f'resize([{settings.side}, {settings.side}], mode="exact")',
        input_size=(settings.side, settings.side),
        channels=3,
    )
    Bundle.of_model(record, create(record.model, num_classes=_OUTPUTS), device="cpu").save(str(folder.bundle))


if __name__ == "__main__":
    sys.exit(main())
