"""What computes a bundle's probabilities: one network, or an ensemble of bundles.

The pixels prepared from a picture do not depend on the batch it is in. Its probabilities agree within 1e-5 on a CPU:
the processor, the batch and the number of threads decide which matrix kernel runs, and kernels differ in the last
digits.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from library.bundle.description import MEMBERS, WEIGHTS, BundleRecord
from library.bundle.weight_file import tensors_of
from library.errors import StriateError, UsageError
from library.imaging import codec
from library.imaging.picture import Pixels
from library.models.build import SkipInitialisation, create
from library.models.classifier import autocast, choose_device, log_probabilities
from library.models.tracing import Tracer
from library.pipeline.inputs import InputPipeline, Prepared, stack

#: Computes the probabilities (N x classes) of pictures that are prepared for one member.
Predictor: TypeAlias = Callable[[Sequence[Any]], NDArray[np.float32]]

#: Limit for the largest feature map (float32) of a batch on a CPU; see `_cpu_batch_size`.
_MAP_BYTES = 64 * 2**20


class SingleNetwork:
    """One network on its device.

    Args:
        record: the bundle's record.
        weights: content of `model.safetensors`.
        device: auto, cpu, cuda, cuda:1 ...

    Raises:
        StriateError: the weights do not fit the model.
    """

    def __init__(self, record: BundleRecord, weights: bytes, device: str) -> None:
        self._weights = weights
        self.device, self._precision = choose_device(device), record.precision
        self._multilabel = record.multilabel
        self.inputs = InputPipeline.parse(record.steps, record.fit, record.input_size, record.channels)
        with SkipInitialisation():
            self.model = create(record.model, num_classes=len(record.classes), head=record.head, auxiliary=False)
        try:
            self.model.load_state_dict(tensors_of(weights))
        except RuntimeError as error:
            raise StriateError(f"the weights do not fit the model '{record.model}': {error}") from None
        if not _is_normalisation(self.model.mean, self.model.std):
            raise StriateError(f"the weights of '{record.model}' have a mean or deviation of pixels that is not valid")
        self.model = self.model.to(self.device).to(memory_format=torch.channels_last).eval()
        self._batch_size = _cpu_batch_size(self.model, record) if self.device.type == "cpu" else sys.maxsize

    def prepare(self, data: bytes, limits: codec.Limits, columns: Mapping[str, Any]) -> Pixels:
        """Returns the model's input (height x width x channels) from an encoded picture; raises BadPicture."""
        return self.inputs.prepare(data, limits, **columns)

    def prepare_pixels(self, pixels: Pixels, columns: Mapping[str, Any]) -> Pixels:
        """Like `prepare`, from a decoded picture (height x width x channels)."""
        return self.inputs.prepare_pixels(pixels, **columns)

    def log_probabilities(self, pictures: Sequence[Pixels]) -> NDArray[np.float32]:
        """Returns natural logarithms of probabilities (N x classes) for prepared pictures."""
        return self.with_features(pictures)[1]

    def with_features(self, pictures: Sequence[Pixels]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns the head's inputs (N x features) and `log_probabilities` of prepared pictures."""
        features = [np.zeros((0, self.model.num_features), np.float32)]
        logits = [np.zeros((0, self.model.num_classes), np.float32)]
        for first in range(0, len(pictures), self._batch_size):
            computed = self._computed(stack(pictures[first : first + self._batch_size]))
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
        rows = log_probabilities(logits.float(), multilabel=self._multilabel)
        return features.float().cpu().numpy(), rows.cpu().numpy()

    def files(self) -> Mapping[str, bytes]:
        """Returns the content of the weight file by its name in the bundle."""
        return {WEIGHTS: self._weights}


class EnsembleMember(Protocol):
    """What an ensemble needs of each of its bundles."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def device(self) -> torch.device: ...

    def prepare(self, data: bytes, limits: codec.Limits = ..., /, **columns: Any) -> Prepared: ...

    def prepare_pixels(self, pixels: Pixels, /, **columns: Any) -> Prepared: ...

    def probabilities(self, pictures: Sequence[Prepared], /) -> NDArray[np.float32]: ...

    def files(self) -> Mapping[str, bytes]: ...


class EnsembleNetwork:
    """The weighted mean of the members' probabilities, in the first member's order of classes."""

    def __init__(self, members: Sequence[EnsembleMember], weights: Sequence[float]) -> None:
        self._members = members
        self._parallel = ParallelMembers([member.probabilities for member in members], members[0].device)
        self._shares = np.asarray(weights, np.float64) / sum(weights)
        # Members may number the classes differently.
        self._orders = [[member.classes.index(name) for name in members[0].classes] for member in members]

    def prepare(self, data: bytes, limits: codec.Limits, columns: Mapping[str, Any]) -> Prepared:
        """Returns one prepared picture per member; raises BadPicture if one of them cannot use the picture."""
        # Each member decodes the picture again: its selectors may need the stored file, and decoding is the cheap part.
        return tuple(member.prepare(data, limits, **columns) for member in self._members)

    def prepare_pixels(self, pixels: Pixels, columns: Mapping[str, Any]) -> Prepared:
        """Like `prepare`, from a decoded picture (height x width x channels)."""
        return tuple(member.prepare_pixels(pixels, **columns) for member in self._members)

    def log_probabilities(self, pictures: Sequence[tuple[Any, ...]]) -> NDArray[np.float32]:
        """Returns natural logarithms of the mean probabilities (N x classes)."""
        return self.mean(self._parallel.probabilities(pictures))

    def mean(self, parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Returns log probabilities of the ensemble (N x classes) from the probabilities of each member."""
        mean = np.zeros((len(parts[0]), len(self._orders[0])), np.float64)
        for part, share, order in zip(parts, self._shares, self._orders, strict=True):
            mean += share * part[:, order]
        return np.log(np.maximum(mean, np.finfo(np.float32).tiny)).astype(np.float32)

    def with_features(self, pictures: Sequence[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Raises UsageError: each member has features of its own."""
        raise UsageError("an ensemble has no features of its own; use one of its members")

    def files(self) -> Mapping[str, bytes]:
        """Returns the content of all files of the members, by their paths in the bundle."""
        return {
            f"{MEMBERS}/{number}/{name}": data
            for number, member in enumerate(self._members)
            for name, data in member.files().items()
        }


class ParallelMembers:
    """Threads that compute the members of an ensemble at the same time.

    On a CPU each member uses as many torch threads as it would alone, so the last one to finish has all cores. On two
    cores, two ResNet-18s take 0.74 of the time they take one after the other, a ResNet-50 with an Inception v3 0.8, and
    a ResNet-50 with a LeNet 1.0 (1.6 if each had half the threads). With one torch thread the members run one after the
    other. On CUDA each has its own stream.

    Args:
        predictors: one per member.
        device: where all of them compute.
    """

    def __init__(self, predictors: Sequence[Predictor], device: torch.device) -> None:
        if device.type == "cuda":
            # The weights may still be copied in the stream of the thread that loaded them.
            torch.cuda.synchronize(device)
            predictors = [partial(_in_stream, torch.cuda.Stream(device), predictor) for predictor in predictors]
        self._predictors, self._on_cpu = predictors, device.type == "cpu"
        self._pool = ThreadPoolExecutor(len(predictors), "member")

    def probabilities(self, pictures: Sequence[tuple[Any, ...]]) -> list[NDArray[np.float32]]:
        """Probabilities from each member, N x its classes.

        Args:
            pictures: for each picture, one prepared input per member.

        Raises:
            Exception: what the first member that failed raised, after all members have ended.
        """
        inputs = [[picture[number] for picture in pictures] for number in range(len(self._predictors))]
        if self._on_cpu and torch.get_num_threads() == 1:
            return [predictor(own) for predictor, own in zip(self._predictors, inputs, strict=True)]
        futures = [self._pool.submit(predictor, own) for predictor, own in zip(self._predictors, inputs, strict=True)]
        wait(futures)
        return [future.result() for future in futures]


def _in_stream(stream: torch.cuda.Stream, predictor: Predictor, pictures: Sequence[Any]) -> NDArray[np.float32]:
    with torch.cuda.stream(stream):
        return predictor(pictures)


def _is_normalisation(mean: torch.Tensor, std: torch.Tensor) -> bool:
    return bool(mean.isfinite().all() and std.isfinite().all() and (std > 0).all())


def _cpu_batch_size(model: nn.Module, record: BundleRecord) -> int:
    """Largest number of pictures that a CPU computes in one batch.

    Small networks gain from large batches, because a call costs more than the computation: 64 pictures of LeNet-5 in
    one batch take a fifth of the time they take one by one. Large networks at 224 x 224 are fastest with 4 to 32
    pictures, whose feature maps stay near the cache; 64 would need gigabytes for the maps of a VGG.
    """
    picture = torch.zeros((1, record.channels, *record.input_size), dtype=torch.uint8)
    tracer = Tracer(picture)
    with torch.no_grad(), tracer:
        model(picture)
    largest = max(4 * math.prod(operation.output) for operation in tracer.operations)
    return max(1, _MAP_BYTES // largest)
