"""A finished classifier: a folder with `bundle.json` and `model.safetensors`, never pickle.

    bundle = Bundle.load("out/lenet")
    bundle.predict(Path("seven.png").read_bytes()).classes   # (("7", 0.998), ("1", 0.001), ...)

Evaluation, batch prediction and serving all use `Bundle.predict`, so they see the same pixels as training did.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_tensors

from library import storage
from library.bundle.description import BUNDLE, BundleRecord, Prediction, dump_record, load_members, load_planned, ranked
from library.bundle.network import EnsembleNetwork, SingleNetwork
from library.bundle.weight_file import in_one_line, read_weights
from library.errors import NOT_FINITE, NOT_FINITE_WHY, BadPicture, StriateError, UsageError
from library.imaging import codec
from library.imaging.picture import Pixels
from library.models.classifier import Classifier
from library.pipeline.inputs import Prepared


class _Network(Protocol):
    def prepare(self, data: bytes, limits: codec.Limits, columns: Mapping[str, Any]) -> Prepared: ...

    def prepare_pixels(self, pixels: Pixels, columns: Mapping[str, Any]) -> Prepared: ...

    def log_probabilities(self, pictures: Sequence[Any]) -> NDArray[np.float32]: ...

    def with_features(self, pictures: Sequence[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...

    def files(self) -> Mapping[str, bytes]: ...


class Bundle:
    """A classifier that is ready to predict; made by `load`, `of_model` or `library.bundle.ensemble`.

    Attributes:
        record: the content of `bundle.json`.
        network: computes the probabilities.
        members: the bundles of an ensemble; empty for a single network.
    """

    def __init__(self, record: BundleRecord, network: _Network, members: Sequence[Bundle] = ()) -> None:
        self.record = record
        self.network = network
        self.members = tuple(members)

    @classmethod
    def of_model(cls, record: BundleRecord, model: Classifier, device: str = "auto") -> Bundle:
        """Makes a bundle of a trained model.

        Args:
            record: its `weights_digest` is filled in.
            model: its auxiliary heads are left out.
            device: where the bundle predicts: auto, cpu, cuda, cuda:1 ...
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.without_auxiliary().items()}
        weights = save_tensors(tensors)
        record = record.model_copy(update={"weights_digest": hashlib.sha256(weights).hexdigest()})
        return cls(record, SingleNetwork(record, weights, device))

    @classmethod
    def of_members(cls, record: BundleRecord, members: Sequence[Bundle]) -> Bundle:
        """Makes an ensemble of the bundles that `record.members` lists."""
        weights = [member.weight for member in record.members]
        return cls(record, EnsembleNetwork(members, weights), members)

    @classmethod
    def load(cls, uri: str, device: str = "auto", planned_id: str | None = None) -> Bundle:
        """Reads a bundle from a folder or s3://.

        Args:
            uri: the bundle's folder.
            device: where the bundle predicts: auto, cpu, cuda, cuda:1 ...
            planned_id: the id that the bundle had when the job was planned; None accepts any.

        Raises:
            UsageError: there is no bundle at `uri`.
            StriateError: its files do not belong together, or its id is not `planned_id`.
        """
        uri = storage.normalize(uri)
        return cls._of_record(uri, load_planned(uri, planned_id), device, 0)

    @classmethod
    def _of_record(cls, uri: str, record: BundleRecord, device: str, depth: int) -> Bundle:
        if record.members:
            parts = load_members(uri, record, depth)
            return cls.of_members(record, [cls._of_record(folder, part, device, depth + 1) for folder, part in parts])
        weights = read_weights(record, uri)
        try:
            return cls(record, SingleNetwork(record, weights, device))
        except UsageError as error:
            raise StriateError(f"{storage.join(uri, BUNDLE)} cannot be used: {in_one_line(error)}") from None

    def save(self, uri: str) -> None:
        """Writes the bundle's folder; `bundle.json` last, so that a folder with one is complete."""
        uri = storage.normalize(uri)
        for name, data in self.files().items():
            storage.write_bytes(storage.join(uri, name), data)

    def files(self) -> Mapping[str, bytes]:
        """Content of the folder's files by name, `bundle.json` last."""
        return {**self.network.files(), BUNDLE: dump_record(self.record)}

    @cached_property
    def id(self) -> str:
        """Content digest, in hex."""
        return self.record.id

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the probabilities."""
        return self.record.classes

    @property
    def decoder_note(self) -> str | None:
        """How the decoder of the training pictures differs from its own, if it does; for an ensemble of each member."""
        if not self.members:
            return None if self.record.decoder is None else str(self.record.decoder)
        notes = [(number, member.decoder_note) for number, member in enumerate(self.members)]
        return "; ".join(f"member {number}: {note}" for number, note in notes if note is not None) or None

    def prepare(self, data: bytes, limits: codec.Limits = codec.DEFAULT_LIMITS, /, **columns: Any) -> Prepared:
        """Decodes a picture and makes the model's input of it.

        Args:
            data: the encoded picture.
            limits: the largest picture accepted.
            columns: `key`, `label` and other columns, for steps that read them.

        Returns:
            Height x width x channels; for an ensemble one such array per member.

        Raises:
            BadPicture: the picture cannot be used; its reason is `dropped:REASON` if a selector of the model drops it.
        """
        return self.network.prepare(data, limits, columns)

    def prepare_pixels(self, pixels: Pixels, /, **columns: Any) -> Prepared:
        """Like `prepare`, from a decoded picture (height x width x channels)."""
        return self.network.prepare_pixels(pixels, columns)

    def log_probabilities(self, pictures: Sequence[Prepared] | NDArray[Any]) -> NDArray[np.float32]:
        """Natural logarithms of `probabilities`, N x classes."""
        return self.network.log_probabilities(list(pictures))

    def probabilities(self, pictures: Sequence[Prepared] | NDArray[Any]) -> NDArray[np.float32]:
        """Probabilities of prepared pictures, N x classes; each row sums to 1."""
        return np.exp(self.log_probabilities(pictures))

    def features(self, pictures: Sequence[Prepared]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The head's inputs for prepared pictures (N x features), and their `probabilities`.

        Raises:
            UsageError: the bundle is an ensemble, where each member has its own features.
        """
        features, log_probabilities = self.network.with_features(list(pictures))
        return features, np.exp(log_probabilities)

    @property
    def model(self) -> Classifier:
        """The network, on its device, in evaluation mode.

        Raises:
            UsageError: the bundle is an ensemble, where each member has its own network.
        """
        if not isinstance(self.network, SingleNetwork):
            raise UsageError("an ensemble has no network of its own; use one of its members")
        return self.network.model

    @property
    def device(self) -> torch.device:
        """Where the bundle computes; for an ensemble, where its first member does."""
        return self.members[0].device if self.members else next(self.model.parameters()).device

    def mean_of_members(self, parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Probabilities of an ensemble (N x classes) from those of each member (N x its classes).

        Raises:
            UsageError: the bundle is not an ensemble.
        """
        if not isinstance(self.network, EnsembleNetwork):
            raise UsageError("only an ensemble has members whose probabilities can be averaged")
        return np.exp(self.network.mean(parts))

    def predict(self, data: bytes, top_k: int = 5) -> Prediction:
        """Classifies one encoded picture; raises BadPicture if it cannot be used."""
        (prediction,) = self.predict_many([data], top_k)
        if isinstance(prediction, BadPicture):
            raise prediction
        return prediction

    def predict_many(self, pictures: Sequence[bytes], top_k: int = 5) -> list[Prediction | BadPicture]:
        """Classifies encoded pictures in one batch; a picture that cannot be used gets its BadPicture as the result."""
        results: list[Any] = []
        for data in pictures:
            try:
                results.append(self.prepare(data))
            except BadPicture as bad:
                results.append(bad)
        usable = [prepared for prepared in results if not isinstance(prepared, BadPicture)]
        rows = iter(self.probabilities(usable) if usable else ())
        return [item if isinstance(item, BadPicture) else self._checked(next(rows), top_k) for item in results]

    def ranked(self, probabilities: NDArray[np.float32], top_k: int = 5) -> list[Prediction]:
        """Predictions from rows of finite probabilities (N x classes)."""
        return ranked(self.record, self.id, probabilities, top_k)

    def _checked(self, probabilities: NDArray[np.float32], top_k: int) -> Prediction | BadPicture:
        if not np.isfinite(probabilities).all():
            return BadPicture(NOT_FINITE, NOT_FINITE_WHY)
        return self.ranked(probabilities[None], top_k)[0]
