"""The JSON bodies of answers, as FastAPI writes and describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from library.bundle.description import BundleRecord


class Strict(BaseModel):
    """A JSON object without further members."""

    model_config = ConfigDict(extra="forbid")


#: What can be shown of the inside of a model for a picture.
InsidePart = Literal["maps", "kernels", "grad_cam", "occlusion", "fields"]


class ProblemBody(BaseModel):
    """An error, after RFC 9457."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(pattern="^urn:striate:[a-z0-9_]+$", description="kind of problem, for programs")]
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: Annotated[str, Field(description="what is wrong, and where")]
    reason: Annotated[str, Field(description="why a picture cannot be used, e.g. `truncated`, `dropped:too_dark`")] = ""
    how: Annotated[str, Field(description="what would work")] = ""


#: A class and its probability, 0 to 1. A plain dict, as an answer may have a thousand of them for each picture.
ClassProbability = TypedDict("ClassProbability", {"class": str, "probability": float})


class PicturePrediction(Strict):
    """The classes of one picture, best first, or its error."""

    file: str | None
    classes: list[ClassProbability] = []
    width: Annotated[int, Field(ge=1, description="of the decoded picture, in pixels")] = 1
    height: Annotated[int, Field(ge=1)] = 1
    explanation: Annotated[
        str, Field(description="PNG in base64: the regions that speak for the best class (Grad-CAM)")
    ] = ""
    error: ProblemBody | None = None


class Timing(Strict):
    """How long a request took, in milliseconds."""

    decode_ms: Annotated[float, Field(description="decoding and input pipeline, the sum over its pictures")] = 0
    queue_ms: Annotated[float, Field(description="waiting for a batch, the longest of its pictures")] = 0
    infer_ms: Annotated[float, Field(description="in the model, the longest of its pictures")] = 0
    total_ms: Annotated[float, Field(description="from the call to the answer")] = 0


class PredictAnswer(Strict):
    """A model's predictions for the pictures of one request, in order."""

    model: str
    bundle_id: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    predictions: list[PicturePrediction]
    timing: Timing


class InputDescription(Strict):
    """The input pipeline of a model."""

    steps: str
    fit: str
    size: tuple[int, int]
    channels: int
    decoder: Annotated[
        str | None,
        Field(
            description="how the decoder of the training pictures differs from this server's, if it does; "
            "of an ensemble for each member where it does"
        ),
    ] = None


class ModelDescription(Strict):
    """A model and its state."""

    name: str
    bundle_id: str
    model: Annotated[str, Field(description='its call, such as `resnet50(in_chans=3)`, or "ensemble"')]
    classes: list[str]
    input: InputDescription
    metrics: dict[str, Any]
    provenance: dict[str, Any]
    runtime: Annotated[dict[str, Any], Field(description="the runtime: name, device, batch size, threads")]
    explain: Annotated[bool, Field(description="whether `explain=true` and `inside` are supported")]
    ready: bool = True
    state: str = "RUNNING"

    @classmethod
    def of_record(
        cls,
        name: str,
        bundle_id: str,
        record: BundleRecord,
        runtime: dict[str, Any],
        *,
        explain: bool,
        decoder: str | None,
    ) -> ModelDescription:
        """Describes a bundle that is served under `name`; `decoder` is `Bundle.decoder_note`."""
        return cls(
            name=name,
            bundle_id=bundle_id,
            model=record.model or "ensemble",
            classes=list(record.classes),
            input=InputDescription(
                steps=record.steps,
                fit=record.fit,
                size=record.input_size,
                channels=record.channels,
                decoder=decoder,
            ),
            metrics=record.metrics,
            provenance=record.provenance,
            runtime=runtime,
            explain=explain,
        )


Verdict = Literal["same", "shifted", "drifted", "too_few"]


class Distance(Strict):
    """The distance of two histograms of one measure."""

    psi: Annotated[
        float, Field(ge=0, description="population stability index, less its value by chance; 0 means equal")
    ]
    js: Annotated[float, Field(ge=0, le=1, description="Jensen-Shannon distance; 1 means nothing in common")]
    verdict: Annotated[Verdict, Field(description="`too_few` until there are enough pictures")]
    reference: Annotated[int, Field(ge=0, description="pictures in the training data")]
    live: Annotated[int, Field(ge=0, description="pictures in recent requests")]


class PictureCounts(Strict):
    """Pictures counted by measure and by class; the counts of several replicas can be added."""

    version: Annotated[int, Field(description="changes when the bins change")]
    bins: Annotated[dict[str, list[int]], Field(description="counts by measure; the first and the last bin are open")]
    classes: dict[str, int] = {}


class DriftReport(Strict):
    """The distance between the pictures of recent requests and the training data."""

    verdict: Annotated[Verdict, Field(description="the worst of all measures")]
    thresholds: Annotated[dict[str, float], Field(description="the lowest psi of each verdict")]
    measures: dict[str, Distance]
    no_reference: Annotated[list[str], Field(description="measures that the training data lacks")]
    edges: Annotated[dict[str, list[float]], Field(description="boundaries of the bins, by measure")]
    reference: Annotated[PictureCounts, Field(description="counts of the training data")]
    live: Annotated[PictureCounts, Field(description="counts of the last few thousand pictures, of any age")]


class ModelState(Strict):
    """Whether a model answers."""

    name: str
    ready: bool
    state: str


class Models(Strict):
    """All models of the server."""

    models: list[ModelDescription | ModelState]


class Live(Strict):
    """The server runs."""

    status: str


class Ready(Strict):
    """Whether all models answer."""

    ready: bool
    models: list[ModelState]


class PipelineText(Strict):
    """A valid pipeline."""

    ok: bool
    canonical: Annotated[str, Field(description="the canonical text, with every parameter")]
