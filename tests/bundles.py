"""Classifiers with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from library.bundle import Bundle
from library.bundle_record import BundleRecord
from library.models import create

#: Of the photos of `write_photos`.
CLASSES = ("china", "flower", "hopper")


def make_bundle(
    folder: Path,
    seed: int = 0,
    classes: tuple[str, ...] = CLASSES,
    steps: str = "",
    model: str = "lenet5(in_chans=3)",
    size: int = 28,
) -> str:
    """A bundle for pictures of three channels, saved in `folder`; the seed makes its weights."""
    torch.manual_seed(seed)
    record = BundleRecord(
        model=model,
        classes=classes,
        steps=steps,
        fit=f'resize([{size}, {size}], mode="exact")',
        input_size=(size, size),
        channels=3,
        provenance={"recipe": "made by a test"},
    )
    Bundle.of_model(record, create(model, num_classes=len(classes)), "cpu").save(str(folder))
    return str(folder)
