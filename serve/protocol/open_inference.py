"""Routes of the Open Inference Protocol v2 over REST, so that clients of Triton, KServe and others work unchanged.

The protocol has no error for one picture of several: a picture that cannot be used fails the whole request, and the
error names the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response

from library.dataset.manifest import VERSIONS
from library.errors import BadPicture
from serve.http.dispatch import await_answer, describe_all, describe_soon, find_model
from serve.http.openapi import BINARY, PROTOCOL, body_of, problems
from serve.http.service import Answer, ModelService
from serve.http.uploads import in_thread, media_type, unsupported
from serve.protocol.messages import HEADER_LENGTH, metadata, read_request, write_answer
from serve.settings import ServeSettings

_BODY_STATUSES = (400, 408, 413, 415)
_BODY = body_of({"application/json": {"$ref": "#/components/schemas/InferRequest"}, "application/octet-stream": BINARY})


def add_protocol(app: FastAPI, models: Mapping[str, ModelService], settings: ServeSettings) -> None:
    """Adds the protocol's routes."""

    @app.get("/v2", tags=[PROTOCOL], summary="Describe the server", responses=problems())
    async def server() -> dict[str, Any]:
        extensions = ["binary_tensor_data", "classification"]
        return {"name": "striate", "version": VERSIONS["striate"], "extensions": extensions}

    @app.get("/v2/health/live", tags=[PROTOCOL], summary="Check that the server runs", responses=problems())
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", tags=[PROTOCOL], summary="Check that all models answer", responses=problems(503))
    async def ready(response: Response) -> dict[str, bool]:
        states = await describe_all(models)
        are_ready = bool(states) and all(state.ready for state in states)
        response.status_code = 200 if are_ready else 503
        return {"ready": are_ready}

    for prefix in ("/v2/models/{name}", "/v2/models/{name}/versions/1"):
        _add_model(app, prefix, models, settings)


def _add_model(app: FastAPI, prefix: str, models: Mapping[str, ModelService], settings: ServeSettings) -> None:
    unknown = problems(404, 429, 503, 504)

    @app.get(prefix, tags=[PROTOCOL], summary="Describe a model's inputs and outputs", responses=unknown)
    async def describe(request: Request, name: str) -> dict[str, Any]:
        return metadata(await await_answer(request, settings, find_model(request, models, name).describe()))

    @app.get(f"{prefix}/ready", tags=[PROTOCOL], summary="Check that a model answers", responses=unknown)
    async def ready(request: Request, response: Response, name: str) -> dict[str, Any]:
        state = await describe_soon(find_model(request, models, name))
        response.status_code = 200 if state.ready else 503
        return {"name": name, "ready": state.ready}

    @app.post(
        f"{prefix}/infer",
        tags=[PROTOCOL],
        summary="Classify pictures",
        responses=unknown | problems(*_BODY_STATUSES),
        openapi_extra=_BODY,
    )
    async def infer(request: Request, name: str) -> Response:
        """The input is `image` (encoded pictures, BYTES) or `pixels` (UINT8); in JSON, `image` is base64."""
        return await _infer(request, find_model(request, models, name), settings)


async def _infer(request: Request, model: ModelService, settings: ServeSettings) -> Response:
    kind = media_type(request)
    if kind not in ("application/json", "application/octet-stream", ""):
        raise unsupported(kind, f"application/json, or application/octet-stream with {HEADER_LENGTH}")
    body = await request.body()
    parsed = await in_thread(read_request, body, request.headers.get(HEADER_LENGTH), settings)
    if parsed.pictures is not None:
        call = model.predict(parsed.pictures, top_k=parsed.most_classes)
    else:
        call = model.predict_pixels(parsed.pixels or [], top_k=parsed.most_classes)
    answers = await await_answer(request, settings, call)
    good: list[Answer] = []
    for place, answer in enumerate(answers.pictures):
        if isinstance(answer, BadPicture):
            where = f"picture {place}: " if len(answers.pictures) > 1 else ""
            raise BadPicture(answer.reason, where + answer.detail)
        good.append(answer)
    content, length = write_answer(parsed, model.name, good)
    if length is None:
        return Response(content, media_type="application/json")
    return Response(content, headers={HEADER_LENGTH: str(length)}, media_type="application/octet-stream")
