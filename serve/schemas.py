"""What answers look like, for the documentation and the tests that hold answers to it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """An object with these members and no others."""

    model_config = ConfigDict(extra="forbid")


class ProblemBody(BaseModel):
    """An error, after RFC 9457."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(pattern="^urn:striate:[a-z0-9_]+$", description="what kind of problem, for programs")]
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: Annotated[str, Field(description="what is wrong, and where")]
    reason: Annotated[str, Field(description="why a picture cannot be used, e.g. `truncated`, `dropped:too_dark`")] = ""
    how: Annotated[str, Field(description="what would work")] = ""


class ClassProbability(Strict):
    """One class of an answer."""

    name: Annotated[str, Field(alias="class")]
    probability: Annotated[float, Field(ge=0, le=1.0001)]


class PicturePrediction(Strict):
    """The ranked classes of one picture, or its own error."""

    file: str | None
    classes: list[ClassProbability] = []
    width: Annotated[int, Field(ge=1, description="of the decoded picture, in pixels")] = 1
    height: Annotated[int, Field(ge=1)] = 1
    explanation: Annotated[str, Field(description="PNG in base64: what spoke for the best class (Grad-CAM)")] = ""
    error: ProblemBody | None = None


class TimingBody(Strict):
    """How long it took, in milliseconds."""

    decode_ms: float
    queue_ms: float
    infer_ms: float
    total_ms: float


class PredictAnswer(Strict):
    """What a model says of the pictures of one request, in their order."""

    model: str
    bundle_id: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    predictions: list[PicturePrediction]
    timing: TimingBody


class InputDescription(Strict):
    """What a model makes of a picture before it looks at it."""

    steps: str
    fit: str
    size: tuple[int, int]
    channels: int


class ModelDescription(BaseModel):
    """A model that is served."""

    name: str
    bundle_id: str
    model: Annotated[str, Field(description='its call, such as `resnet50(in_chans=3)`, or "ensemble"')]
    classes: list[str]
    input: InputDescription
    metrics: dict[str, Any]
    provenance: dict[str, Any]
    runtime: dict[str, Any]
    explain: Annotated[bool, Field(description="whether `explain=true` may be asked")]
    ready: bool
    state: str


class ModelState(BaseModel):
    """A model that does not answer at the moment."""

    name: str
    ready: bool
    state: str


class Models(Strict):
    """All that are served."""

    models: list[ModelDescription | ModelState]


class Live(Strict):
    """The server runs."""

    status: str


class Ready(Strict):
    """Whether all models answer."""

    ready: bool
    models: list[ModelState]


class PipelineText(Strict):
    """A pipeline that can be run."""

    ok: bool
    canonical: Annotated[str, Field(description="with every parameter")]


class Parameter(Strict):
    """A parameter of a step."""

    name: str
    type: str
    default: str | None
    required: bool
    help: str


class StepDescription(Strict):
    """A step of pipelines."""

    name: str
    kind: Annotated[str, Field(pattern="^(filter|selector|augmentation)$")]
    help: str
    parameters: list[Parameter]
    example: str
