"""Models that turn a picture into numbers for a side table: a bundle, a timm model, or an ONNX file with a card.

Nothing from outside is executed: weights are read without pickle's code, the card is plain YAML, and an ONNX graph is
computed by ONNX Runtime with its own operators only.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pydantic
from numpy.typing import NDArray

from library import storage
from library.bundle.description import load_planned, load_record
from library.dataset.manifest import digest_of
from library.errors import StriateError, UsageError
from library.imaging.picture import Pixels
from library.models import info
from library.pipeline.inputs import InputPipeline, Prepared, stack
from library.recipe.yaml_text import load_yaml
from library.runtimes.onnx_session import first_line, session_options

_MAX_GRAPH_BYTES = 2 * 2**30  # what a protobuf can hold; larger graphs keep their weights in other files
_MAX_WEIGHTS_BYTES = 8 * 2**30
_MAX_CARD_BYTES = 64 * 1024
_MAX_COLUMNS = 10_000
#: Changes when the embedding of the same picture by a model's call may change.
CALL_VERSION = 2
#: Columns of bundles and timm models.
EMBEDDING, PROBABILITIES, PREDICTED, SCORE = "embedding", "probabilities", "predicted", "score"

Kind = Literal["bundle", "timm", "onnx"]
_Name = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
_Side = Annotated[int, pydantic.Field(ge=1, le=4096)]
#: Numbers by column: N values, or N x width for a vector.
Outputs: TypeAlias = Mapping[str, NDArray[Any]]


class Card(pydantic.BaseModel):
    """What a user says about an ONNX file that Striate did not export.

    Attributes:
        name: of the folder of its results below `_measures/`.
        size: height and width of its input in pixels; one number for both.
        channels: of its input: 1 or 3.
        mean: subtracted from values of 0 to 1, for each channel.
        std: divides them after that, for each channel.
        steps: filters before `fit`; by default those that give the number of channels.
        fit: filters that give a picture the size; by default it is stretched to it.
        layout: order of the input's axes.
        embedding: the graph's output that is stored as a vector.
        scores: for other outputs, names of the columns, one for each number.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name: _Name
    size: _Side | tuple[_Side, _Side]
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    steps: str = ""
    fit: str = ""
    layout: Literal["nchw", "nhwc"] = "nchw"
    embedding: str | None = None
    scores: dict[str, Annotated[list[_Name], pydantic.Field(min_length=1, max_length=_MAX_COLUMNS)]] = {}

    @pydantic.model_validator(mode="after")
    def _check(self) -> Card:
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise ValueError(f"{name} needs 1 or {self.channels} numbers")
        if any(value <= 0 for value in self.std):
            raise ValueError("std must be above 0")
        if self.embedding is None and not self.scores:
            raise ValueError("name an output: `embedding: OUTPUT`, or `scores: {OUTPUT: [column, ...]}`")
        columns = [column for names in self.scores.values() for column in names]
        reserved = {"key", "reason", EMBEDDING}
        repeated = [column for column, times in Counter(columns).items() if times > 1 or column in reserved]
        if repeated:
            raise ValueError(f"the column '{repeated[0]}' is named twice or reserved")
        return self

    @property
    def inputs(self) -> InputPipeline:
        """Makes the input of the graph, as uint8 pixels."""
        height, width = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        steps = self.steps or ("rgb" if self.channels == 3 else "grayscale")
        fit = self.fit or f'resize([{height}, {width}], mode="exact")'
        return InputPipeline.parse(steps, fit, (height, width), self.channels)


@dataclass(frozen=True)
class PictureModel:
    """A model by what a worker needs to open it.

    Attributes:
        kind: of model.
        name: of the folder of its results.
        uri: of the bundle, the ONNX file or the weights.
        digest: of everything that decides its outputs.
        call: of a timm model, e.g. `timm("resnet18")`.
        card: of an ONNX file.
    """

    kind: Kind
    name: str
    uri: str
    digest: str
    call: str = ""
    card: Card | None = None


@dataclass(frozen=True)
class OpenModel:
    """A model that is ready to compute.

    Attributes:
        prepare: makes its input of an encoded picture; raises BadPicture.
        compute: computes the columns of prepared pictures.
        columns: their names and types.
    """

    prepare: Callable[..., Prepared]
    compute: Callable[[Sequence[Prepared]], Outputs]
    columns: Sequence[pa.Field[Any]]


def picture_model(bundle: str | None, model: str | None, card: str | None, weights: str | None) -> PictureModel | None:
    """Describes the model that the options of `striate measure` name; None if they name none.

    Args:
        bundle: URI of a bundle.
        model: URI of an ONNX file, or a model's call.
        card: URI of the card of an ONNX file.
        weights: URI of the weights of a model's call.

    Raises:
        UsageError: the options contradict each other, or name what is not there.
    """
    if bundle is not None and model is not None:
        raise UsageError("--bundle and --model both name a model; use one of them")
    is_graph = model is not None and model.endswith(".onnx")
    if card is not None and not is_graph:
        raise UsageError("--card describes an ONNX file; name the file with --model FILE.onnx")
    if weights is not None and (model is None or is_graph):
        raise UsageError("--weights is for a model's call, such as --model \"timm('resnet18')\"")
    if bundle is not None:
        return bundle_model(bundle)
    if model is None:
        return None
    return onnx_model(model, card) if is_graph else timm_model(model, weights)


def bundle_model(uri: str) -> PictureModel:
    """Describes a bundle; raises UsageError if it is none."""
    uri = storage.normalize(uri)
    record = load_record(uri)
    return PictureModel("bundle", _folder_name(storage.name_of(uri), record.id), uri, record.id)


def timm_model(call: str, weights: str | None) -> PictureModel:
    """Describes a model of timm or of the catalogue by its call, with weights from a file.

    Raises:
        UsageError: there is no such model, or no weights are given.
    """
    facts = info(call)
    if weights is None or weights == "pretrained":
        raise UsageError(f"--model {call} needs --weights FILE (.safetensors, .pth, .pt or .bin); none are downloaded")
    uri = storage.normalize(weights)
    data = storage.read_bytes(uri, _MAX_WEIGHTS_BYTES)
    digest = digest_of([CALL_VERSION, call, hashlib.sha256(data).hexdigest(), list(facts.input_size)])
    return PictureModel("timm", _folder_name(call, digest), uri, digest, call=call)


def onnx_model(uri: str, card: str | None) -> PictureModel:
    """Describes an ONNX file and its card.

    Raises:
        UsageError: there is no card, or it is wrong; names what is.
    """
    uri = storage.normalize(uri)
    if card is None:
        raise UsageError(f"--model {uri} needs --card CARD.yaml, which says size, mean, std and outputs")
    read = read_card(storage.normalize(card))
    graph = storage.read_bytes(uri, _MAX_GRAPH_BYTES)
    return PictureModel(
        "onnx", read.name, uri, digest_of([hashlib.sha256(graph).hexdigest(), read.model_dump()]), card=read
    )


def read_card(uri: str) -> Card:
    """Reads the card of an ONNX file; raises UsageError that names what is wrong."""
    text = storage.read_bytes(uri, _MAX_CARD_BYTES).decode("utf-8", "replace")
    try:
        content = load_yaml(text)
        card = Card.model_validate(content)
        _ = card.inputs
    except pydantic.ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'the card'}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors(include_url=False)[:5]
        )
        raise UsageError(f"{uri}: {problems}") from None
    except StriateError as error:
        raise UsageError(f"{uri}: {error}") from None
    return card


def check_embeds(model: PictureModel) -> None:
    """Raises UsageError if a model stores no embedding."""
    if model.kind == "bundle" and load_record(model.uri).members:
        raise UsageError(f"{model.uri} is an ensemble, which has no embedding; name a member: {model.uri}/members/0")
    if model.card is not None and model.card.embedding is None:
        raise UsageError(f"the card of {model.uri} names no embedding; add `embedding: OUTPUT`")


def open_model(model: PictureModel, threads: int = 1) -> OpenModel:
    """Loads a model.

    Raises:
        StriateError: it cannot be loaded, or its outputs are not those of the card.
    """
    if model.kind == "bundle":
        return _open_bundle(model, threads)
    return _open_timm(model, threads) if model.kind == "timm" else _open_onnx(model, threads)


def _open_bundle(model: PictureModel, threads: int) -> OpenModel:
    import torch

    from library.bundle.bundle import Bundle

    torch.set_num_threads(threads)
    record = load_planned(model.uri, model.digest)
    bundle = Bundle.load(model.uri, "cpu", model.digest)
    classes = list(bundle.classes)
    columns = [
        pa.field(PREDICTED, pa.string()),
        pa.field(SCORE, pa.float32()),
        pa.field(PROBABILITIES, pa.list_(pa.float32(), len(classes))),
    ]
    if not record.members:
        columns.append(pa.field(EMBEDDING, pa.list_(pa.float32(), bundle.model.num_features)))

    def compute(pictures: Sequence[Prepared]) -> Outputs:
        if record.members:
            outputs: dict[str, NDArray[Any]] = {PROBABILITIES: bundle.probabilities(pictures)}
        else:
            features, probabilities = bundle.features(pictures)
            outputs = {PROBABILITIES: probabilities, EMBEDDING: features}
        best = outputs[PROBABILITIES].argmax(axis=1)
        outputs[PREDICTED] = np.array([classes[number] for number in best.tolist()], dtype=object)
        outputs[SCORE] = outputs[PROBABILITIES].max(axis=1)
        return outputs

    return OpenModel(bundle.prepare, compute, columns)


def _open_timm(model: PictureModel, threads: int) -> OpenModel:
    import torch

    from library.models.build import create

    torch.set_num_threads(threads)
    facts = info(model.call)
    channels, height, width = facts.input_size
    network = create(model.call, num_classes=1, weights=model.uri).eval()
    fit = f"resize({round(min(height, width) / 0.875)}) | center_crop([{height}, {width}])"
    inputs = InputPipeline.parse("rgb" if channels == 3 else "grayscale", fit, (height, width), channels)

    def compute(pictures: Sequence[Prepared]) -> Outputs:
        batch = torch.from_numpy(stack([np.asarray(one) for one in pictures])).permute(0, 3, 1, 2)
        with torch.inference_mode():
            return {EMBEDDING: network.features(batch).float().numpy()}

    columns = [pa.field(EMBEDDING, pa.list_(pa.float32(), network.num_features))]
    return OpenModel(inputs.prepare, compute, columns)


def _open_onnx(model: PictureModel, threads: int) -> OpenModel:
    assert model.card is not None
    card, graph = model.card, _Graph(model.uri, model.card, threads)
    height, width = card.inputs.size
    columns: list[pa.Field[Any]] = []
    tried = graph.run([np.zeros((height, width, card.channels), np.uint8)])
    for name, names in card.scores.items():
        if tried[name].size != len(names):
            raise StriateError(
                f"the output '{name}' of {model.uri} has {tried[name].size} numbers a picture, but the card names "
                f"{len(names)} columns"
            )
        columns += [pa.field(column, pa.float32()) for column in names]
    if card.embedding is not None:
        columns.append(pa.field(EMBEDDING, pa.list_(pa.float32(), tried[card.embedding].size)))

    def compute(pictures: Sequence[Prepared]) -> Outputs:
        outputs: dict[str, NDArray[Any]] = {}
        for name, numbers in graph.run([np.asarray(one) for one in pictures]).items():
            if name == card.embedding:
                outputs[EMBEDDING] = numbers
            for place, column in enumerate(card.scores.get(name, ())):
                outputs[column] = numbers[:, place]
        return outputs

    return OpenModel(_only_uint8(card.inputs), compute, columns)


class _Graph:
    """An ONNX file that is open in ONNX Runtime, with the input that its card describes."""

    def __init__(self, uri: str, card: Card, threads: int) -> None:
        import onnxruntime

        graph = storage.read_bytes(uri, _MAX_GRAPH_BYTES)
        try:
            options = session_options(threads)
            session: Any = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common base
            raise StriateError(f"{uri} cannot be opened by ONNX Runtime: {first_line(error)}") from None
        given, known = session.get_inputs(), [one.name for one in session.get_outputs()]
        if len(given) != 1 or given[0].type not in ("tensor(float)", "tensor(uint8)"):
            inputs = ", ".join(f"{one.name} of {one.type}" for one in given)
            raise StriateError(f"{uri} must have one input of float32 or uint8; it has {inputs}")
        self._names = [name for name in (card.embedding, *card.scores) if name is not None]
        for name in self._names:
            if name not in known:
                raise StriateError(f"{uri} has no output '{name}'; its outputs are {', '.join(known)}")
        self._uri, self._card, self._session, self._input = uri, card, session, given[0]
        self._mean, self._std = (np.asarray(values, np.float32) for values in (card.mean, card.std))

    def run(self, pictures: Sequence[Pixels]) -> dict[str, NDArray[np.float32]]:
        """Returns the outputs of the card as N x numbers, of uint8 pictures of its size."""
        batch = np.stack(pictures)
        if self._input.type == "tensor(float)":
            batch = (batch.astype(np.float32) / np.float32(255) - self._mean) / self._std
        if self._card.layout == "nchw":
            batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        # Many exported graphs take one picture at a time.
        one_by_one = bool(self._input.shape) and self._input.shape[0] == 1
        try:
            parts = np.split(batch, len(batch)) if one_by_one else [batch]
            results = [self._session.run(self._names, {self._input.name: part}) for part in parts]
        except Exception as error:  # its errors have no common base
            raise StriateError(f"{self._uri} cannot be computed: {first_line(error)}") from None
        columns = (np.concatenate(values) for values in zip(*results, strict=True))
        shaped = (values.astype(np.float32).reshape(len(pictures), -1) for values in columns)
        return dict(zip(self._names, shaped, strict=True))


def _only_uint8(inputs: InputPipeline) -> Callable[..., Pixels]:
    def prepare(data: bytes, **columns: Any) -> Pixels:
        pixels = inputs.prepare(data, **columns)
        if pixels.dtype == np.uint8:
            return pixels
        top = 65535 if pixels.dtype == np.uint16 else 1
        return np.rint(np.clip(np.nan_to_num(pixels.astype(np.float32) * (255 / top)), 0, 255)).astype(np.uint8)

    return prepare


def _folder_name(text: str, digest: str) -> str:
    """Returns a name for a folder: letters, digits, and the beginning of a digest, which tells equal names apart."""
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', text).strip('_')[:48] or 'model'}_{digest[:8]}"
