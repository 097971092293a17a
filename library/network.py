"""One network as a bundle holds it: from encoded pictures to features and log probabilities.

On a CPU a picture gets the same bits whatever else is asked for at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from library import codec
from library.bundle_record import WEIGHTS, BundleRecord
from library.bundle_weights import tensors_of
from library.device import autocast, choose_device
from library.errors import StriateError
from library.inputs import InputPipeline, stack
from library.models import create
from library.models.tracing import Tracer
from library.models.unfilled import Unfilled
from library.picture import Pixels

_SMALL_FLOPS = 2e7
# A LeNet takes 0.49 ms for 4 pictures, 0.43 for 2 and 1.08 for 16: one alone costs little more, and many a quarter.
_SMALL_BLOCK = 4


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
        with Unfilled():
            self.model = create(record.model, num_classes=len(record.classes), head=record.head, auxiliary=False)
        try:
            self.model.load_state_dict(tensors_of(weights))
        except RuntimeError as error:
            raise StriateError(f"the weights do not fit the model '{record.model}': {error}") from None
        if not _is_normalisation(self.model.mean, self.model.std):
            raise StriateError(f"the weights of '{record.model}' have a mean or deviation of pixels that is no such")
        self.model = self.model.to(self.device).to(memory_format=torch.channels_last).eval()
        self._block = _block_pictures(self.model, record) if self.device.type == "cpu" else None

    def prepare(self, data: bytes, limits: codec.Limits, columns: Mapping[str, Any]) -> Pixels:
        return self.inputs.prepare(data, limits, **columns)

    def prepare_pixels(self, pixels: Pixels, columns: Mapping[str, Any]) -> Pixels:
        return self.inputs.prepare_pixels(pixels, **columns)

    def log_probabilities(self, pictures: Sequence[Pixels]) -> NDArray[np.float32]:
        return self.with_features(pictures)[1]

    def with_features(self, pictures: Sequence[Pixels]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        dtypes = [picture.dtype for picture in pictures]
        if len(set(dtypes)) > 1:
            # Each by itself: together they would be scaled to float before the network, which gives other bits.
            rows = [[row for row, one in enumerate(dtypes) if one == dtype] for dtype in set(dtypes)]
            parts = [self.with_features([pictures[row] for row in some]) for some in rows]
            back = np.argsort(np.concatenate(rows))
            return np.concatenate([one for one, _ in parts])[back], np.concatenate([one for _, one in parts])[back]
        if self._block is None:
            return self._computed(stack(pictures))
        features = [np.zeros((0, self.model.num_features), np.float32)]
        logits = [np.zeros((0, self.model.num_classes), np.float32)]
        for first in range(0, len(pictures), self._block):
            block = list(pictures[first : first + self._block])
            real = len(block)
            block += [np.zeros_like(block[0])] * (self._block - real)
            for made, part in zip((features, logits), self._computed(stack(block)), strict=True):
                made.append(part[:real])
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


def _block_pictures(model: Any, record: BundleRecord) -> int:
    """How many pictures a CPU computes at once: always as many, whatever the batch.

    Matrix and convolution kernels are chosen by the size of the batch, and differ in the last bit: batches of one size
    make a picture's probabilities the same bits, whoever asks and whatever else is asked for. Small networks cost more
    to call than to compute; for large ones a batch gains little on a CPU.
    """
    picture = torch.zeros((1, record.channels, *record.input_size), dtype=torch.uint8)
    tracer = Tracer(picture)
    with torch.no_grad(), tracer:
        model(picture)
    flops = 2 * sum(operation.multiply_adds for operation in tracer.operations)
    return _SMALL_BLOCK if flops <= _SMALL_FLOPS else 1
