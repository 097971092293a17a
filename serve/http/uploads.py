"""Reads a request's body as pictures: raw bytes, a form with files, or JSON with base64.

Bodies stay in memory, within the limits of `access_control`; nothing is written to disk.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import pydantic
from anyio import to_thread
from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from serve.http.problem_details import Problem, invalid_values
from serve.settings import ServeSettings

#: The second is what `curl --data-binary` sends for any file.
_RAW = ("application/octet-stream", "application/x-www-form-urlencoded", "")
_SUPPORTED = "image/*, application/octet-stream, multipart/form-data with files named 'file', or application/json"
#: Limit of ':', ',', '{' and '[' a picture: it needs six, and its name may contain more.
_MARKS_A_PICTURE = 100
#: Fields of a form that are not files: one is refused by its name, more are refused by their number.
_MAX_FIELDS = 10
#: A larger JSON body is parsed in a thread, so that it does not block other requests.
_INLINE_BYTES = 64 * 2**10

_T = TypeVar("_T")


@dataclass(frozen=True)
class Upload:
    """One encoded picture; `name` is the file's name where the request has one."""

    data: bytes
    name: str | None = None


class JsonPicture(pydantic.BaseModel):
    """A picture in a JSON body."""

    model_config = pydantic.ConfigDict(extra="forbid")

    name: Annotated[str | None, pydantic.Field(max_length=1024, description="returned as `file`")] = None
    base64: Annotated[
        str,
        pydantic.Field(description="the encoded picture (JPEG, PNG, ...) in standard base64, without line breaks"),
    ]


class JsonPictures(pydantic.BaseModel):
    """A JSON body with pictures."""

    model_config = pydantic.ConfigDict(extra="forbid")

    pictures: Annotated[list[JsonPicture], pydantic.Field(min_length=1)]


async def read_pictures(request: Request, settings: ServeSettings) -> list[Upload]:
    """Returns the pictures of a request.

    Raises:
        Problem: 400 for a broken body, 408, 413, 415 or 422.
    """
    kind = media_type(request)
    if kind == "multipart/form-data":
        return await _of_form(request, settings.max_files)
    if kind == "application/json":
        return await in_thread(_of_json, await request.body(), settings.max_files)
    if kind in _RAW or kind.startswith("image/"):
        return [Upload(await request.body())]
    raise unsupported(kind, _SUPPORTED)


async def read_picture(request: Request, settings: ServeSettings) -> Upload:
    """Returns the only picture of a request; raises Problem as `read_pictures` does, and 422 for several."""
    uploads = await read_pictures(request, settings)
    if len(uploads) > 1:
        raise Problem(
            422, "one_picture", f"the request has {len(uploads)} pictures instead of one", "Send one picture."
        )
    return uploads[0]


def media_type(request: Request) -> str:
    """Returns the content type without its parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def unsupported(kind: str, supported: str) -> Problem:
    """Returns the problem of an unsupported content type."""
    return Problem(415, "media_type", f"the content type '{kind[:80]}' is not supported here", f"Send {supported}.")


async def in_thread(parse: Callable[..., _T], body: bytes, *arguments: Any) -> _T:
    """Parses a body, in a thread where it is large."""
    if len(body) <= _INLINE_BYTES:
        return parse(body, *arguments)
    return await to_thread.run_sync(parse, body, *arguments)


def _too_many(at_most: int) -> Problem:
    how = "Send them in several requests; for whole datasets there is `striate predict`."
    return Problem(413, "too_many_files", f"the request has more than {at_most} pictures", how)


# -- JSON -------------------------------------------------------------------------------------------------------------


def _of_json(body: bytes, max_files: int) -> list[Upload]:
    check_fields(body, _MARKS_A_PICTURE * (max_files + 1))
    try:
        pictures = JsonPictures.model_validate_json(body).pictures
    except pydantic.ValidationError as error:
        raise invalid_values(error.errors(include_url=False, include_input=False), "body") from None
    if len(pictures) > max_files:
        raise _too_many(max_files)
    return [
        Upload(decode_base64(picture.base64, f"pictures.{n}.base64"), picture.name)
        for n, picture in enumerate(pictures)
    ]


def check_fields(body: bytes, at_most: int) -> None:
    """Refuses JSON with far more fields and values than a request needs: each wrong one would become an error object.

    Args:
        body: JSON.
        at_most: colons, commas and opening brackets, including those in strings; base64 has none.
    """
    if sum(map(body.count, (b":", b",", b"{", b"["))) > at_most:
        detail = f"the JSON has too many fields and values: at most {at_most:,} of ':', ',', '{{' and '[' are allowed"
        raise Problem(413, "too_many_fields", detail, "The page /docs describes the fields.")


def decode_base64(text: str, where: str) -> bytes:
    """Decodes standard base64, strictly; raises Problem, whose detail names `where`."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        how = "Encode the file's bytes in standard base64, without line breaks and without 'data:image/...;base64,'."
        raise Problem(422, "base64", f"{where} is not valid base64: {error}", how) from None


# -- forms ------------------------------------------------------------------------------------------------------------


class _Form(MultiPartParser):
    """Starlette's parser, which keeps all files in memory (not only those up to 1 MiB) and records the form's end."""

    spool_max_size = 0
    is_complete = False

    def on_end(self) -> None:
        self.is_complete = True


async def _of_form(request: Request, max_files: int) -> list[Upload]:
    _check_charset(request.headers["content-type"])
    form = _Form(request.headers, request.stream(), max_files=max_files, max_fields=_MAX_FIELDS)
    try:
        parts = (await form.parse()).multi_items()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise _too_many(max_files) from None
        raise _broken_form(f"the form is broken: {error.message}") from None
    if not form.is_complete:
        raise _broken_form("the form ends early")
    if not parts:
        raise Problem(422, "no_picture", "the form has no file", "Send one or several files named 'file'.")
    return [await _upload(name, part) for name, part in parts]


def _check_charset(content_type: str) -> None:
    """Refuses other charsets: Starlette looks up any name, and Python caches each name, which would fill the memory."""
    charset = parse_options_header(content_type)[1].get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() != "utf-8":
        raise Problem(415, "media_type", f"the form has the charset '{charset[:40]}'", "Send it in utf-8.")


async def _upload(name: str, part: UploadFile | str) -> Upload:
    if name != "file" or isinstance(part, str):
        how = "Send every picture as a file named 'file'; top_k and explain are query parameters: ?top_k=3."
        raise Problem(422, "field", f"the form's field '{name[:80]}' is not a file named 'file'", how)
    encoding = part.headers.get("content-transfer-encoding", "binary").lower()
    if encoding not in ("binary", "8bit", "7bit"):
        raise Problem(
            415,
            "content_encoding",
            f"a file of the form has the transfer encoding '{encoding[:40]}'",
            "Send its plain bytes.",
        )
    return Upload(await part.read(), part.filename)


def _broken_form(detail: str) -> Problem:
    return Problem(400, "malformed", detail, "Send it as `curl -F file=@a.jpg` does.")
