"""The bundles and request bodies of the serving benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.common.photo_files import make_photos
from benchmarks.serve.http_load import Bodies
from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord
from library.imaging import codec
from library.models import info
from library.models.build import create

_SMALL_PX = 28


@dataclass(frozen=True)
class Served:
    """A model to serve: its name, its bundle, and the request bodies."""

    name: str
    bundle: Path
    bodies: Bodies


def make_served(name: str, work: Path, photos: int, tar: Path | None) -> Served:
    """Writes a bundle with untrained weights, which take as long as trained ones, and photos.

    Args:
        name: `lenet5` (grey, 28x28, 10 classes; its photos are reduced to that size, the size of MNIST) or `resnet50`
            (colour, 224x224, 1000 classes; photos in their own size).
        work: folder to write into.
        photos: number of photos.
        tar: tar of photos; None as in `make_photos`.
    """
    make_bundle(name, work / name)
    photo_set = make_photos(tar, work / f"{name}-photos", photos)
    if name == "lenet5":
        for path in photo_set.paths:
            path.write_bytes(_reduced(path.read_bytes()))
    return Served(name, work / name, Bodies(photo_set.folder, photos))


def make_bundle(name: str, folder: Path) -> None:
    """Writes a bundle with untrained weights: grey and 10 classes for a model of one channel, else colour and 1000."""
    torch.manual_seed(0)
    channels, side, _ = info(name).input_size
    classes = 10 if channels == 1 else 1000
    record = BundleRecord(
        model=name,
        classes=tuple(f"class {number}" for number in range(classes)),
        steps="grayscale" if channels == 1 else "rgb",
        fit=f'resize([{side}, {side}], mode="exact")',
        input_size=(side, side),
        channels=channels,
    )
    Bundle.of_model(record, create(record.model, num_classes=classes), device="cpu").save(str(folder))


def _reduced(data: bytes) -> bytes:
    pixels = codec.decode(data)
    grey = pixels if pixels.shape[2] == 1 else np.asarray(cv2.cvtColor(pixels[:, :, :3], cv2.COLOR_RGB2GRAY))
    small = np.asarray(cv2.resize(grey, (_SMALL_PX, _SMALL_PX), interpolation=cv2.INTER_AREA))
    return codec.encode(small[:, :, None], codec.Encoding.parse("jpeg:90"))[0]
