"""The classifier of every server in the comparison: prepares and classifies pictures, from bytes or Pillow images.

With `BENCH_CODE=bundle` it is Striate's code, so that only the serving differs; with `plain` it is what one would write
with Pillow, torchvision and PyTorch.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms import v2

from library.bundle.bundle import Bundle
from library.bundle.description import load_record
from library.models.build import create

_TOP = 5


class BundleCode:
    """Prepares and classifies with a Striate bundle."""

    def __init__(self, uri: str) -> None:
        self._bundle = Bundle.load(uri, "cpu")
        self._classes = self._bundle.classes

    def prepare(self, data: bytes) -> Any:
        return self._bundle.prepare(data)

    def prepare_image(self, image: Image.Image) -> Any:
        pixels = np.asarray(image)
        return self._bundle.prepare_pixels(pixels[:, :, None] if pixels.ndim == 2 else pixels)

    def classify(self, prepared: Sequence[Any]) -> list[dict[str, Any]]:
        return [_answer(row, self._classes) for row in torch.from_numpy(self._bundle.probabilities(prepared))]


class PlainCode:
    """Prepares with Pillow and torchvision's transforms, and classifies with a PyTorch model."""

    def __init__(self, uri: str) -> None:
        record = load_record(uri)
        self._classes = record.classes
        self._mode = "L" if record.channels == 1 else "RGB"
        self._transform = v2.Compose([v2.Resize(record.input_size, antialias=True), v2.PILToTensor()])
        self._model = create(record.model, num_classes=len(record.classes), auxiliary=False).eval()
        self._model.load_state_dict(load_file(Path(uri) / "model.safetensors"))

    def prepare(self, data: bytes) -> Any:
        return self.prepare_image(Image.open(io.BytesIO(data)))

    def prepare_image(self, image: Image.Image) -> Any:
        return self._transform(image.convert(self._mode))

    def classify(self, prepared: Sequence[Any]) -> list[dict[str, Any]]:
        with torch.inference_mode():
            probabilities = self._model(torch.stack(list(prepared))).softmax(1)
        return [_answer(row, self._classes) for row in probabilities]


def classifier() -> BundleCode | PlainCode:
    """Returns the classifier that the variables `BENCH_BUNDLE`, `BENCH_CODE` and `BENCH_THREADS` name."""
    threads = int(os.environ["BENCH_THREADS"])
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    code = PlainCode if os.environ["BENCH_CODE"] == "plain" else BundleCode
    return code(os.environ["BENCH_BUNDLE"])


def batch_size() -> int:
    """Returns the largest batch of a server with batching, from the variable `BENCH_BATCH`."""
    return int(os.environ["BENCH_BATCH"])


def _answer(row: torch.Tensor, classes: Sequence[str]) -> dict[str, Any]:
    values, order = row.topk(min(_TOP, len(classes)))
    pairs = zip(order.tolist(), values.tolist(), strict=True)
    return {"classes": [{"class": classes[number], "probability": value} for number, value in pairs]}
