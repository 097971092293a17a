"""Reads the weights of a bundle, after checking them against the record without loading any."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from library import storage
from library.bundle.description import BUNDLE, WEIGHTS, BundleRecord
from library.errors import GrammarError, StriateError, UsageError
from library.models.outline import Outline, outline

#: A header has about 100 bytes per tensor.
_MAX_HEADER_BYTES = 2**22
#: Values of a picture of 4,096 x 4,096 pixels with four bands.
_MAX_VALUES = 2**26
#: Limit for messages, as a call may have thousands of parameters.
_MAX_MESSAGE_CHARS = 300
_DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def read_weights(record: BundleRecord, uri: str) -> bytes:
    """Reads the content of a bundle's `model.safetensors`.

    Args:
        record: the bundle's record.
        uri: the bundle's folder, normalized.

    Raises:
        StriateError: the model cannot be built, or the weights do not fit it or were replaced (names the file).
    """
    try:
        expected = _outline(record)
    except UsageError as error:
        raise StriateError(f"{storage.join(uri, BUNDLE)} cannot be used: {in_one_line(error)}") from None
    path = storage.join(uri, WEIGHTS)
    if not storage.exists(path):
        raise StriateError(f"{path} is missing: the bundle is incomplete")
    if misfit := _misfit(path, expected):
        raise StriateError(f"{path} does not fit the model '{record.model[:80]}': {misfit}")
    weights = storage.read_bytes(path)
    if hashlib.sha256(weights).hexdigest() != record.weights_digest:
        raise StriateError(f"{path} is damaged, or is not the file that {BUNDLE} was written with")
    return weights


def tensors_of(weights: bytes) -> dict[str, torch.Tensor]:
    """Tensors by name; raises StriateError if the bytes are not a valid safetensors file."""
    try:
        return load_tensors(weights)
    except (SafetensorError, ValueError, KeyError) as error:
        raise StriateError(f"{WEIGHTS} is damaged, or not a safetensors file: {error}") from None


def in_one_line(error: UsageError) -> str:
    """The message of an error, shortened, without the quoted text and caret of a GrammarError."""
    message = error.message if isinstance(error, GrammarError) else str(error).partition("\n")[0]
    return message[:_MAX_MESSAGE_CHARS]


def _outline(record: BundleRecord) -> Outline:
    height, width = record.input_size
    if not 1 <= height * width * record.channels <= _MAX_VALUES:
        raise UsageError(
            f"input_size and channels: a picture of {height} x {width} x {record.channels} must have 1 to "
            f"{_MAX_VALUES:,} values"
        )
    return outline(
        record.model,
        num_classes=len(record.classes),
        head=record.head,
        channels=record.channels,
        size=record.input_size,
    )


def _misfit(path: str, expected: Outline) -> str:
    """The first difference between a file and the expected tensors, in words; empty if there is none."""
    size = storage.size(path)
    with storage.open_read(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_MAX_HEADER_BYTES, size - 8):
            return f"it is damaged, or not a safetensors file: its header would have {length:,} bytes"
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        return "it is damaged, or not a safetensors file: its header is not a JSON object"
    tensors = {name: facts for name, facts in cast("dict[str, Any]", header).items() if name != "__metadata__"}
    for name, (dtype, shape) in expected.items():
        if name not in tensors:
            return f"the tensor '{name}' is missing"
        facts = cast("dict[str, Any]", tensors[name] if isinstance(tensors[name], dict) else {})
        if (facts.get("dtype"), facts.get("shape")) != (_DTYPES.get(dtype), list(shape)):
            actual = f"{str(facts.get('dtype'))[:20]} {str(facts.get('shape'))[:60]}"
            return f"the tensor '{name}' should be {_DTYPES.get(dtype)} {list(shape)}, but is {actual}"
    for name in tensors:
        if name not in expected:
            return f"it has a tensor '{name[:100]}' that the model does not have"
    needed = 8 + length + sum(math.prod(shape) * dtype.itemsize for dtype, shape in expected.values())
    return "" if size == needed else f"it has {size:,} bytes, but its tensors need {needed:,}"
