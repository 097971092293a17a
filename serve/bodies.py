"""A request's body as pictures: raw bytes, a form with files, or JSON with base64.

Bodies are held in memory, which the guard bounds; nothing of them goes to disk.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import pydantic
from anyio import to_thread
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serve.problems import Problem, invalid_values
from serve.settings import ServeSettings

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

#: `curl --data-binary` sends the second, whatever the file is.
_RAW = ("application/octet-stream", "application/x-www-form-urlencoded", "")
_TAKEN = "image/*, application/octet-stream, multipart/form-data with files named 'file', or application/json"
#: Of JSON's marks a picture has at most six, its name whatever is in it.
_MARKS_A_PICTURE = 100
#: A part of a form has two or three.
_MAX_PART_HEADERS = 20
#: Larger bodies are taken apart in a thread, so that other requests go on meanwhile.
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
        # Before the body is read: without it nothing can be made of the body.
        boundary = _boundary(request.headers["content-type"])
        return await in_thread(_of_form, await request.body(), boundary, settings.max_files)
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


def _boundary(content_type: str) -> bytes:
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise Problem(
            400, "malformed", "the content type multipart/form-data names no boundary", "Name it: boundary=..."
        )
    return boundary


def _of_form(body: bytes, boundary: bytes, max_files: int) -> list[Upload]:
    form = _Form(max_files)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Problem(
            400, "malformed", f"the form is broken: {error}", "Send it as `curl -F file=@a.jpg` does."
        ) from None
    if not form.ended:
        raise Problem(400, "malformed", "the form ends early", "Send all of it.")
    if not form.uploads:
        raise Problem(422, "no_picture", "the form holds no file", "Send one or several as 'file'.")
    return form.uploads


class _Form:
    """Collects the files of a form."""

    def __init__(self, max_files: int) -> None:
        self.uploads: list[Upload] = []
        self.ended = False
        self._max_files = max_files
        self._data = bytearray()
        self._field, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._name: str | None = None

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_field,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header,
            "on_headers_finished": self._on_headers,
            "on_part_data": self._on_data,
            "on_part_end": self._on_part,
            "on_end": self._on_end,
        }

    def _begin(self) -> None:
        if len(self.uploads) == self._max_files:
            raise _too_many(self._max_files)
        self._data, self._headers = bytearray(), {}

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        if len(self._headers) == _MAX_PART_HEADERS:
            raise Problem(400, "malformed", f"a part of the form has more than {_MAX_PART_HEADERS} headers")
        self._headers[bytes(self._field).lower()] = bytes(self._value)
        self._field, self._value = bytearray(), bytearray()

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        field = options.get(b"name", b"").decode("utf-8", "replace")
        if field != "file":
            how = "Name every file 'file'; top_k and explain go into the address: ?top_k=3."
            raise Problem(422, "field", f"the form has a field '{field[:80]}', which nothing is done with", how)
        encoding = self._headers.get(b"content-transfer-encoding", b"binary").lower()
        if encoding not in (b"binary", b"8bit", b"7bit"):
            detail = f"a file of the form is encoded as '{encoding[:40].decode('latin-1')}'"
            raise Problem(415, "content_encoding", detail, "Send it as it is.")
        name = options.get(b"filename")
        self._name = None if name is None else name.decode("utf-8", "replace")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._data += memoryview(data)[start:end]

    def _on_part(self) -> None:
        self.uploads.append(Upload(bytes(self._data), self._name))

    def _on_end(self) -> None:
        self.ended = True
