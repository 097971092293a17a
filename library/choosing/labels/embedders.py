"""What turns pictures into vectors: a bundle's or a model's features, patches, or the probabilities of fold bundles.

An embedder is plain data that travels to workers; `load` makes the part that computes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from library import storage
from library.bundle.description import BundleRecord, load_record, plugins_of
from library.choosing.labels import patch_features
from library.choosing.labels.patch_features import PatchFilters, patch_inputs
from library.errors import BadPicture, UsageError
from library.imaging.picture import Pixels
from library.models import info, parse_call
from library.pipeline.inputs import Prepared, scaled
from library.steps.plugins import Plugin, named

Vectors = NDArray[np.float32]
#: Why a picture has no probabilities: it has no label, or one that the recipe does not learn.
IN_NO_FOLD = "dropped:in_no_fold"


class LoadedEmbedder(Protocol):
    """Computes vectors of prepared pictures."""

    def prepare(self, data: bytes, columns: Mapping[str, Any]) -> Prepared:
        """Returns the input of a picture; raises BadPicture if it cannot be used."""
        ...

    def embed(self, pictures: Sequence[Prepared]) -> Vectors:
        """Returns N x D vectors."""
        ...


class Embedder(Protocol):
    """Describes how vectors are computed."""

    @property
    def name(self) -> str:
        """For people, e.g. `features of out/lenet`."""
        ...

    @property
    def identity(self) -> Sequence[Any]:
        """Everything that decides the vectors of a picture."""
        ...

    @property
    def used_plugins(self) -> Sequence[Plugin]:
        """The plugins whose steps prepare pictures."""
        ...

    def load(self, device: str) -> LoadedEmbedder:
        """Loads it in the process that computes."""
        ...


class _LoadedBundle:
    def __init__(self, bundle: Any) -> None:
        self._bundle = bundle

    def prepare(self, data: bytes, columns: Mapping[str, Any]) -> Prepared:
        return self._bundle.prepare(data, **columns)

    def embed(self, pictures: Sequence[Prepared]) -> Vectors:
        return self._bundle.features(pictures)[0]


@dataclass(frozen=True)
class BundleEmbedder:
    """Features of a bundle: the input of its last layers.

    Attributes:
        uri: of the bundle.
        bundle_id: its content digest.
    """

    uri: str
    bundle_id: str

    @classmethod
    def of(cls, uri: str) -> BundleEmbedder:
        """Plans the features of a bundle.

        Raises:
            UsageError: there is no bundle, or it is an ensemble.
        """
        uri = storage.normalize(uri)
        record = load_record(uri)
        if record.members:
            raise UsageError(f"{uri} is an ensemble, which has no features; name one of its members: {uri}/members/0")
        return cls(uri, record.id)

    @property
    def name(self) -> str:
        return f"features of {self.uri}"

    @property
    def identity(self) -> Sequence[Any]:
        return ["bundle", self.bundle_id]

    @property
    def used_plugins(self) -> Sequence[Plugin]:
        return named(plugins_of(self.uri, load_record(self.uri)))

    def load(self, device: str) -> LoadedEmbedder:
        from library.bundle.bundle import Bundle  # imports torch, which only workers need

        return _LoadedBundle(Bundle.load(self.uri, device, self.bundle_id))


@dataclass(frozen=True)
class ModelEmbedder:
    """Features of a published network with its pretrained weights.

    Attributes:
        call: canonical, e.g. `resnet18`.
    """

    call: str

    @classmethod
    def of(cls, call: str) -> ModelEmbedder:
        """Plans the features of a model of the catalogue or of timm.

        Raises:
            UsageError: there is no such model, or it has no published weights.
        """
        parsed = parse_call(call)
        if info(parsed).source == "ours":
            raise UsageError(f"{call} has no published weights; name a model of timm or torchvision, or a bundle")
        return cls(str(parsed))

    @property
    def name(self) -> str:
        return f"features of {self.call}, pretrained"

    @property
    def identity(self) -> Sequence[Any]:
        return ["model", self.call]

    @property
    def used_plugins(self) -> Sequence[Plugin]:
        return ()

    def load(self, device: str) -> LoadedEmbedder:
        from library.bundle.bundle import Bundle  # imports torch, which only workers need
        from library.models.build import create

        facts = info(self.call)
        channels = int(parse_call(self.call).parameters.get("in_chans", facts.input_size[0]))
        height, width = facts.input_size[1:]
        record = BundleRecord(
            model=self.call,
            classes=("a", "b"),  # the head is not used
            steps={1: "grayscale", 3: "rgb"}.get(channels, ""),
            fit=f'resize([{height}, {width}], mode="exact")',
            input_size=(height, width),
            channels=channels,
        )
        return _LoadedBundle(Bundle.of_model(record, create(self.call, num_classes=2, weights="pretrained"), device))


@dataclass(frozen=True)
class PatchEmbedder:
    """Features that need no trained network.

    Attributes:
        filters: learned from the first pictures of a dataset.
        channels: 1 for grey pictures, else 3.
        source: digest of that dataset; it stands for the filters, whose last bits depend on the processor.
    """

    filters: PatchFilters
    channels: int
    source: str

    @property
    def name(self) -> str:
        return "patches of 32x32 pixels"

    @property
    def identity(self) -> Sequence[Any]:
        return ["patches", patch_features.VERSION, self.source, self.channels, self.filters.filters.shape]

    @property
    def used_plugins(self) -> Sequence[Plugin]:
        return ()

    def load(self, device: str) -> LoadedEmbedder:
        return _LoadedPatches(self.filters, self.channels)


class _LoadedPatches:
    def __init__(self, filters: PatchFilters, channels: int) -> None:
        self._filters, self._inputs = filters, patch_inputs(channels)

    def prepare(self, data: bytes, columns: Mapping[str, Any]) -> Prepared:
        return self._inputs.prepare(data, **columns)

    def embed(self, pictures: Sequence[Prepared]) -> Vectors:
        return np.stack([self._filters.encode(_up_to_255(np.asarray(picture))) for picture in pictures])


def _up_to_255(picture: Pixels) -> Pixels:
    return picture if picture.dtype == np.uint8 else scaled(picture) * 255


@dataclass(frozen=True)
class FoldEmbedder:
    """Probabilities of each picture from the bundle that was trained without its fold.

    Attributes:
        uris: of K bundles with the same classes and input pipeline.
        bundle_ids: their content digests.
        folds: URI of the file with the fold of each key, as `write_folds` writes it.
    """

    uris: tuple[str, ...]
    bundle_ids: tuple[str, ...]
    folds: str

    @property
    def name(self) -> str:
        return f"probabilities of {len(self.uris)} bundles, each for the fold that it was trained without"

    @property
    def identity(self) -> Sequence[Any]:
        return ["folds", *self.bundle_ids]

    @property
    def used_plugins(self) -> Sequence[Plugin]:
        return named(plugins_of(self.uris[0], load_record(self.uris[0])))

    def load(self, device: str) -> LoadedEmbedder:
        from library.bundle.bundle import Bundle  # imports torch, which only workers need

        bundles = [Bundle.load(uri, device, known) for uri, known in zip(self.uris, self.bundle_ids, strict=True)]
        return _LoadedFolds(bundles, read_folds(self.folds))


class _LoadedFolds:
    def __init__(self, bundles: Sequence[Any], folds: Mapping[str, int]) -> None:
        self._bundles, self._folds = bundles, folds

    def prepare(self, data: bytes, columns: Mapping[str, Any]) -> Prepared:
        fold = self._folds.get(columns["key"])
        if fold is None:
            raise BadPicture(IN_NO_FOLD, "it has no label, or one that the recipe does not learn")
        return np.asarray([fold]), self._bundles[fold].prepare(data, **columns)

    def embed(self, pictures: Sequence[Any]) -> Vectors:
        folds = np.asarray([int(fold[0]) for fold, _ in pictures])
        vectors = np.zeros((len(pictures), len(self._bundles[0].classes)), np.float32)
        for fold in np.unique(folds).tolist():
            rows = np.flatnonzero(folds == fold)
            vectors[rows] = self._bundles[fold].probabilities([pictures[row][1] for row in rows.tolist()])
        return vectors


def write_folds(uri: str, keys: Sequence[str], folds: NDArray[np.int64]) -> None:
    """Writes the fold of each key."""
    out = io.BytesIO()
    np.savez_compressed(out, keys=np.asarray(keys, np.str_), folds=folds)
    storage.write_bytes(uri, out.getvalue())


@cache
def read_folds(uri: str) -> Mapping[str, int]:
    """Reads what `write_folds` has written."""
    with np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False) as stored:
        return dict(zip(stored["keys"].tolist(), stored["folds"].tolist(), strict=True))
