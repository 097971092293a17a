"""A request's body as pictures: raw bytes, a form with files, or JSON with base64.

Bodies are held in memory, which the guard bounds; nothing of them goes to disk.
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

#: `curl --data-binary` sends the second, whatever the file is.
_RAW = ("application/octet-stream", "application/x-www-form-urlencoded", "")
_TAKEN = "image/*, application/octet-stream, multipart/form-data with files named 'file', or application/json"
#: Of JSON's marks a picture has at most six, its name whatever is in it.
_MARKS_A_PICTURE = 100
#: Fields of a form that are not files: one is refused by its name, more without.
_MAX_FIELDS = 10
#: A larger JSON body is parsed in a thread, so that other requests go on meanwhile.
_AT_ONCE_BYTES = 64 * 2**10

_T = TypeVar("_T")


@dataclass(frozen=True)
class Upload:
    """One picture as it came; `name` is the file's, where the request says one."""

    data: bytes
    name: str | None = None


class JsonPicture(pydantic.BaseModel):
    """A picture in a JSON body."""

    model_config = pydantic.ConfigDict(extra="forbid")

    name: Annotated[str | None, pydantic.Field(max_length=1024, description="comes back as `file`")] = None
    base64: Annotated[
        str,
        pydantic.Field(description="the encoded picture (JPEG, PNG, ...) in standard base64, without line breaks"),
    ]


class JsonPictures(pydantic.BaseModel):
    """A JSON body."""

    model_config = pydantic.ConfigDict(extra="forbid")

    pictures: Annotated[list[JsonPicture], pydantic.Field(min_length=1)]


async def read_pictures(request: Request, settings: ServeSettings) -> list[Upload]:
    """The pictures of a request.

    Raises:
        Problem: 400 for a broken body, 408, 413, 415, 422.
    """
    kind = media_type(request)
    if kind == "multipart/form-data":
        return await _of_form(request, settings.max_files)
    if kind == "application/json":
        return await in_thread(_of_json, await request.body(), settings.max_files)
    if kind in _RAW or kind.startswith("image/"):
        return [Upload(await request.body())]
    raise unsupported(kind, _TAKEN)


async def read_picture(request: Request, settings: ServeSettings) -> Upload:
    """The one picture of a request; raises Problem as `read_pictures`, and 422 for several."""
    uploads = await read_pictures(request, settings)
    if len(uploads) > 1:
        raise Problem(422, "one_picture", f"there are {len(uploads)} pictures, and one is taken here", "Send one.")
    return uploads[0]


def media_type(request: Request) -> str:
    """The content type without its parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def unsupported(kind: str, taken: str) -> Problem:
    """The problem of a content type that is not taken."""
    return Problem(415, "media_type", f"a body of type '{kind[:80]}' is not taken here", f"Send {taken}.")


async def in_thread(parse: Callable[..., _T], body: bytes, *arguments: Any) -> _T:
    """Take a body apart: a small one at once, a large one in a thread."""
    if len(body) <= _AT_ONCE_BYTES:
        return parse(body, *arguments)
    return await to_thread.run_sync(parse, body, *arguments)


def _too_many(at_most: int) -> Problem:
    how = "Send them in several requests; `striate predict` takes whole datasets."
    return Problem(413, "too_many_files", f"there are more than {at_most} pictures", how)


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
    """Refuse JSON with many more fields and values than a request has: each that is wrong would become an error.

    Args:
        body: JSON.
        at_most: colons, commas and opening brackets, those in strings too; there are none in base64.
    """
    if sum(map(body.count, (b":", b",", b"{", b"["))) > at_most:
        detail = f"the JSON has too many fields and values: {at_most:,} of ':', ',', '{{' and '[' are taken"
        raise Problem(413, "too_many_fields", detail, "The page /docs says what is taken.")


def decode_base64(text: str, where: str) -> bytes:
    """Standard base64, strictly; raises Problem, which says `where`."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        how = "Encode the file's bytes in standard base64, without line breaks and without 'data:image/...;base64,'."
        raise Problem(422, "base64", f"{where} is no base64: {error}", how) from None


# -- forms ------------------------------------------------------------------------------------------------------------


class _Form(MultiPartParser):
    """Starlette's parser, with every file in memory (it would write those above 1 MiB to disk), and noting its end."""

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
        raise Problem(422, "no_picture", "the form holds no file", "Send one or several as 'file'.")
    return [await _upload(name, part) for name, part in parts]


def _check_charset(content_type: str) -> None:
    """Refuse names in another charset: Starlette looks every charset up, and Python remembers each one it looks for."""
    charset = parse_options_header(content_type)[1].get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() != "utf-8":
        raise Problem(415, "media_type", f"the form is in the charset '{charset[:40]}'", "Send it in utf-8.")


async def _upload(name: str, part: UploadFile | str) -> Upload:
    if name != "file" or isinstance(part, str):
        how = "Send every picture as a file named 'file'; top_k and explain go into the address: ?top_k=3."
        raise Problem(422, "field", f"the form's field '{name[:80]}' is not a file named 'file'", how)
    encoding = part.headers.get("content-transfer-encoding", "binary").lower()
    if encoding not in ("binary", "8bit", "7bit"):
        raise Problem(
            415, "content_encoding", f"a file of the form is encoded as '{encoding[:40]}'", "Send it as it is."
        )
    return Upload(await part.read(), part.filename)


def _broken_form(detail: str) -> Problem:
    return Problem(400, "malformed", detail, "Send it as `curl -F file=@a.jpg` does.")
