"""A finished classifier: a folder with `bundle.json` and `model.safetensors`, never pickle.

    bundle = Bundle.load("out/lenet")
    bundle.predict(Path("seven.png").read_bytes()).classes   # (("7", 0.998), ("1", 0.001), ...)

Evaluation, batch prediction and serving all go through `Bundle.predict`, so none can see other pixels than training
did.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_tensors

from library import storage
from library.bundle.description import (
    BUNDLE,
    MEMBERS,
    BundleRecord,
    Member,
    Prediction,
    dump_record,
    load_members,
    load_record,
)
from library.bundle.members import ParallelMembers
from library.bundle.network import SingleNetwork
from library.bundle.weight_file import in_one_line, read_weights
from library.errors import NOT_FINITE, NOT_FINITE_WHY, BadPicture, StriateError, UsageError
from library.imaging import codec
from library.imaging.picture import Pixels
from library.models.classifier import Classifier

#: What one picture is for a model: its pixels, or for an ensemble what it is for each member.
Prepared: TypeAlias = "Pixels | tuple[Prepared, ...]"


class _Network(Protocol):
    """What turns prepared pictures into probabilities."""

    @property
    def members(self) -> tuple[Bundle, ...]: ...

    def prepare(self, data: bytes, limits: codec.Limits, columns: Mapping[str, Any]) -> Prepared: ...

    def prepare_pixels(self, pixels: Pixels, columns: Mapping[str, Any]) -> Prepared: ...

    def log_probabilities(self, pictures: Sequence[Any]) -> NDArray[np.float32]: ...

    def with_features(self, pictures: Sequence[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...

    def files(self) -> Mapping[str, bytes]: ...


class Bundle:
    """A classifier that is ready to predict; make one with `load`, `of_model` or `ensemble`."""

    def __init__(self, record: BundleRecord, network: _Network) -> None:
        self.record = record
        self.network = network

    @classmethod
    def of_model(cls, record: BundleRecord, model: Any, device: str = "auto") -> Bundle:
        """A bundle of a trained `Classifier`.

        Args:
            record: `weights_digest` is filled in here.
            model: its auxiliary heads are left out.
            device: where it predicts; auto, cpu, cuda, cuda:1 ...
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.without_auxiliary().items()}
        weights = save_tensors(tensors)
        record = record.model_copy(update={"weights_digest": hashlib.sha256(weights).hexdigest()})
        return cls(record, SingleNetwork(record, weights, device))

    @classmethod
    def load(cls, uri: str, device: str = "auto", planned_id: str | None = None) -> Bundle:
        """Read a bundle from a folder or s3://.

        Args:
            uri: of the folder.
            device: where it predicts; auto, cpu, cuda, cuda:1 ...
            planned_id: its id when the job that loads it was planned; None to load any.

        Raises:
            UsageError: when there is none at `uri`.
            StriateError: when its files do not belong together, or it has another id than planned.
        """
        uri = storage.normalize(uri)
        record = load_record(uri)
        if planned_id is not None and record.id != planned_id:
            raise StriateError(
                f"{uri} was replaced while this job ran: it is bundle {record.id[:12]} now, and was {planned_id[:12]} "
                "when the job was planned; run the command again"
            )
        return cls._of_record(uri, record, device, 0)

    @classmethod
    def _of_record(cls, uri: str, record: BundleRecord, device: str, depth: int) -> Bundle:
        if record.members:
            parts = load_members(uri, record, depth)
            members = [cls._of_record(folder, part, device, depth + 1) for folder, part in parts]
            return cls(record, _Ensemble(members, [member.weight for member in record.members]))
        weights = read_weights(record, uri)
        try:
            return cls(record, SingleNetwork(record, weights, device))
        except UsageError as error:
            raise StriateError(f"{storage.join(uri, BUNDLE)} cannot be used: {in_one_line(error)}") from None

    def save(self, uri: str) -> None:
        """Write the bundle; `bundle.json` last, so that a bundle is whole or not there."""
        uri = storage.normalize(uri)
        for name, data in self.network.files().items():
            storage.write_bytes(storage.join(uri, name), data)
        storage.write_bytes(storage.join(uri, BUNDLE), dump_record(self.record))

    @cached_property
    def id(self) -> str:
        """Content digest, in hex."""
        return self.record.id

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the probabilities."""
        return self.record.classes

    def prepare(self, data: bytes, limits: codec.Limits = codec.DEFAULT_LIMITS, /, **columns: Any) -> Prepared:
        """What the model sees of an encoded picture.

        Args:
            data: the encoded picture.
            limits: how large it may be.
            columns: `key`, `label` and other columns, for steps that ask for them.

        Returns:
            Height x width x channels; for an ensemble one such array a member.

        Raises:
            BadPicture: it cannot be used; `dropped:REASON` where a selector of the model drops it.
        """
        return self.network.prepare(data, limits, columns)

    def prepare_pixels(self, pixels: Pixels, /, **columns: Any) -> Prepared:
        """As `prepare`, from a decoded picture (height x width x channels)."""
        return self.network.prepare_pixels(pixels, columns)

    def logits(self, pictures: Sequence[Prepared] | NDArray[Any]) -> NDArray[np.float32]:
        """Log probabilities of prepared pictures, N x classes; `exp` gives the probabilities."""
        return self.network.log_probabilities(list(pictures))

    def probabilities(self, pictures: Sequence[Prepared] | NDArray[Any]) -> NDArray[np.float32]:
        """Of prepared pictures, N x classes; each row sums to 1."""
        return np.exp(self.logits(pictures))

    def features(self, pictures: Sequence[Prepared]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What the head sees of prepared pictures, N x features, and their probabilities as of `probabilities`.

        Raises:
            UsageError: for an ensemble, whose members have features each.
        """
        features, logits = self.network.with_features(list(pictures))
        return features, np.exp(logits)

    @property
    def members(self) -> tuple[Bundle, ...]:
        """The classifiers of an ensemble; none of a single network."""
        return self.network.members

    @property
    def model(self) -> Classifier:
        """The network, on its device, in evaluation.

        Raises:
            UsageError: for an ensemble, whose members have one each.
        """
        if not isinstance(self.network, SingleNetwork):
            raise UsageError("an ensemble has no network of its own; ask one of its members for it")
        return self.network.model

    @property
    def device(self) -> torch.device:
        """Where it computes; an ensemble's first member's."""
        return self.members[0].device if self.members else next(self.model.parameters()).device

    def joined(self, parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Of an ensemble: its probabilities, from those that each member gave (N x the member's classes)."""
        if not isinstance(self.network, _Ensemble):
            raise UsageError("only an ensemble has members whose probabilities can be joined")
        return np.exp(self.network.joined(parts))

    def predict(self, data: bytes, top_k: int = 5) -> Prediction:
        """Classify one encoded picture; raises BadPicture if it cannot be used."""
        (said,) = self.predict_many([data], top_k)
        if isinstance(said, BadPicture):
            raise said
        return said

    def predict_many(self, pictures: Sequence[bytes], top_k: int = 5) -> list[Prediction | BadPicture]:
        """Classify encoded pictures in one batch; what cannot be used is its BadPicture, and stops no other."""
        results: list[Any] = []
        for data in pictures:
            try:
                results.append(self.prepare(data))
            except BadPicture as bad:
                results.append(bad)
        usable = [prepared for prepared in results if not isinstance(prepared, BadPicture)]
        rows = iter(self.probabilities(usable) if usable else ())
        return [item if isinstance(item, BadPicture) else self._judged(next(rows), top_k) for item in results]

    def ranked(self, probabilities: NDArray[np.float32], top_k: int = 5) -> list[Prediction]:
        """Rows of finite probabilities (N x classes) as predictions."""
        return [self._ranked(row, top_k) for row in probabilities]

    def _judged(self, probabilities: NDArray[np.float32], top_k: int) -> Prediction | BadPicture:
        if not np.isfinite(probabilities).all():
            return BadPicture(NOT_FINITE, NOT_FINITE_WHY)
        return self._ranked(probabilities, top_k)

    def _ranked(self, probabilities: NDArray[np.float32], top_k: int) -> Prediction:
        order = np.argsort(-probabilities, kind="stable")[: max(top_k, 1)]
        return Prediction(tuple((self.classes[i], float(probabilities[i])) for i in order), self.id)


def ensemble(bundles: Sequence[Bundle], weights: Sequence[float] | None = None) -> Bundle:
    """Several classifiers as one: the mean of their probabilities.

    Args:
        bundles: of the same classes, in any order of them.
        weights: what each counts; equal by default.

    Raises:
        UsageError: for fewer than two bundles, other classes, or weights that do not fit.
    """
    if len(bundles) < 2:
        raise UsageError("an ensemble takes at least two bundles")
    weights = [1.0] * len(bundles) if weights is None else list(weights)
    if len(weights) != len(bundles) or min(weights) <= 0:
        raise UsageError(f"an ensemble of {len(bundles)} bundles takes as many weights above 0; got {weights}")
    classes = bundles[0].classes
    for bundle in bundles[1:]:
        differing = sorted(set(bundle.classes) ^ set(classes))
        if differing:
            raise UsageError(f"an ensemble's bundles must know the same classes; these differ: {', '.join(differing)}")
    members = tuple(Member(id=bundle.id, weight=weight) for bundle, weight in zip(bundles, weights, strict=True))
    return Bundle(BundleRecord(classes=classes, members=members), _Ensemble(bundles, weights))


class _Ensemble:
    """The weighted mean of the members' probabilities."""

    def __init__(self, members: Sequence[Bundle], weights: Sequence[float]) -> None:
        self.members = tuple(members)
        self._parallel = ParallelMembers([member.probabilities for member in members], members[0].device)
        self._shares = np.asarray(weights, np.float64) / sum(weights)
        # Members may number the classes differently.
        self._orders = [[member.classes.index(name) for name in members[0].classes] for member in members]

    def prepare(self, data: bytes, limits: codec.Limits, columns: Mapping[str, Any]) -> Prepared:
        # Each decodes by itself: a member's selectors may ask for the stored format, and decoding is the cheap part.
        return tuple(member.prepare(data, limits, **columns) for member in self.members)

    def prepare_pixels(self, pixels: Pixels, columns: Mapping[str, Any]) -> Prepared:
        return tuple(member.prepare_pixels(pixels, **columns) for member in self.members)

    def log_probabilities(self, pictures: Sequence[tuple[Any, ...]]) -> NDArray[np.float32]:
        return self.joined(self._parallel.probabilities(pictures))

    def joined(self, parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Log probabilities from the members' probabilities."""
        mean = np.zeros((len(parts[0]), len(self._orders[0])), np.float64)
        for part, share, order in zip(parts, self._shares, self._orders, strict=True):
            mean += share * part[:, order]
        return np.log(np.maximum(mean, np.finfo(np.float32).tiny)).astype(np.float32)

    def with_features(self, pictures: Sequence[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        raise UsageError("an ensemble has no features of its own; ask one of its members for them")

    def files(self) -> Mapping[str, bytes]:
        return {
            f"{MEMBERS}/{number}/{name}": data
            for number, member in enumerate(self.members)
            for name, data in {**member.network.files(), BUNDLE: dump_record(member.record)}.items()
        }
