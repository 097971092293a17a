"""One network as a bundle holds it: from encoded pictures to features and log probabilities.

A picture's pixels are the same whatever else is asked for at the same time. Its probabilities agree within 1e-5 on a
CPU: matrix kernels are chosen by the processor, the batch and the number of threads, and differ in the last digits.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from library.bundle.description import WEIGHTS, BundleRecord
from library.bundle.weight_file import tensors_of
from library.errors import StriateError
from library.imaging import codec
from library.imaging.picture import Pixels
from library.models.build import SkipInitialisation, create
from library.models.classifier import autocast, choose_device
from library.models.tracing import Tracer
from library.pipeline.inputs import InputPipeline, stack

#: Of the largest map (float32) of the pictures that a CPU computes together; see `_pictures_at_once`.
_MAP_BYTES = 64 * 2**20


class SingleNetwork:
    """One network on its device.

    Args:
        record: of its bundle.
        weights: content of `model.safetensors`.
        device: where it predicts; auto, cpu, cuda, cuda:1 ...

    Raises:
        StriateError: when the weights are not this model's.
    """

    members: tuple[()] = ()

    def __init__(self, record: BundleRecord, weights: bytes, device: str) -> None:
        self._weights = weights
        self.device, self._precision = choose_device(device), record.precision
        self.inputs = InputPipeline.parse(record.steps, record.fit, record.input_size, record.channels)
        with SkipInitialisation():
            self.model = create(record.model, num_classes=len(record.classes), head=record.head, auxiliary=False)
        try:
            self.model.load_state_dict(tensors_of(weights))
        except RuntimeError as error:
            raise StriateError(f"the weights do not fit the model '{record.model}': {error}") from None
        if not _is_normalisation(self.model.mean, self.model.std):
            raise StriateError(f"the weights of '{record.model}' have a mean or deviation of pixels that is no such")
        self.model = self.model.to(self.device).to(memory_format=torch.channels_last).eval()
        self._at_once = _pictures_at_once(self.model, record) if self.device.type == "cpu" else sys.maxsize

    def prepare(self, data: bytes, limits: codec.Limits, columns: Mapping[str, Any]) -> Pixels:
        return self.inputs.prepare(data, limits, **columns)

    def prepare_pixels(self, pixels: Pixels, columns: Mapping[str, Any]) -> Pixels:
        return self.inputs.prepare_pixels(pixels, **columns)

    def log_probabilities(self, pictures: Sequence[Pixels]) -> NDArray[np.float32]:
        return self.with_features(pictures)[1]

    def with_features(self, pictures: Sequence[Pixels]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        features = [np.zeros((0, self.model.num_features), np.float32)]
        logits = [np.zeros((0, self.model.num_classes), np.float32)]
        for first in range(0, len(pictures), self._at_once):
            computed = self._computed(stack(pictures[first : first + self._at_once]))
            features.append(computed[0])
            logits.append(computed[1])
        return np.concatenate(features), np.concatenate(logits)

    def _computed(self, pictures: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        batch = torch.from_numpy(pictures)
        if self.device.type == "cuda":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        with torch.inference_mode(), autocast(self.device, self._precision):
            features = self.model.features(batch.permute(0, 3, 1, 2))
            logits = self.model.head_logits(features)
        return features.float().cpu().numpy(), torch.log_softmax(logits.float(), 1).cpu().numpy()

    def files(self) -> Mapping[str, bytes]:
        return {WEIGHTS: self._weights}


def _is_normalisation(mean: torch.Tensor, std: torch.Tensor) -> bool:
    return bool(mean.isfinite().all() and std.isfinite().all() and (std > 0).all())


def _pictures_at_once(model: Any, record: BundleRecord) -> int:
    """How many pictures a CPU computes together, at most.

    Small networks gain by large batches, as calling them costs more than computing: 64 pictures of LeNet-5 take a fifth
    of the time that they take one by one. Large networks at 224 x 224 are fastest with 4 to 32, with maps that stay
    near the cache, and 64 at once would take gigabytes for the maps of a VGG.
    """
    picture = torch.zeros((1, record.channels, *record.input_size), dtype=torch.uint8)
    tracer = Tracer(picture)
    with torch.no_grad(), tracer:
        model(picture)
    largest = max(4 * math.prod(operation.output) for operation in tracer.operations)
    return max(1, _MAP_BYTES // largest)
