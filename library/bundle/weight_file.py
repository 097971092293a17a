"""The weights of a bundle, held against what its record says before any of their memory is taken."""

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

#: A header has some 100 bytes a tensor.
_MAX_HEADER_BYTES = 2**22
#: Of a picture of 4,096 x 4,096 pixels with four bands.
_MAX_VALUES = 2**26
#: A call may have thousands of parameters.
_LONGEST_CHARS = 300
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
    """The content of a bundle's `model.safetensors`.

    Args:
        record: of the bundle.
        uri: of its folder, normalized.

    Raises:
        StriateError: names the file and what is wrong in it: the model cannot be made, or the weights are not the
            model's, or not those that the record was written with.
    """
    try:
        wanted = _outline(record)
    except UsageError as error:
        raise StriateError(f"{storage.join(uri, BUNDLE)} cannot be used: {in_one_line(error)}") from None
    path = storage.join(uri, WEIGHTS)
    if not storage.exists(path):
        raise StriateError(f"{path} is missing: the bundle is not whole")
    if misfit := _misfit(path, wanted):
        raise StriateError(f"{path} does not fit the model '{record.model[:80]}': {misfit}")
    weights = storage.read_bytes(path)
    if hashlib.sha256(weights).hexdigest() != record.weights_digest:
        raise StriateError(f"{path} is damaged, or not the one that {BUNDLE} was written with")
    return weights


def tensors_of(weights: bytes) -> dict[str, torch.Tensor]:
    """Tensors by name; raises StriateError where the bytes are no safetensors file."""
    try:
        return load_tensors(weights)
    except (SafetensorError, ValueError, KeyError) as error:
        raise StriateError(f"{WEIGHTS} is damaged, or no safetensors file: {error}") from None


def in_one_line(error: UsageError) -> str:
    """What an error says, without the place in a text that its reader has not written."""
    said = error.message if isinstance(error, GrammarError) else str(error).partition("\n")[0]
    return said[:_LONGEST_CHARS]


def _outline(record: BundleRecord) -> Outline:
    height, width = record.input_size
    if not 1 <= height * width * record.channels <= _MAX_VALUES:
        raise UsageError(
            f"input_size and channels: pictures of {height} x {width} x {record.channels} are not of 1 to "
            f"{_MAX_VALUES:,} values"
        )
    return outline(
        record.model,
        num_classes=len(record.classes),
        head=record.head,
        channels=record.channels,
        size=record.input_size,
    )


def _misfit(path: str, wanted: Outline) -> str:
    """The first difference, in words; empty for none."""
    size = storage.size(path)
    with storage.open_read(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_MAX_HEADER_BYTES, size - 8):
            return f"it is no safetensors file, or damaged: its header would have {length:,} bytes"
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        return "it is no safetensors file, or damaged: its header is not a JSON object"
    given = {name: facts for name, facts in cast("dict[str, Any]", header).items() if name != "__metadata__"}
    for name, (dtype, shape) in wanted.items():
        if name not in given:
            return f"the tensor '{name}' is missing"
        facts = cast("dict[str, Any]", given[name] if isinstance(given[name], dict) else {})
        if (facts.get("dtype"), facts.get("shape")) != (_DTYPES.get(dtype), list(shape)):
            has = f"{str(facts.get('dtype'))[:20]} {str(facts.get('shape'))[:60]}"
            return f"the tensor '{name}' should be {_DTYPES.get(dtype)} {list(shape)}, and is {has}"
    for name in given:
        if name not in wanted:
            return f"it has a tensor '{name[:100]}' that the model has not"
    needed = 8 + length + sum(math.prod(shape) * dtype.itemsize for dtype, shape in wanted.values())
    return "" if size == needed else f"it has {size:,} bytes, and its tensors need {needed:,}"
