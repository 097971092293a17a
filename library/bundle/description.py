"""What a bundle says of itself, and what it answers: no torch is needed to read either."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic

from library import storage
from library.dataset.manifest import digest_of
from library.errors import StriateError, UsageError
from library.steps.plugins import check_recorded

BUNDLE = "bundle.json"
WEIGHTS = "model.safetensors"
MEMBERS = "members"
_WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_MAX_RECORD_BYTES = 16 * 2**20
_MAX_CLASSES = 100_000
_MAX_MEMBERS = 100
#: An ensemble of ensembles of ensembles.
_MAX_DEPTH = 3
_READ_BYTES = 2**22

_Name = Annotated[str, pydantic.Field(min_length=1, max_length=1000)]
_Units = Annotated[int, pydantic.Field(ge=1, le=2**20)]
_Side = Annotated[int, pydantic.Field(ge=0, le=2**14)]


class Member(pydantic.BaseModel):
    """One classifier of an ensemble: its id, and what its probabilities count in the mean."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    id: str = pydantic.Field(pattern="^[0-9a-f]{64}$")
    weight: float = pydantic.Field(gt=0, le=1e9)


class BundleRecord(pydantic.BaseModel):
    """What `bundle.json` holds.

    Attributes:
        model: call of the model, e.g. `resnet18(in_chans=3)`; empty for an ensemble.
        head: widths of the dense layers before the classifier.
        classes: names, in the order of the model's outputs.
        steps: filters and selectors that every picture goes through.
        fit: filters that then give it the model's size.
        input_size: height and width in pixels.
        channels: of the model's input.
        precision: as the recipe has it: auto is bf16 autocast on CUDA and float32 on a CPU.
        weights_digest: SHA-256 of `model.safetensors`; empty for an ensemble.
        members: of an ensemble; each lies in `members/N`, a bundle of its own.
        metrics: of the validation set at the end of training.
        provenance: recipe, datasets' digests, versions, commit.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    model: str = ""
    head: tuple[_Units, ...] = pydantic.Field(default=(), max_length=16)
    classes: tuple[_Name, ...] = pydantic.Field(min_length=1, max_length=_MAX_CLASSES)
    steps: str = ""
    fit: str = ""
    input_size: tuple[_Side, _Side] = (0, 0)
    channels: int = pydantic.Field(default=0, ge=0, le=4096)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    weights_digest: str = ""
    members: tuple[Member, ...] = pydantic.Field(default=(), max_length=_MAX_MEMBERS)
    metrics: dict[str, Any] = {}
    provenance: dict[str, Any] = {}

    @pydantic.model_validator(mode="after")
    def _check(self) -> BundleRecord:
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for name, count in Counter(self.classes).items() if count > 1)
            raise ValueError(f"the class '{twice}' is there twice")
        return self

    @property
    def id(self) -> str:
        """SHA-256 over everything in the bundle, in hex."""
        return digest_of(self.model_dump(mode="json"))


@dataclass(frozen=True)
class Prediction:
    """Ranked class names with probabilities, and the bundle that gave them."""

    classes: tuple[tuple[str, float], ...]
    bundle_id: str

    @property
    def best(self) -> str:
        """The most probable class."""
        return self.classes[0][0]


def load_record(uri: str) -> BundleRecord:
    """What a bundle says of itself, without its weights.

    Raises:
        UsageError: when there is no bundle at `uri`, or it needs a plugin that is not loaded here.
    """
    path = storage.join(storage.normalize(uri), BUNDLE)
    if not storage.exists(path):
        if not storage.exists(uri):
            raise UsageError(f"there is nothing at {uri}; a bundle is a folder that `striate train` makes")
        raise UsageError(f"{uri} is not a bundle: it has no {BUNDLE}; `striate train` makes one")
    try:
        record = BundleRecord.model_validate_json(storage.read_bytes(path, max_bytes=_MAX_RECORD_BYTES))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        what = str(first["msg"]).removeprefix("Value error, ")
        raise StriateError(f"{path} is damaged or was written by another version: {where}: {what}") from None
    check_recorded(record.provenance, f"the bundle {uri}")
    return record


def load_members(uri: str, record: BundleRecord, depth: int = 0) -> list[tuple[str, BundleRecord]]:
    """Folders and records of an ensemble's members, which are those that it was made of.

    Args:
        uri: of the ensemble.
        record: of the ensemble.
        depth: ensembles that it lies in.

    Raises:
        StriateError: naming the member that is another, or of another kind.
    """
    if record.members and depth == _MAX_DEPTH:
        raise StriateError(f"{uri} is an ensemble inside of {_MAX_DEPTH} others, and so many are not read")
    found: list[tuple[str, BundleRecord]] = []
    for number, member in enumerate(record.members):
        folder = storage.join(uri, MEMBERS, str(number))
        part = load_record(folder)
        if part.id != member.id:
            raise StriateError(f"{folder} is not the bundle that the ensemble was made of")
        if set(part.classes) != set(record.classes):
            raise StriateError(f"{folder} has other classes than the ensemble that it is a part of")
        found.append((folder, part))
    return found


def digest_of_file(uri: str) -> str:
    """SHA-256 of a file's content, in hex, without all of it in memory."""
    digest = hashlib.sha256()
    with storage.open_read(uri) as file:
        while part := file.read(_READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


def checked_record(uri: str) -> BundleRecord:
    """As `load_record`, and every file of the bundle is there and is the one that it was written with.

    Raises:
        UsageError: when there is no bundle at `uri`.
        StriateError: naming the file that is missing, damaged or another.
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
            raise StriateError(f"{weights} is missing: the bundle is not whole")
        if digest_of_file(weights) != record.weights_digest:
            raise StriateError(f"{weights} is damaged, or not the one that {BUNDLE} was written with")


def dump_record(record: BundleRecord) -> bytes:
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


def weights_digest(weights: str | None) -> str:
    """SHA-256, in hex, of the file or bundle record that `weights` names; changes when another is put in its place.

    Empty for None and for `pretrained`, which stands for one published file.
    """
    if weights is None or weights == "pretrained":
        return ""
    uri = storage.normalize(weights)
    record = storage.join(uri, BUNDLE)
    return hashlib.sha256(storage.read_bytes(record if storage.exists(record) else uri)).hexdigest()
