"""Requests and answers of the Open Inference Protocol v2: tensors in JSON, or as bytes after it (binary extension).

https://github.com/kserve/open-inference-protocol and Triton's `binary_tensor_data` and `classification` extensions.
"""

from __future__ import annotations

import math
import re
import struct
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic_core import to_json

from serve.http.problem_details import Problem, invalid_values
from serve.http.schemas import ModelDescription
from serve.http.service import Answer
from serve.http.uploads import decode_base64
from serve.settings import ServeSettings

PROBABILITIES, LABEL = "probabilities", "label"
HEADER_LENGTH = "Inference-Header-Content-Length"
_LENGTH = re.compile("[0-9]{1,18}")
#: Most values in a JSON document; a 500 x 500 picture as numbers has 750,000.
_MAX_VALUES = 2**20
#: Most fields in a JSON document; a request has about ten.
_MAX_FIELDS = 200
_LARGE_BYTES = 2**20
_PARSING = threading.Lock()
_DOCS = "GET /v2/models/NAME describes the inputs and outputs of a model."


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")


class InputParameters(_Strict):
    """Size of an input's data after the JSON, in bytes."""

    binary_data_size: Annotated[int | None, pydantic.Field(ge=0)] = None


class InputTensor(_Strict):
    """`image` (BYTES [n], encoded pictures; base64 in JSON) or `pixels` (UINT8 [n, height, width, channels])."""

    name: Literal["image", "pixels"]
    shape: list[int] = pydantic.Field(min_length=1, max_length=4, fail_fast=True)
    datatype: Literal["BYTES", "UINT8"]
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = None


class OutputParameters(_Strict):
    """Whether to send the data after the JSON, and how many best classes as text, `PROBABILITY:INDEX:CLASS`."""

    binary_data: bool | None = None
    classification: Annotated[int | None, pydantic.Field(ge=0, le=10**6)] = None


class OutputTensor(_Strict):
    """A requested output."""

    name: Literal["probabilities", "label"]
    parameters: OutputParameters = OutputParameters()

    @pydantic.model_validator(mode="after")
    def _check(self) -> OutputTensor:
        if self.parameters.classification and self.name != PROBABILITIES:
            raise ValueError("classification is a parameter of the output 'probabilities'")
        return self


class InferParameters(_Strict):
    """Parameters of the whole request."""

    binary_data_output: bool = False


class InferRequest(_Strict):
    """An inference request."""

    id: Annotated[str | None, pydantic.Field(max_length=256)] = None
    parameters: InferParameters = InferParameters()
    inputs: list[InputTensor] = pydantic.Field(min_length=1, max_length=1, fail_fast=True)
    outputs: list[OutputTensor] | None = pydantic.Field(default=None, fail_fast=True)


@dataclass(frozen=True)
class ParsedRequest:
    """A parsed request: either encoded pictures or pixels, and the requested outputs."""

    request: InferRequest
    pictures: list[bytes] | None
    pixels: list[NDArray[np.uint8]] | None

    @property
    def most_classes(self) -> int:
        """Number of ranked classes that the answer needs."""
        return max([1, *(output.parameters.classification or 0 for output in self.request.outputs or ())])


def read_request(body: bytes, header_length: str | None, settings: ServeSettings) -> ParsedRequest:
    """Parses a request.

    Args:
        body: JSON, with the binary tensors after it.
        header_length: the header `Inference-Header-Content-Length`: bytes of the JSON, if it is not the whole body.
        settings: the limits.

    Raises:
        Problem: 400, 413 or 422.
    """
    length = len(body)
    if header_length is not None:
        if not _LENGTH.fullmatch(header_length) or int(header_length) > length:
            detail = f"{HEADER_LENGTH} is '{header_length[:40]}', and the body has {length:,} bytes"
            raise Problem(400, "malformed", detail, "Set it to the bytes of the JSON at the start of the body.")
        length = int(header_length)
    header = memoryview(body)[:length].tobytes()
    if header.count(b":") > _MAX_FIELDS:
        detail = f"the JSON has more than {_MAX_FIELDS:,} fields"
        raise Problem(413, "too_many_fields", detail, _DOCS)
    values = header.count(b",") + header.count(b"[")
    if values > _MAX_VALUES:
        detail = f"the JSON has more than {_MAX_VALUES:,} values"
        how = "Send pixels after the JSON (binary_data_size), as tritonclient does, or encoded pictures as 'image'."
        raise Problem(413, "too_large", detail, how, reason="too_large")
    try:
        # One large document at a time: each value takes about a hundred bytes of memory.
        with _PARSING if length > _LARGE_BYTES else nullcontext():
            request = InferRequest.model_validate_json(header)
    except pydantic.ValidationError as error:
        raise invalid_values(error.errors(include_url=False, include_input=False), "inference request") from None
    tensor, binary = request.inputs[0], memoryview(body)[length:]
    raw = _binary_of(tensor, binary)
    if tensor.name == "image":
        return ParsedRequest(request, _pictures(tensor, raw, settings.max_files), None)
    return ParsedRequest(request, None, _pixels(tensor, raw, settings))


def write_answer(parsed: ParsedRequest, model: str, answers: Sequence[Answer]) -> tuple[bytes, int | None]:
    """Writes the body of an answer.

    Args:
        parsed: the request.
        model: its name.
        answers: one a picture, with `most_classes` classes.

    Returns:
        The body, and the length of the JSON at its start; None where the JSON is the whole body.
    """
    outputs = parsed.request.outputs
    if outputs is None:
        outputs = [OutputTensor(name=PROBABILITIES), OutputTensor(name=LABEL)]
    described: list[dict[str, Any]] = []
    binaries: list[bytes] = []
    for output in outputs:
        tensor, kind = _output(output, answers)
        facts: dict[str, Any] = {"name": output.name, "datatype": kind, "shape": list(tensor.shape)}
        binary = output.parameters.binary_data
        if parsed.request.parameters.binary_data_output if binary is None else binary:
            data = _as_bytes(tensor, kind)
            binaries.append(data)
            facts["parameters"] = {"binary_data_size": len(data)}
        else:
            facts["data"] = tensor.ravel().tolist()
        described.append(facts)
    answer: dict[str, Any] = {"model_name": model, "model_version": "1", "outputs": described}
    if parsed.request.id is not None:
        answer["id"] = parsed.request.id
    header = to_json(answer)
    return b"".join([header, *binaries]), len(header) if binaries else None


# -- requests ---------------------------------------------------------------------------------------------------------


def _binary_of(tensor: InputTensor, binary: memoryview) -> memoryview | None:
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        detail = f"the input '{tensor.name}' should have either data or binary_data_size"
        raise Problem(422, "invalid", detail, f"For bytes after the JSON send {HEADER_LENGTH} and binary_data_size.")
    if len(binary) != (size or 0):
        detail = f"{len(binary):,} bytes follow the JSON, and binary_data_size is {size or 0:,}"
        raise Problem(400, "malformed", detail, "Send as many bytes as binary_data_size.")
    return None if size is None else binary


def _pictures(tensor: InputTensor, raw: memoryview | None, max_files: int) -> list[bytes]:
    number = _elements(tensor.shape)
    if tensor.datatype != "BYTES" or len(tensor.shape) > 2 or tensor.shape[1:] not in ([], [1]):
        raise _misfit(tensor, "BYTES of shape [n]")
    _check_number(number, max_files)
    if raw is not None:
        return _split(raw, number)
    data = _flat(tensor.data or [])
    if len(data) != number:
        raise _misfit(tensor, f"{number:,} elements, but has {len(data):,}")
    for place, text in enumerate(data):
        if not isinstance(text, str):
            raise Problem(422, "invalid", f"inputs.0.data.{place} is not text", "In JSON a picture is base64 text.")
    return [decode_base64(text, f"inputs.0.data.{place}") for place, text in enumerate(data)]


def _split(raw: memoryview, number: int) -> list[bytes]:
    """Returns the elements of a BYTES tensor; 4 bytes with its length precede each."""
    pictures: list[bytes] = []
    at = 0
    for _ in range(number):
        if at + 4 > len(raw):
            break
        (length,) = struct.unpack_from("<I", raw, at)
        if at + 4 + length > len(raw):
            break
        pictures.append(bytes(raw[at + 4 : at + 4 + length]))
        at += 4 + length
    if len(pictures) < number or at != len(raw):
        detail = (
            f"the bytes of the input 'image' are not {number:,} elements, each with its length in 4 bytes before it"
        )
        raise Problem(400, "malformed", detail, "Encode them as tritonclient's set_data_from_numpy does.")
    return pictures


def _pixels(tensor: InputTensor, raw: memoryview | None, settings: ServeSettings) -> list[NDArray[np.uint8]]:
    if tensor.datatype != "UINT8" or len(tensor.shape) != 4:
        raise _misfit(tensor, "UINT8 of shape [n, height, width, channels]")
    number = _elements(tensor.shape)
    _check_number(tensor.shape[0], settings.max_files)
    if tensor.shape[1] * tensor.shape[2] > settings.max_pixels:
        detail = (
            f"{tensor.shape[2]}x{tensor.shape[1]} pixels a picture are more than the limit of {settings.max_pixels:,}"
        )
        raise Problem(413, "too_large", detail, "Make the pictures smaller.", reason="too_large")
    if raw is not None:
        if len(raw) != number:
            raise _misfit(tensor, f"{number:,} bytes, but has {len(raw):,}")
        return list(np.frombuffer(raw, np.uint8).reshape(tensor.shape))
    values = _flat(tensor.data or [])
    if len(values) != number:
        raise _misfit(tensor, f"{number:,} elements, but has {len(values):,}")
    if not all(type(value) is int and 0 <= value <= 255 for value in values):
        raise _misfit(tensor, "whole numbers from 0 to 255")
    return list(np.array(values, np.uint8).reshape(tensor.shape))


def _elements(shape: Sequence[int]) -> int:
    if min(shape) < 1:
        raise Problem(422, "invalid", f"inputs.0.shape is {shape}", "Every dimension must be at least 1.")
    return math.prod(shape)


def _check_number(number: int, at_most: int) -> None:
    if number > at_most:
        detail = f"the request has {number:,} pictures, and the limit is {at_most:,}"
        raise Problem(413, "too_many_files", detail, "Send them in several requests.")


def _misfit(tensor: InputTensor, what: str) -> Problem:
    detail = f"the input '{tensor.name}' ({tensor.datatype} {tensor.shape}) should be {what}"
    return Problem(422, "invalid", detail, _DOCS)


def _flat(data: Sequence[Any]) -> list[Any]:
    """Flattens nested lists, in order; the protocol allows both forms."""
    while data and isinstance(data[0], list):
        if not all(isinstance(part, list) for part in data):
            raise Problem(
                422, "invalid", "inputs.0.data mixes lists and values", "Nest all values equally deep, or none."
            )
        data = [value for part in data for value in part]
    return list(data)


# -- answers ----------------------------------------------------------------------------------------------------------


def _output(output: OutputTensor, answers: Sequence[Answer]) -> tuple[NDArray[Any], str]:
    number = output.parameters.classification
    if number:
        texts = [_classification(answer, number) for answer in answers]
        return np.array(texts, object), "BYTES"
    if output.name == LABEL:
        return np.array([answer.classes[0][0] for answer in answers], object), "BYTES"
    return np.stack([answer.probabilities for answer in answers]), "FP32"


def _classification(answer: Answer, number: int) -> list[str]:
    order = np.argsort(-answer.probabilities, kind="stable")
    return [
        f"{probability}:{index}:{name}"
        for (name, probability), index in zip(answer.classes[:number], order.tolist(), strict=False)
    ]


def _as_bytes(tensor: NDArray[Any], kind: str) -> bytes:
    if kind == "FP32":
        return tensor.astype("<f4").tobytes()
    elements = [str(text).encode() for text in tensor.ravel()]
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def metadata(model: ModelDescription) -> dict[str, Any]:
    """Returns the description of a model's inputs and outputs."""
    classes = len(model.classes)
    return {
        "name": model.name,
        "versions": ["1"],
        "platform": "striate",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, -1]},
        ],
        "outputs": [
            {"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, classes]},
            {"name": LABEL, "datatype": "BYTES", "shape": [-1]},
        ],
    }
