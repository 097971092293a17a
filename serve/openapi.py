"""The description of the API (OpenAPI 3.1), and what all routes of it share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic_core import to_json

from library.versions import VERSIONS
from serve.bodies import JsonPictures
from serve.problems import MEDIA_TYPE, Problem
from serve.schemas import ProblemBody
from serve.settings import ServeSettings

_PROBLEM = {"schema": {"$ref": "#/components/schemas/Problem"}}
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {"file": {"type": "array", "items": _BINARY["schema"], "minItems": 1}},
    "required": ["file"],
    "additionalProperties": False,
}
_WORDS = {
    400: "no picture, or a damaged one; a broken body",
    401: "no key, or one that is not known",
    404: "no such model",
    408: "the body came too slowly",
    413: "too many bytes, pixels or files",
    415: "a type that is not taken",
    422: "a wrong parameter or field; a picture that the model's own selectors drop",
    429: "too many requests; see Retry-After",
    503: "busy or not ready; see Retry-After",
    504: "no answer in time",
}


class Json(Response):
    """A JSON answer; floats are written so that reading them gives the same bits."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content, inf_nan_mode="null")


def problems(*statuses: int, **words: str) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for `responses`: 401 and 422 are of every one."""
    return {
        status: {
            "description": words.get(f"of_{status}", _WORDS.get(status, HTTPStatus(status).phrase)),
            "content": {MEDIA_TYPE: _PROBLEM},
        }
        for status in sorted({401, 422, *statuses})
    }


def pictures_body(*, several: bool) -> dict[str, Any]:
    """A body of one or several pictures, for `openapi_extra`."""
    json_schema = JsonPictures.model_json_schema()
    definitions = json_schema.pop("$defs")
    json_schema["properties"]["pictures"]["items"] = definitions["JsonPicture"]
    form = dict(_FORM)
    if not several:
        json_schema["properties"]["pictures"]["maxItems"] = 1
        form["properties"] = {"file": _BINARY["schema"]}
    content = {
        "image/*": _BINARY,
        "application/octet-stream": _BINARY,
        "multipart/form-data": {"schema": form},
        "application/json": {"schema": json_schema},
    }
    return {"requestBody": {"required": True, "content": content}}


async def strict_query(request: Request) -> None:
    """Refuses parameters that the route does not have, or that stand there twice."""
    route = request.scope["route"]
    known = {field.alias for field in route.dependant.query_params} if isinstance(route, APIRoute) else set[str]()
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name not in known or name in seen:
            what = "is there twice" if name in seen else "is no parameter here"
            taken = f"It takes {', '.join(sorted(known))}." if known else "It takes none."
            raise Problem(422, "parameter", f"'{name[:80]}' {what}", taken)
        seen.add(name)


def make_app(
    title: str, summary: str, lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None
) -> FastAPI:
    """An application whose pages need nothing from outside."""
    # Redirects to an address without a last slash would be built from the request's own Host.
    return FastAPI(
        title=title,
        summary=summary,
        version=VERSIONS["striate"],
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        dependencies=[Depends(strict_query)],
    )


def describe_api(app: FastAPI, settings: ServeSettings, more: dict[str, Any] | None = None) -> None:
    """Put what FastAPI cannot know into the description of `app`: problems, keys, and the paths of `more`."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            components = made.setdefault("components", {})
            schemas: dict[str, Any] = components.setdefault("schemas", {})
            if more is not None:
                made["paths"] |= more["paths"]
                schemas |= more["components"]["schemas"]
            schemas["Problem"] = ProblemBody.model_json_schema()
            if settings.needs_key:
                components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                made["security"] = [{"key": []}]
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = openapi
