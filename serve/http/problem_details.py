"""Errors over HTTP as `application/problem+json` (RFC 9457), never a stack trace.

{"type": "urn:striate:too_large", "title": "Content Too Large", "status": 413,
 "detail": "60000x60000 is 3,600,000,000 pixels; ...", "reason": "too_large", "how": "..."}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from cluster.console import json_text
from library.errors import BadPicture, GrammarError, StepError, StriateError, UsageError
from serve.http.schemas import ProblemBody
from serve.http.service import Busy, TimedOut

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An error that is answered as a problem.

    Args:
        status: HTTP status of the response.
        slug: kind of problem, for programs: `urn:striate:SLUG`.
        detail: one sentence for a person: what is wrong, and where.
        how: what would work.
        headers: headers of the response.
        extras: further members of the JSON object.
    """

    def __init__(
        self,
        status: int,
        slug: str,
        detail: str,
        how: str = "",
        headers: Mapping[str, str] | None = None,
        **extras: Any,
    ) -> None:
        self.status, self.slug, self.detail, self.how = status, slug, detail, how
        self.headers, self.extras = dict(headers or {}), extras
        super().__init__(f"{status} {slug}: {detail}")

    def body(self) -> ProblemBody:
        """Returns the JSON object."""
        members = self.extras | ({"how": self.how} if self.how else {})
        title = HTTPStatus(self.status).phrase
        return ProblemBody(
            type=f"urn:striate:{self.slug}", title=title, status=self.status, detail=self.detail, **members
        )

    def response(self, path: str) -> Response:
        """Returns the response to a request for `path`; clients of the Open Inference Protocol read `error`."""
        body = self.body().model_dump(exclude_unset=True)
        if path.startswith("/v2"):
            body["error"] = self.detail
        return Response(json_text(body), self.status, self.headers, MEDIA_TYPE)


def problem_of(error: Exception) -> Problem:
    """Returns the problem for an error; for one that is not ours, a 500 without details."""
    match error:
        case Problem():
            return error
        case BadPicture():
            return _of_picture(error)
        case Busy():
            wait = str(error.retry_after_s)
            slug = "busy" if error.status == 503 else "too_many_requests"
            return Problem(error.status, slug, error.detail, f"Try again in {wait} s.", {"Retry-After": wait})
        case TimedOut():
            return Problem(504, "timed_out", str(error), "Send fewer pictures in one request, or try again later.")
        case GrammarError():
            how = "GET /steps lists the steps and their parameters."
            return Problem(422, "grammar", error.message, how, offset=error.offset, length=error.length)
        case StepError():
            return Problem(
                422, "step_failed", str(error), "This step does not work for this picture; leave the step out."
            )
        case UsageError():
            return Problem(422, "usage", str(error))
        case StriateError():
            return Problem(503, "unavailable", str(error), "Try again later.", {"Retry-After": "5"})
        case _:
            return Problem(500, "internal", "The server failed to answer this request; its log has the reason.")


def handle_problems(app: FastAPI) -> None:
    """Answers every error of `app` as a problem."""

    async def ours(request: Request, error: Exception) -> Response:
        return problem_of(error).response(request.url.path)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return invalid_values(error.errors(), "request").response(request.url.path)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _of_http(error, request).response(request.url.path)

    for kind in (Problem, StriateError):
        app.add_exception_handler(kind, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def invalid_values(errors: Sequence[Any], what: str) -> Problem:
    """Returns pydantic's errors as one problem: the first as its detail, up to 20 in `errors`.

    Args:
        errors: from a `ValidationError`.
        what: what is not valid: `body`, `request`.
    """
    entries = [
        {"where": ".".join(str(part)[:80] for part in one["loc"]), "what": _in_words(one)} for one in errors[:20]
    ]
    if errors[0]["type"] == "json_invalid":
        return Problem(400, "malformed", f"the {what} is not valid JSON: {entries[0]['what']}")
    first = entries[0]
    where = f"{first['where']}: " if first["where"] else ""
    return Problem(422, "invalid", f"{where}{first['what']}", "The page /docs describes the API.", errors=entries)


def _in_words(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such parameter" if error["loc"][0] == "query" else "there is no such field"
    return str(error["msg"]).removeprefix("Value error, ")


def _of_picture(bad: BadPicture) -> Problem:
    if bad.reason.startswith("dropped:"):
        how = "The model was trained without such pictures, so it cannot classify this one."
        return Problem(422, "dropped", bad.detail, how, reason=bad.reason)
    status, how = _PICTURES.get(bad.reason, (422, "Send a picture that the model's input pipeline supports."))
    return Problem(status, bad.reason, bad.detail, how, reason=bad.reason)


_SEND = "Send a picture as JPEG, PNG, WebP, AVIF, HEIC, JPEG 2000, TIFF, GIF, BMP or NPY."
_PICTURES = {
    "empty": (400, _SEND),
    "not_an_image": (400, _SEND),
    "damaged": (400, "Send the picture again, or save it again with an image editor."),
    "truncated": (400, "Send the complete picture; this one ends early."),
    "zero_size": (400, _SEND),
    "unsupported": (415, _SEND),
    "too_large": (413, "Make the picture smaller."),
    "too_much_work": (413, "Save the picture again with an image editor's usual settings, or make it smaller."),
}


def _of_http(error: HTTPException, request: Request) -> Problem:
    headers = dict(error.headers or {})
    match error.status_code:
        case 404:
            return Problem(404, "not_found", "There is nothing at this address.", "The page /docs lists all routes.")
        case 405:
            how = f"Use {headers['Allow']}." if "Allow" in headers else ""
            return Problem(405, "method", f"{request.method} is not supported at this address.", how, headers)
        case status:
            return Problem(status, "http", str(error.detail), headers=headers)
