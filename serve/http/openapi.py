"""The description of the API (OpenAPI 3.1), and what all routes of it share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import Any

from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from library.dataset.manifest import VERSIONS
from serve.http.problem_details import MEDIA_TYPE, Problem
from serve.http.schemas import ProblemBody
from serve.http.uploads import JsonPictures
from serve.settings import ServeSettings

#: Groups of routes in the description.
HEALTH, MODELS, PIPELINES, PROTOCOL = "Health", "Models", "Pipelines", "Open Inference Protocol"
#: Unencoded bytes, in a schema.
BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
#: The answer of a route that returns a picture, for `responses`.
PNG: dict[int | str, dict[str, Any]] = {200: {"description": "a PNG", "content": {"image/png": {"schema": BINARY}}}}
_ABOUT = """Where the server has API keys, requests need one: `Authorization: Bearer KEY`. Errors are
`application/problem+json` and say what is wrong, where, and what would work.

    curl --data-binary @cat.jpg http://127.0.0.1:8000/models/NAME/predict
    curl -F file=@a.jpg -F file=@b.jpg 'http://127.0.0.1:8000/models/NAME/predict?top_k=3'
"""
_REF = "#/components/schemas/{model}"
_PROBLEM = {"schema": {"$ref": _REF.format(model="ProblemBody")}}
_WORDS = {
    400: "not a picture, a damaged one, or a broken body",
    401: "no API key, or an unknown one",
    404: "no such model",
    408: "the body arrived too slowly",
    413: "too many bytes, pixels or files",
    415: "an unsupported type",
    422: "a wrong parameter or field, or a picture that the model's own selectors drop",
    429: "too many requests; see Retry-After",
    503: "busy or not ready; see Retry-After",
    504: "no answer in time",
}


def problems(*statuses: int, **words: str) -> dict[int | str, dict[str, Any]]:
    """Returns the errors of a route, for `responses`; every route has 401 and 422."""
    return {
        status: {
            "description": words.get(f"of_{status}", _WORDS.get(status, HTTPStatus(status).phrase)),
            "content": {MEDIA_TYPE: _PROBLEM},
        }
        for status in sorted({401, 422, *statuses})
    }


def body_of(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the description of a body, for `openapi_extra`, from schemas by media type."""
    return {
        "requestBody": {"required": True, "content": {kind: {"schema": schema} for kind, schema in content.items()}}
    }


def pictures_body(*, several: bool) -> dict[str, Any]:
    """Returns the description of a body with one or several pictures, for `openapi_extra`."""
    files = {"type": "array", "items": BINARY, "minItems": 1} if several else BINARY
    form = {"type": "object", "properties": {"file": files}, "required": ["file"], "additionalProperties": False}
    return body_of(
        {
            "image/*": BINARY,
            "application/octet-stream": BINARY,
            "multipart/form-data": form,
            "application/json": {"$ref": _REF.format(model=JsonPictures.__name__)},
        }
    )


async def _check_query(request: Request) -> None:
    """Refuses query parameters that the route does not have, or that occur twice."""
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    previous: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name not in known or name in previous:
            what = "occurs twice" if name in previous else "is not a parameter of this route"
            how = f"The parameters are: {', '.join(sorted(known))}." if known else "This route has no parameters."
            raise Problem(422, "parameter", f"'{name[:80]}' {what}", how)
        previous.add(name)


def make_app(
    title: str, summary: str, lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None
) -> FastAPI:
    """Returns an application without FastAPI's own pages, which load scripts from the internet."""
    # A redirect to the path without its last slash would be built from the request's own Host header.
    return FastAPI(
        title=title,
        summary=summary,
        description=_ABOUT,
        version=VERSIONS["striate"],
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(_check_query)],
        lifespan=lifespan,
    )


def describe_api(app: FastAPI, settings: ServeSettings, bodies: Sequence[type[BaseModel]]) -> None:
    """Completes FastAPI's description of `app`; call it after all routes are added.

    Args:
        app: the application.
        settings: whether requests need a key.
        bodies: models of the bodies that routes name with `body_of`.
    """
    _, definitions = models_json_schema([(model, "validation") for model in (ProblemBody, *bodies)], ref_template=_REF)
    description = app.openapi()
    components = description.setdefault("components", {})
    components.setdefault("schemas", {}).update(definitions["$defs"])
    if settings.needs_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        # Set at each operation: with one setting for the whole API Swagger UI draws a lock at /healthz too.
        for operations in description["paths"].values():
            for operation in operations.values():
                operation.setdefault("security", [{"key": []}])
