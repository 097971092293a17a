"""Makes bundles with random weights, and one whose probabilities show its input pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord
from library.models.build import create
from library.pipeline import Pipeline
from library.steps import plugins

#: Classes of the photos that `write_photos` writes.
CLASSES = ("china", "flower", "hopper")
#: Allowed difference between two computations of a probability by one runtime on a CPU: matrix kernels depend on the
#: processor, the batch and the number of threads.
PROBABILITY_TOLERANCE = 1e-5


def make_bundle(
    folder: Path,
    seed: int = 0,
    classes: tuple[str, ...] = CLASSES,
    steps: str = "",
    model: str = "lenet5(in_chans=3)",
    size: int = 28,
) -> str:
    """Saves a bundle for pictures of three channels in `folder`; the seed decides its weights."""
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


def near(classes: Sequence[tuple[str, float]]) -> list[tuple[str, Any]]:
    """Ranked classes to compare with `==`, whose probabilities may differ by `PROBABILITY_TOLERANCE`."""
    return [(name, pytest.approx(share, rel=0, abs=PROBABILITY_TOLERANCE)) for name, share in classes]


#: Logit of a pixel of 255 in a pixel bundle, its largest.
_WHITE_LOGIT = 10.0


def make_pixel_bundle(
    folder: Path, classes: Sequence[str] = CLASSES, steps: str = "gaussian_blur(sigma=0.8)", side: int = 8
) -> str:
    """Saves a bundle whose probabilities encode its network's input pixels; `pixels_of` decodes them.

    Its dense layers are identities: the logit of each class but the last is the value of one pixel, and that of the
    last is 0. So the probabilities show which pixels reached the network, whatever kernels computed them.

    Args:
        folder: where it is saved.
        classes: names of the first classes.
        steps: its input pipeline, for pictures of three channels.
        side: side of the network's input in pixels.
    """
    units = 3 * side * side
    model = f"mlp(hidden=[{units}], in_chans=3, size={side})"
    names = (*classes, *(f"pixel {number}" for number in range(len(classes), units + 1)))
    network = create(model, num_classes=len(names))
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            identity = torch.eye(*tensor.shape) if tensor.ndim == 2 else torch.zeros(tensor.shape)
            tensor.copy_({"std": torch.ones(3), "head.0.weight": _WHITE_LOGIT * identity}.get(name, identity))
    record = BundleRecord(
        model=model,
        classes=names,
        steps=steps,
        fit=f'resize([{side}, {side}], mode="exact")',
        input_size=(side, side),
        channels=3,
        provenance=plugins.recorded(plugins.digests(plugins.used_by(Pipeline.parse(steps).steps))),
    )
    Bundle.of_model(record, network, "cpu").save(str(folder))
    return str(folder)


def pixels_of(probabilities: Sequence[float] | NDArray[np.float32]) -> NDArray[np.uint8]:
    """The input of a pixel bundle, height x width x 3, from all its probabilities."""
    logits = np.log(np.asarray(probabilities, np.float64))
    values = (logits[:-1] - logits[-1]) * 255 / _WHITE_LOGIT
    side = round((values.size / 3) ** 0.5)
    return np.rint(values).astype(np.uint8).reshape(3, side, side).transpose(1, 2, 0)
