"""The files of the web page and of /docs: read once, so that no path of a request ever reaches the disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from fastapi import FastAPI, Request, Response

from serve.problems import Problem

_ROOT = Path(__file__).parent / "web"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    tag: str


def add_static_files(app: FastAPI) -> None:
    """Answer / with the page, /docs with Swagger UI, and /web/NAME with what they need."""
    files = {
        path.relative_to(_ROOT).as_posix(): _read(path)
        for path in sorted(_ROOT.rglob("*"))
        if path.is_file() and path.suffix in _TYPES
    }
    swagger = Path(str(resources.files("fastapi_offline"))) / "static"
    files |= {name: _read(swagger / name) for name in ("swagger-ui-bundle.js", "swagger-ui.css")}

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return _answer(request, files.get("index.html"))

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return _answer(request, files["docs.html"])

    @app.get("/web/{name:path}", include_in_schema=False)
    async def asset(request: Request, name: str) -> Response:
        return _answer(request, files.get(name))


def _read(path: Path) -> _File:
    content = path.read_bytes()
    return _File(content, _TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _answer(request: Request, file: _File | None) -> Response:
    if file is None:
        raise Problem(404, "not_found", "There is nothing at this address.", "The page is at /.")
    # Kept by browsers, but asked for again each time: a new version is seen at once.
    headers = {"ETag": file.tag, "Cache-Control": "no-cache"}
    if file.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
