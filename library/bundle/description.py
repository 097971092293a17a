"""The record of a bundle (`bundle.json`) and its predictions; importing this module does not import torch."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from library import storage
from library.dataset.manifest import digest_of
from library.errors import StriateError, UsageError

BUNDLE = "bundle.json"
WEIGHTS = "model.safetensors"
MEMBERS = "members"
_WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_MAX_RECORD_BYTES = 16 * 2**20
_MAX_CLASSES = 100_000
_MAX_MEMBERS = 100
#: Levels of ensembles within ensembles.
_MAX_DEPTH = 3
_READ_BYTES = 2**22

_Name = Annotated[str, pydantic.Field(min_length=1, max_length=1000)]
_Units = Annotated[int, pydantic.Field(ge=1, le=2**20)]
_Side = Annotated[int, pydantic.Field(ge=0, le=2**14)]


class Member(pydantic.BaseModel):
    """One bundle of an ensemble: its id, and its weight in the mean of the probabilities."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    id: str = pydantic.Field(pattern="^[0-9a-f]{64}$")
    weight: float = pydantic.Field(gt=0, le=1e9)


class TrainedDecoder(pydantic.BaseModel):
    """A decoder other than the CPU's that training pictures were decoded with, and its difference from the CPU's.

    Attributes:
        name: the recipe's `input.decode`.
        library: package and version that decoded.
        pictures: training pictures that were decoded both ways.
        largest_pixel_difference: of a decoded sample, of 255.
        largest_probability_difference: of a probability of the bundle.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: Literal["cuda"]
    library: str = pydantic.Field(max_length=200)
    pictures: int = pydantic.Field(ge=1)
    largest_pixel_difference: int = pydantic.Field(ge=0, le=255)
    largest_probability_difference: float = pydantic.Field(ge=0, le=1)

    def __str__(self) -> str:
        """States the difference, for people who are about to use the bundle."""
        return (
            f"trained on pictures that {self.library} decoded on a GPU, and predicts from pictures that the CPU "
            f"decodes. In {self.pictures:,} training pictures a pixel differed by up to "
            f"{self.largest_pixel_difference} of 255, and a probability by up to "
            f"{self.largest_probability_difference:.2g}"
        )


class BundleRecord(pydantic.BaseModel):
    """The content of `bundle.json`.

    Attributes:
        model: the model's call, e.g. `resnet18(in_chans=3)`; empty for an ensemble.
        head: widths of the dense layers before the classifier.
        classes: class names, in the order of the model's outputs.
        multilabel: whether a picture may have any number of the classes: each has a probability of its own, and those
            of a picture do not sum to 1.
        steps: filters and selectors that every picture goes through.
        fit: filters that then bring the picture to the model's size.
        input_size: height and width of the model's input in pixels.
        channels: channels of the model's input.
        precision: auto (bf16 autocast on CUDA, float32 on a CPU), bf16 or fp32.
        decoder: what decoded the training pictures; None for the CPU's decoder, which the bundle itself always uses.
        weights_digest: SHA-256 of `model.safetensors`; empty for an ensemble.
        members: the bundles of an ensemble, stored in `members/0`, `members/1` ...
        metrics: metrics on the validation set at the end of training.
        provenance: recipe, digests of the datasets, package versions, git commit.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    model: str = ""
    head: tuple[_Units, ...] = pydantic.Field(default=(), max_length=16)
    classes: tuple[_Name, ...] = pydantic.Field(min_length=1, max_length=_MAX_CLASSES)
    multilabel: bool = False
    steps: str = ""
    fit: str = ""
    input_size: tuple[_Side, _Side] = (0, 0)
    channels: int = pydantic.Field(default=0, ge=0, le=4096)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    decoder: TrainedDecoder | None = None
    weights_digest: str = ""
    members: tuple[Member, ...] = pydantic.Field(default=(), max_length=_MAX_MEMBERS)
    metrics: dict[str, Any] = {}
    provenance: dict[str, Any] = {}

    @pydantic.model_validator(mode="after")
    def _check(self) -> BundleRecord:
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for name, count in Counter(self.classes).items() if count > 1)
            raise ValueError(f"the class '{twice}' is listed twice")
        return self

    @property
    def id(self) -> str:
        """SHA-256 over the record, in hex; the record holds the digest of the weights."""
        return digest_of(self.model_dump(mode="json"))


@dataclass(frozen=True)
class Prediction:
    """Class names with probabilities, most probable first, and the id of the bundle that predicted them."""

    classes: tuple[tuple[str, float], ...]
    bundle_id: str

    @property
    def best(self) -> str:
        """The most probable class."""
        return self.classes[0][0]


def ranked(record: BundleRecord, bundle_id: str, probabilities: NDArray[np.float32], top_k: int) -> list[Prediction]:
    """Predictions from rows of finite probabilities (N x classes)."""
    return [
        Prediction(tuple((record.classes[i], float(row[i])) for i in _best(row, max(top_k, 1))), bundle_id)
        for row in probabilities
    ]


def _best(row: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Indices of the largest values, largest first; of equal ones the first. Sorts the candidates only."""
    if count < len(row):
        candidates = np.flatnonzero(row >= np.partition(row, len(row) - count)[len(row) - count])
        return candidates[np.argsort(-row[candidates], kind="stable")[:count]]
    return np.argsort(-row, kind="stable")


def load_planned(uri: str, planned_id: str | None) -> BundleRecord:
    """Like `load_record`, for a job that was planned with a bundle.

    Args:
        uri: the bundle's folder, normalized.
        planned_id: the id that the bundle had when the job was planned; None accepts any.

    Raises:
        UsageError: there is no bundle at `uri`.
        StriateError: the record is damaged, or its id is not `planned_id`.
    """
    record = load_record(uri)
    if planned_id is not None and record.id != planned_id:
        raise StriateError(
            f"{uri} was replaced while this job ran: it is bundle {record.id[:12]} now, and was {planned_id[:12]} "
            "when the job was planned; run the command again"
        )
    return record


def load_record(uri: str) -> BundleRecord:
    """Reads a bundle's record, without its weights.

    Raises:
        UsageError: there is no bundle at `uri`, or it needs a plugin that is not loaded here.
        StriateError: the record is damaged, or written by another version.
    """
    path = storage.join(storage.normalize(uri), BUNDLE)
    if not storage.exists(path):
        if not storage.exists(uri):
            raise UsageError(f"there is nothing at {uri}; a bundle is a folder that `striate train` writes")
        raise UsageError(f"{uri} is not a bundle: it has no {BUNDLE}; `striate train` writes one")
    try:
        record = BundleRecord.model_validate_json(storage.read_bytes(path, max_bytes=_MAX_RECORD_BYTES))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        what = str(first["msg"]).removeprefix("Value error, ")
        raise StriateError(f"{path} is damaged or was written by another version: {where}: {what}") from None
    from library.steps.plugins import check_recorded  # all steps and OpenCV, which the command line imports later

    check_recorded(record.provenance, f"the bundle {uri}")
    return record


def load_members(uri: str, record: BundleRecord, depth: int = 0) -> list[tuple[str, BundleRecord]]:
    """Folders and records of an ensemble's members, checked against the ensemble's record.

    Args:
        uri: the ensemble's folder, normalized.
        record: the ensemble's record.
        depth: number of ensembles that it is nested in.

    Raises:
        StriateError: a member has another id or other classes (names its folder), or the nesting is too deep.
    """
    if record.members and depth == _MAX_DEPTH:
        raise StriateError(f"{uri} is an ensemble nested in {_MAX_DEPTH} others; deeper nesting is not supported")
    members: list[tuple[str, BundleRecord]] = []
    for number, member in enumerate(record.members):
        folder = storage.join(uri, MEMBERS, str(number))
        part = load_record(folder)
        if part.id != member.id:
            raise StriateError(f"{folder} is not the bundle that the ensemble was made of")
        if set(part.classes) != set(record.classes):
            raise StriateError(f"{folder} has other classes than its ensemble")
        if part.multilabel != record.multilabel:
            raise StriateError(f"{folder} and its ensemble differ in `multilabel`")
        members.append((folder, part))
    return members


def plugins_of(uri: str, record: BundleRecord) -> set[str]:
    """Returns the names of the plugins that a bundle and its members need.

    Args:
        uri: the bundle's folder.
        record: the bundle's record, from `load_record`.
    """
    from library.steps.plugins import RECORDED  # as in `load_record`

    names = set[str](record.provenance.get(RECORDED, {}))
    for folder, part in load_members(storage.normalize(uri), record):
        names |= plugins_of(folder, part)
    return names


def decoder_notes(uri: str, record: BundleRecord) -> list[str]:
    """Returns a sentence for each network that was trained on pictures from another decoder than its users' own.

    Args:
        uri: the bundle's folder.
        record: the bundle's record, from `load_record`.
    """
    notes = [f"{uri} was {record.decoder}"] if record.decoder is not None else []
    for folder, part in load_members(storage.normalize(uri), record):
        notes += decoder_notes(folder, part)
    return notes


def digest_of_file(uri: str) -> str:
    """SHA-256 of a file in hex, read piece by piece."""
    digest = hashlib.sha256()
    with storage.open_read(uri) as file:
        while part := file.read(_READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


def checked_record(uri: str) -> BundleRecord:
    """Reads a bundle's record and checks that every file of the bundle is present and unchanged.

    Raises:
        UsageError: there is no bundle at `uri`.
        StriateError: a file is missing, damaged or replaced (names it).
    """
    record = load_record(uri)
    _check_files(storage.normalize(uri), record)
    return record


def _check_files(uri: str, record: BundleRecord, depth: int = 0) -> None:
    for folder, part in load_members(uri, record, depth):
        _check_files(folder, part, depth + 1)
    if not record.members:
        weights = storage.join(uri, WEIGHTS)
        if not storage.exists(weights):
            raise StriateError(f"{weights} is missing: the bundle is incomplete")
        if digest_of_file(weights) != record.weights_digest:
            raise StriateError(f"{weights} is damaged, or is not the file that {BUNDLE} was written with")


def dump_record(record: BundleRecord) -> bytes:
    """The bytes of `bundle.json`."""
    return (record.model_dump_json(indent=1) + "\n").encode()


def weights_file(weights: str | None) -> str | None:
    """The weights that a recipe names, as `library.models.build.create` takes them.

    Args:
        weights: None, `pretrained`, or the URI of a file of weights or of a bundle.

    Returns:
        The URI of the bundle's `model.safetensors`; anything else unchanged.

    Raises:
        UsageError: `weights` is an ensemble, or neither a bundle nor a file of weights.
    """
    if weights is None or weights == "pretrained" or weights.endswith(_WEIGHTS_SUFFIXES):
        return weights
    uri = storage.normalize(weights)
    if not storage.exists(storage.join(uri, BUNDLE)):
        raise UsageError(
            f"weights: {uri} is neither a bundle nor a .safetensors, .pth or .pt file, and not 'pretrained'"
        )
    if load_record(uri).members:
        raise UsageError(f"weights: {uri} is an ensemble; name one of its members, e.g. {uri}/members/0")
    return storage.join(uri, WEIGHTS)


def weights_bundle(weights: str | None) -> tuple[str, str] | None:
    """Returns URI and id of the bundle of which a recipe takes the weights; None where they come from elsewhere.

    Args:
        weights: as `weights_file`; also a bundle's `model.safetensors`.
    """
    if weights is None or weights == "pretrained":
        return None
    uri = storage.normalize(weights)
    if storage.name_of(uri) == WEIGHTS:
        uri = uri.rpartition("/")[0]
    return (uri, load_record(uri).id) if storage.exists(storage.join(uri, BUNDLE)) else None


def weights_digest(weights: str | None) -> str:
    """SHA-256, in hex, of the file or bundle record that `weights` names; changes when another is put in its place.

    Empty for None and for `pretrained`, which stands for one published file.
    """
    if weights is None or weights == "pretrained":
        return ""
    uri = storage.normalize(weights)
    record = storage.join(uri, BUNDLE)
    return hashlib.sha256(storage.read_bytes(record if storage.exists(record) else uri)).hexdigest()
