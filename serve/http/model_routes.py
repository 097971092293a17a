"""HTTP routes of one model: everything under /models/NAME.

The gateway has the same routes for every model. It answers requests that the proxy does not route to the model itself:
those with an encoded path (`/models/%6Fne`), and those for a model that the proxy does not know yet.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response

from library.errors import BadPicture
from serve.http.access_control import AccessControl
from serve.http.dispatch import await_answer
from serve.http.middleware import ResponseMiddleware, allow_origins
from serve.http.openapi import MODELS, PNG, describe_api, make_app, pictures_body, problems
from serve.http.problem_details import Problem, handle_problems, problem_of
from serve.http.schemas import (
    ClassProbability,
    DriftReport,
    InsidePart,
    ModelDescription,
    PicturePrediction,
    PredictAnswer,
)
from serve.http.service import Answer, Answers, ModelService
from serve.http.uploads import JsonPictures, Upload, read_picture, read_pictures
from serve.settings import ServeSettings

_BUSY = (429, 503, 504)
_BODY = (400, 408, 413, 415)
_NAMED: dict[str, Any] = {
    "parameters": [
        {
            "name": "name",
            "in": "path",
            "required": True,
            "schema": {"type": "string"},
            "description": "the model's name",
        }
    ]
}


def model_app(service: ModelService, settings: ServeSettings) -> FastAPI:
    """Returns the application of one model, for the route prefix /models/NAME.

    Args:
        service: called only for requests, so it may still be loading when the application is created.
        settings: limits, keys and options.

    Raises:
        UsageError: for a wrong line among the keys, or a missing key file.
    """
    app = make_app("Striate: one model", "A picture classifier.")
    handle_problems(app)
    add_model_routes(app, "", lambda request: service, settings)
    describe_api(app, settings, [JsonPictures])
    app.add_middleware(AccessControl, settings=settings, is_open=lambda method, path: False)
    allow_origins(app, settings.cors_origins)
    app.add_middleware(ResponseMiddleware, model=service.name)
    return app


def add_model_routes(
    app: FastAPI, prefix: str, service_of: Callable[[Request], ModelService], settings: ServeSettings
) -> None:
    """Adds the routes of a model.

    Args:
        app: the application of one model, or the gateway.
        prefix: "" in a model's own application, else a path with `{name}` in it.
        service_of: returns the model that a request names; raises Problem where there is none.
        settings: limits and options.
    """
    named, unknown = (_NAMED, (404,)) if prefix else (dict[str, Any](), ())

    @app.get(
        prefix or "/",
        tags=[MODELS],
        summary="Describe the model",
        responses=problems(*unknown, *_BUSY),
        openapi_extra=named,
    )
    async def model(request: Request) -> ModelDescription:
        return await await_answer(request, settings, service_of(request).describe())

    if prefix:
        app.get(f"{prefix}/", include_in_schema=False)(model)

    @app.post(
        f"{prefix}/predict",
        tags=[MODELS],
        summary="Classify pictures",
        responses=problems(*unknown, *_BODY, *_BUSY),
        response_model_exclude_unset=True,
        openapi_extra=named | pictures_body(several=True),
    )
    async def predict(
        request: Request,
        top_k: Annotated[int, Query(ge=1, le=10**6, description="number of classes, best first")] = settings.top_k,
        explain: Annotated[
            bool, Query(description="add a Grad-CAM as PNG: the regions that speak for the best class")
        ] = False,
    ) -> PredictAnswer:
        """The body is one picture; or a form with one or several as `file`; or JSON with base64.

        Where a single picture cannot be used, the response is that error. For several pictures the status is 200, and
        each has its classes or its own error.
        """
        service = service_of(request)
        if explain:
            await _check_explained(service, "Leave explain out, or use")
        uploads = await read_pictures(request, settings)
        call = service.predict([upload.data for upload in uploads], top_k=top_k, explain=explain)
        return _predictions(service.name, uploads, await await_answer(request, settings, call))

    @app.post(
        f"{prefix}/view",
        tags=[MODELS],
        summary="Show what the model sees",
        responses=PNG | problems(*unknown, *_BODY, *_BUSY),
        response_class=Response,
        openapi_extra=named | pictures_body(several=False),
    )
    async def view(request: Request) -> Response:
        """Returns the picture after the model's own input pipeline, as PNG."""
        service = service_of(request)
        upload = await read_picture(request, settings)
        return Response(await await_answer(request, settings, service.view(upload.data)), media_type="image/png")

    @app.post(
        f"{prefix}/inside",
        tags=[MODELS],
        summary="Look inside the model",
        responses=PNG | problems(*unknown, *_BODY, *_BUSY),
        response_class=Response,
        openapi_extra=named | pictures_body(several=False),
    )
    async def inside(
        request: Request,
        part: Annotated[
            InsidePart,
            Query(
                description="`maps`: feature maps stage by stage; `kernels`: the first layer's; `grad_cam`; "
                "`occlusion`: the probability while parts are hidden; `fields`: what one unit of each stage sees"
            ),
        ],
        class_name: Annotated[
            str | None,
            Query(alias="class", max_length=1024, description="for `grad_cam` and `occlusion`; else the most probable"),
        ] = None,
    ) -> Response:
        """Returns a drawing as PNG; maps, kernels and fields of an ensemble for each of its first eight members.

        A replica draws one at a time, and refuses others with 503 meanwhile. Occlusion costs as much as classifying
        about fifty pictures, which wait among those of other requests; everything else as much as a few.
        """
        service = service_of(request)
        await _check_explained(service, "Use")
        if class_name is not None and part not in ("grad_cam", "occlusion"):
            how = "Leave it out, or ask for part=grad_cam or part=occlusion."
            raise Problem(422, "parameter", f"class has no effect on part={part}", how)
        upload = await read_picture(request, settings)
        drawing = await await_answer(request, settings, service.inside(upload.data, part, class_name))
        return Response(drawing, media_type="image/png")

    @app.get(
        f"{prefix}/drift",
        tags=[MODELS],
        summary="Compare recent requests with the training data",
        responses=problems(404, *_BUSY, of_404="drift is not measured"),
        openapi_extra=named,
    )
    async def drift(request: Request) -> DriftReport:
        report = await await_answer(request, settings, service_of(request).drift())
        if report is None:
            raise Problem(404, "drift_off", "Drift is not measured.", "Start the server with --drift.")
        return report


async def _check_explained(service: ModelService, what_works: str) -> None:
    if not (await service.describe()).explain:
        how = f"{what_works} a model whose `explain` is true in GET /models."
        raise Problem(422, "no_explanation", f"'{service.name}' has no explanations", how)


def _predictions(name: str, uploads: Sequence[Upload], answers: Answers) -> PredictAnswer:
    if len(answers.pictures) == 1 and isinstance(answers.pictures[0], BadPicture):
        raise answers.pictures[0]
    return PredictAnswer(
        model=name,
        bundle_id=answers.bundle_id,
        predictions=[_prediction(upload, answer) for upload, answer in zip(uploads, answers.pictures, strict=True)],
        timing=answers.timing,
    )


def _prediction(upload: Upload, answer: Answer | BadPicture) -> PicturePrediction:
    if isinstance(answer, BadPicture):
        return PicturePrediction(file=upload.name, error=problem_of(answer).body())
    classes = [ClassProbability({"class": name, "probability": probability}) for name, probability in answer.classes]
    prediction = PicturePrediction(file=upload.name, classes=classes, width=answer.width, height=answer.height)
    if answer.explanation is not None:
        prediction.explanation = base64.b64encode(answer.explanation).decode()
    return prediction
