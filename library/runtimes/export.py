"""A bundle as one file for other programs, checked against the bundle before it is written.

Both kinds take pictures as `Bundle.prepare` gives them: uint8, N x height x width x channels (NHWC, as decoded pictures
lie), any N; scaling, mean and deviation are inside. They give `probabilities`, float32, N x classes. The model's own
pipeline (decoding, steps, fit) is not in the graph: its text is in the file, with class names and the bundle's id.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from library import storage
from library.bundle.bundle import Bundle
from library.errors import StriateError, UsageError
from library.runtimes.graph import OUTPUT, Graph, GraphInput, first_line, flattened, onnx_model, quiet
from library.runtimes.onnx_session import session_options
from library.runtimes.parity import CHECKED_BATCHES, Disagreement, check, tolerance

#: What is written, and how such files are called.
FORMATS: Mapping[str, str] = {"onnx": ".onnx", "torch-export": ".pt2"}
#: In a .pt2, what an ONNX file has as metadata.
FACTS = "striate.json"

_Run = Callable[[Mapping[str, NDArray[np.uint8]]], NDArray[np.float32]]


@dataclass(frozen=True)
class Exported:
    """A file that gives the bundle's answers.

    Attributes:
        format: one of `FORMATS`.
        data: the whole file.
        inputs: of the graph.
        difference: largest difference of a probability from the bundle's.
        allowed: how much it may be.
        batches: sizes of the batches that it was checked in.
    """

    format: str
    data: bytes
    inputs: tuple[GraphInput, ...]
    difference: float
    allowed: float
    batches: tuple[int, ...] = CHECKED_BATCHES


def export(bundle: Bundle, file_format: str) -> Exported:
    """Make a file of a bundle, run it, and compare.

    An ensemble is one graph: the weighted mean of its members, with one input for those that see the same picture.

    `onnx` is one file for ONNX Runtime and others, at most 2 GiB; what is known of the bundle is in its metadata.
    `torch-export` is for `torch.export.load`: a zip of the graph as JSON and of weights as raw bytes, with nothing
    pickled in it. (A file from elsewhere may hold pickles, which `torch.export.load` would run: load only your own.)

    Args:
        bundle: on the CPU.
        file_format: one of `FORMATS`.

    Raises:
        UsageError: for another format.
        StriateError: a network that cannot be written so, or whose file gives other answers.
    """
    if file_format not in FORMATS:
        raise UsageError(f"there is no format '{file_format}'; there are {', '.join(FORMATS)}")
    graph, data = _onnx(bundle) if file_format == "onnx" else _torch(bundle)
    run = _onnx_runner(data) if file_format == "onnx" else _torch_runner(data, graph.inputs)

    def compute(pictures: Sequence[Any]) -> NDArray[np.float32]:
        seen = [flattened(picture) for picture in pictures]
        return run(
            {
                one.name: np.stack([parts[graph.input_of.index(number)] for parts in seen])
                for number, one in enumerate(graph.inputs)
            }
        )

    try:
        difference = check(bundle, compute)
    except Disagreement as error:
        raise StriateError(
            f"the {file_format} file does not answer as the bundle does, nothing is written: {error}"
        ) from None
    return Exported(file_format, data, graph.inputs, difference, tolerance(bundle))


def destination(bundle_uri: str, file_format: str, out: str | None = None) -> str:
    """Where a file goes: `out`, or the bundle's name in the working folder.

    Raises:
        UsageError: inside the bundle, a folder, or a name of the other format.
    """
    uri = storage.normalize(bundle_uri)
    out = out or f"{storage.name_of(uri)}{FORMATS[file_format]}"
    path = storage.normalize(out)
    if storage.contains(uri, path):
        raise UsageError(f"{out} lies inside the bundle, which stays as it is; choose another place with --out")
    if not storage.is_remote(path) and storage.is_folder(path):
        raise UsageError(
            f"{out} is a folder; name a file: {storage.join(out, storage.name_of(uri))}{FORMATS[file_format]}"
        )
    for other, suffix in FORMATS.items():
        if other != file_format and path.endswith(suffix):
            raise UsageError(f"{out} is called as a file of the format {other}; the format asked for is {file_format}")
    return path


def facts(bundle: Bundle, inputs: Sequence[GraphInput]) -> dict[str, str]:
    """What is known of the bundle, as text: ids and JSON."""
    return {
        "striate.bundle_id": bundle.id,
        "striate.model": bundle.record.model or "ensemble",
        "striate.classes": json.dumps(list(bundle.classes), ensure_ascii=False),
        "striate.inputs": json.dumps(
            [
                {
                    "name": one.name,
                    "dtype": "uint8",
                    "layout": "NHWC",
                    "steps": one.steps,
                    "fit": one.fit,
                    "size": list(one.size),
                    "channels": one.channels,
                }
                for one in inputs
            ],
            ensure_ascii=False,
        ),
    }


def _onnx(bundle: Bundle) -> tuple[Graph, bytes]:
    graph, model = onnx_model(bundle)
    # The exporter notes for every node the lines of code that made it, with the paths of this machine.
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        del part.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
    del model.graph.metadata_props[:], model.metadata_props[:]
    for key, value in facts(bundle, graph.inputs).items():
        model.metadata_props.add(key=key, value=value)
    return graph, model.SerializeToString()


def _onnx_runner(data: bytes) -> _Run:
    import onnxruntime

    try:
        session: Any = onnxruntime.InferenceSession(
            data, session_options(torch.get_num_threads()), providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its errors have no common base
        raise StriateError(f"ONNX Runtime does not take the file: {first_line(error)}") from error
    return lambda inputs: session.run([OUTPUT], dict(inputs))[0]


def _torch(bundle: Bundle) -> tuple[Graph, bytes]:
    graph = Graph(bundle)
    try:
        program = graph.exported()
    except Exception as error:  # a network may do whatever torch.export cannot follow
        raise StriateError(f"it cannot be written by torch.export: {first_line(error)}") from error
    # They would be the one pickled part of the file.
    program.example_inputs = None
    file = io.BytesIO()
    with quiet():
        torch.export.save(
            program, file, extra_files={FACTS: json.dumps(facts(bundle, graph.inputs), ensure_ascii=False)}
        )
    return graph, file.getvalue()


def _torch_runner(data: bytes, inputs: Sequence[GraphInput]) -> _Run:
    program: Any = torch.export.load(io.BytesIO(data)).module()

    def run(given: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return program(*(torch.from_numpy(given[one.name]) for one in inputs)).numpy()

    return run
