"""The facts that `striate steps` and `striate models` show: a step with an example picture, a model with its figures.

PyTorch is imported only by the functions that need it: that takes seconds.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from library.errors import UsageError
from library.grammar import nearest
from library.imaging import codec
from library.imaging.codec import Header
from library.imaging.contact_sheet import Tile, draw_sheet
from library.imaging.picture import Picture, Pixels
from library.models import ModelCall, info, names, parse_call
from library.models.catalog import TIMM, Accuracy
from library.models.parameters import parameters_of
from library.pipeline import Pipeline
from library.pipeline.augmentation import Augmenter
from library.steps import REGISTRY
from library.steps.base import Selector, Step
from library.steps.examples import EXAMPLES
from library.steps.help import StepHelp, step_help
from library.steps.selectors import TOP_CLASSES, TOP_PROBABILITIES

if TYPE_CHECKING:  # it imports PyTorch
    from library.models.analysis import Layer

_TILE_PX = 420
_VARIANTS = 5
_FIGURES = ("layers", "parameters", "multiply_adds")
# A plausible prediction for the example picture, for selectors that read one.
_PREDICTED = {TOP_CLASSES: ["flower", "butterfly"], TOP_PROBABILITIES: [0.93, 0.05]}


@dataclass(frozen=True)
class Choice:
    """A parameter in the call of a model.

    Attributes:
        name: of the parameter.
        value: in the call.
        default: None where it is not known, as for the models that only timm has.
        help: what it sets; empty where it is not known.
    """

    name: str
    value: Any
    default: Any
    help: str


@dataclass(frozen=True)
class ModelFacts:
    """The facts of one model and the figures computed from it.

    Attributes:
        name: of the model; timm's name for the models that only timm has.
        call: the model's canonical call.
        year: of the first publication; None if unknown.
        authors: of the paper.
        title: of the paper.
        paper: its URL.
        source: the library whose code it is.
        library_name: its name in that library, with the tag of its weights.
        weights_source: URL of the pre-trained weights; empty if there are none.
        layers: number of convolutions and dense layers on the longest path.
        parameters: number of trainable parameters without auxiliary heads.
        multiply_adds: for one picture.
        flops: twice `multiply_adds`.
        input_size: channels, height and width.
        num_classes: number of outputs.
        mean: of each channel, for pixels of 0 to 1.
        std: of each channel, for pixels of 0 to 1.
        interpolation: how pictures were resized when the weights were evaluated.
        crop_fraction: side of the centre crop in that evaluation, as a fraction of the resized picture's side.
        published: those of `layers`, `parameters` and `multiply_adds` that the paper states.
        differs: which of these differ from the computed figures.
        note: differences between the code and the paper.
        stages: names, from the input on.
        auxiliary_heads: weight of the loss of each head that exists in training only.
        choices: parameters of the call.
        accuracy: of the pre-trained weights on ImageNet, as published; None if unknown.
        per_layer: the figures of each layer; None unless asked for.
        receptive_field: height and width, in pixels, of the largest one; None without `per_layer`.
    """

    name: str
    call: str
    year: int | None
    authors: str
    title: str
    paper: str
    source: str
    library_name: str
    weights_source: str
    layers: int
    parameters: int
    multiply_adds: int
    flops: int
    input_size: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_fraction: float
    published: Mapping[str, int]
    differs: Sequence[str]
    note: str
    stages: Sequence[str]
    auxiliary_heads: Mapping[str, float]
    choices: Sequence[Choice]
    accuracy: Accuracy | None = None
    per_layer: Sequence[Layer] | None = None
    receptive_field: tuple[int, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON; what is unknown or was not asked for is left out."""
        values = dataclasses.asdict(self)
        for name in ("accuracy", "per_layer", "receptive_field"):
            if values[name] is None:
                del values[name]
        if self.call.startswith(f"{TIMM}("):
            for choice in values["choices"]:
                del choice["default"]
        return values


def describe_step(text: str) -> StepHelp:
    """Returns everything about one step, by name or as a call.

    Raises:
        UsageError: when there is no such step, or the call is wrong.
    """
    step = _step(text)
    return step_help(type(step), str(step))


def example_picture(text: str) -> tuple[bytes, str]:
    """Draws a photo beside its result after one step; returns the PNG and a line that describes the result.

    For an augmentation there are several results, each with other random parameters.

    Raises:
        UsageError: when there is no such step, or the call is wrong.
    """
    step = _step(text)
    photo = codec.decode((files("jobs.demo") / "flower.jpg").read_bytes())
    before = Tile(photo, _kind_of(photo))
    after = _after(step, photo)
    tiles = [before, *after]
    rows = [tiles[first : first + 2] for first in range(0, len(tiles), 2)]
    sheet = draw_sheet(rows, tile_px=_TILE_PX, headings=["before", str(step)])
    return codec.encode(sheet, codec.Encoding("png"))[0], after[0].caption


def _after(step: Step, photo: Pixels) -> list[Tile]:
    if step.kind == "selector":
        header = Header("jpeg", photo.shape[1], photo.shape[0], 3)
        data, _ = codec.encode(photo, codec.Encoding("jpeg", 95))
        reason = _as_selector(step).reason(Picture("flower.jpg", "flower", header, lambda: data, _PREDICTED))
        verdict = "kept" if reason is None else f"dropped: {reason}"
        return [Tile(photo if reason is None else None, verdict, verdict)]
    missing = step.columns()
    if missing:
        raise UsageError(
            f"the example picture has no column '{missing[0]}', which {step.name} reads: leave that parameter out, or "
            "try the step on a dataset that has the column: striate show DATASET --steps ..."
        )
    pipeline = Pipeline((step,))
    if step.kind == "augmentation":
        augmenter = Augmenter(pipeline, seed=0)
        results = [augmenter.apply(photo, number, "flower.jpg") for number in range(1, _VARIANTS + 1)]
    else:
        results = [pipeline.apply(photo)]
    return [Tile(result, _kind_of(result)) for result in results]


def _kind_of(pixels: Pixels) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}x{pixels.shape[2]} {pixels.dtype}"


def _as_selector(step: Any) -> Selector:
    return step


def _step(text: str) -> Step:
    name = text.strip()
    if name.isidentifier() and name not in REGISTRY:
        raise UsageError(f"unknown step '{name}'{nearest(name, REGISTRY)}; `striate steps` lists them all")
    pipeline = Pipeline.parse(EXAMPLES.get(name, name))
    if len(pipeline.steps) != 1:
        raise UsageError(f"'{text}' is {len(pipeline.steps)} steps; name one")
    return pipeline.steps[0]


def model_table() -> list[ModelFacts]:
    """Returns `describe_model` of every model of the table, oldest first."""
    return [describe_model(name) for name in names()]


def describe_model(
    text: str, *, size: tuple[int, int] | None = None, classes: int | None = None, layers: bool = False
) -> ModelFacts:
    """Returns the facts of one model and the figures computed from it.

    Args:
        text: name, or call with parameters.
        size: height and width of the input in pixels; None for the model's own.
        classes: number of outputs; None for as published.
        layers: whether to add `per_layer` and `receptive_field`.

    Raises:
        UsageError: for an unknown model, or an input size that it cannot take.
    """
    from library.models.analysis import analyse

    call = parse_call(text)
    facts, analysis = info(call), analyse(call, num_classes=classes, size=size)
    computed = {"layers": analysis.depth, "parameters": analysis.parameters, "multiply_adds": analysis.multiply_adds}
    as_published = str(call) == facts.name and analysis.num_classes == facts.num_classes and size is None
    published = {name: value for name in _FIGURES if (value := getattr(facts.published, name)) is not None}
    return ModelFacts(
        name=facts.name if call.name != TIMM else call.parameters["name"],
        call=str(call),
        year=facts.year,
        authors=facts.authors,
        title=facts.title,
        paper=facts.paper,
        source=facts.source,
        library_name=facts.library_name,
        weights_source=facts.weights_source,
        layers=analysis.depth,
        parameters=analysis.parameters,
        multiply_adds=analysis.multiply_adds,
        flops=analysis.flops,
        input_size=analysis.input_size,
        num_classes=analysis.num_classes,
        mean=facts.mean,
        std=facts.std,
        interpolation=facts.interpolation,
        crop_fraction=facts.crop_fraction,
        published={name: int(value) for name, value in published.items()},
        differs=[name for name, value in published.items() if as_published and not agrees(computed[name], value)],
        note=facts.note,
        stages=analysis.stages,
        auxiliary_heads=dict(facts.auxiliary),
        choices=_choices(call),
        accuracy=facts.accuracy,
        per_layer=analysis.layers if layers else None,
        receptive_field=_largest_field(analysis.layers) if layers else None,
    )


def _largest_field(layers: Sequence[Layer]) -> tuple[int, int]:
    height, width = (max(layer.receptive_field[axis] for layer in layers) for axis in (0, 1))
    return height, width


def agrees(computed: int, published: Decimal) -> bool:
    """Whether a figure equals the published one when rounded to as many digits."""
    digits = published.as_tuple()
    unit = Decimal(1).scaleb(int(digits.exponent))
    return (Decimal(computed) / unit).to_integral_value(ROUND_HALF_UP) == published / unit


def parse_size(text: str) -> tuple[int, int]:
    """Parses `200x320` or `224` into height and width in pixels.

    Raises:
        UsageError: for anything else.
    """
    matched = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text.strip().lower())
    if matched is None:
        raise UsageError(f"--input {text}: write height x width in pixels, e.g. 200x200")
    return int(matched[1]), int(matched[2] or matched[1])


def _choices(call: ModelCall) -> list[Choice]:
    if call.name == TIMM:
        return [Choice(name, value, None, "") for name, value in call.parameters.items()]
    return [
        Choice(field.name, call.parameters[field.name], field.default, _help(call.name, field.name))
        for field in dataclasses.fields(parameters_of(call.name))
    ]


def _help(model: str, parameter: str) -> str:
    described: Any = parameters_of(model).__pydantic_fields__[parameter]
    return str(described.description or "")
