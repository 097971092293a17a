"""What a bundle says of itself, and what it answers: no torch is needed to read either."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import pydantic

from library import storage
from library.errors import StriateError, UsageError
from library.manifest import digest_of

BUNDLE = "bundle.json"
WEIGHTS = "model.safetensors"
MEMBERS = "members"
_MAX_RECORD_BYTES = 64 * 2**20


class Member(pydantic.BaseModel):
    """One classifier of an ensemble: its id, and what its probabilities count in the mean."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    id: str = pydantic.Field(pattern="^[0-9a-f]{64}$")
    weight: float = pydantic.Field(gt=0)


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
    head: tuple[int, ...] = ()
    classes: tuple[str, ...] = pydantic.Field(min_length=1)
    steps: str = ""
    fit: str = ""
    input_size: tuple[int, int] = (0, 0)
    channels: int = 0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    weights_digest: str = ""
    members: tuple[Member, ...] = ()
    metrics: dict[str, Any] = {}
    provenance: dict[str, Any] = {}

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
        UsageError: when there is no bundle at `uri`.
    """
    path = storage.join(storage.normalize(uri), BUNDLE)
    if not storage.exists(path):
        if not storage.exists(uri):
            raise UsageError(f"there is nothing at {uri}; a bundle is a folder that `striate train` makes")
        raise UsageError(f"{uri} is not a bundle: it has no {BUNDLE}; `striate train` makes one")
    try:
        return BundleRecord.model_validate_json(storage.read_bytes(path, max_bytes=_MAX_RECORD_BYTES))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise StriateError(f"{path} is damaged or was written by another version: {where}: {first['msg']}") from None


def checked_record(uri: str) -> BundleRecord:
    """As `load_record`, and every file of the bundle is there and is the one that it was written with.

    Raises:
        UsageError: when there is no bundle at `uri`.
        StriateError: naming the file that is missing, damaged or another.
    """
    record = load_record(uri)
    for number, member in enumerate(record.members):
        folder = storage.join(uri, MEMBERS, str(number))
        if checked_record(folder).id != member.id:
            raise StriateError(f"{folder} is not the bundle that the ensemble was made of")
    if not record.members:
        weights = storage.join(storage.normalize(uri), WEIGHTS)
        if not storage.exists(weights):
            raise StriateError(f"{weights} is missing: the bundle is not whole")
        if hashlib.sha256(storage.read_bytes(weights)).hexdigest() != record.weights_digest:
            raise StriateError(f"{weights} is damaged, or not the one that {BUNDLE} was written with")
    return record


def dump_record(record: BundleRecord) -> bytes:
    return (record.model_dump_json(indent=1) + "\n").encode()
