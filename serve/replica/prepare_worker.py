"""Worker process that prepares pictures which may take long (`serve.processes`).

It has only the model's input pipeline and needs no PyTorch. The same code as in `Bundle.prepare` gives the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from library.errors import BadPicture, StriateError
from library.imaging import codec
from library.pipeline.inputs import InputPipeline
from library.steps.plugins import Plugin, install
from serve.processes import answer_frames

#: The input pipeline of a model; for an ensemble a list with its members'.
_Inputs: TypeAlias = "InputPipeline | list[_Inputs]"
_Prepared: TypeAlias = "NDArray[Any] | tuple[_Prepared, ...]"


def _inputs(description: Any) -> _Inputs:
    if isinstance(description, list):
        return [_inputs(member) for member in cast(list[Any], description)]
    return InputPipeline.parse(**description)


def unpacked(shapes: Any, data: memoryview) -> tuple[_Prepared, memoryview]:
    """Returns the prepared picture in an answer, and the remaining bytes.

    Args:
        shapes: dtype and shape of an array; for an ensemble a list with its members'.
        data: the arrays one after another.
    """
    if isinstance(shapes, list):
        parts: list[_Prepared] = []
        for member in cast(list[Any], shapes):
            part, data = unpacked(member, data)
            parts.append(part)
        return tuple(parts), data
    dtype, shape = np.dtype(shapes["dtype"]), tuple(shapes["shape"])
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(data[:size], dtype).reshape(shape).copy(), data[size:]


def _packed(prepared: _Prepared) -> tuple[Any, Iterator[bytes]]:
    if isinstance(prepared, tuple):
        parts = [_packed(member) for member in prepared]
        return [shapes for shapes, _ in parts], (data for _, arrays in parts for data in arrays)
    return {"dtype": prepared.dtype.name, "shape": prepared.shape}, iter([prepared.tobytes()])


class _Worker:
    def __init__(self, setup: Any) -> None:
        # OpenCV would start a thread for every core of the machine.
        cv2.setNumThreads(1)
        install([Plugin(**plugin) for plugin in setup["plugins"]])
        self._inputs = _inputs(setup["inputs"])

    def answer(self, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        try:
            if "shape" in header:
                prepared = self._of_pixels(self._inputs, np.frombuffer(data, np.uint8).reshape(header["shape"]))
            else:
                prepared = self._of_bytes(self._inputs, data, codec.Limits(**header["limits"]))
        except BadPicture as bad:
            return {"reason": bad.reason, "detail": bad.detail}, b""
        except StriateError as error:
            return {"detail": str(error)}, b""
        except MemoryError:
            return {"reason": "too_large", "detail": "preparing it needs more memory than one picture may use"}, b""
        shapes, arrays = _packed(prepared)
        return {"shapes": shapes}, b"".join(arrays)

    def _of_bytes(self, inputs: _Inputs, data: bytes, limits: codec.Limits) -> _Prepared:
        if isinstance(inputs, Sequence):
            return tuple(self._of_bytes(member, data, limits) for member in inputs)
        return inputs.prepare(data, limits)

    def _of_pixels(self, inputs: _Inputs, pixels: NDArray[np.uint8]) -> _Prepared:
        if isinstance(inputs, Sequence):
            return tuple(self._of_pixels(member, pixels) for member in inputs)
        return inputs.prepare_pixels(pixels)


if __name__ == "__main__":
    answer_frames(lambda setup: _Worker(setup).answer)
