"""Exports a bundle as one file for other programs: `striate export`.

Both formats take pictures as `Bundle.prepare` returns them: uint8, N x height x width x channels (NHWC), any N.
Scaling, mean and deviation are in the graph. They return `probabilities`, float32, N x classes. The input pipeline
(decoding, steps, fit) is not in the graph; the metadata holds its text, the class names and the bundle's id.
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
from library.runtimes.graph import Graph, GraphInput, flattened, onnx_model, quiet
from library.runtimes.onnx_session import OUTPUT, first_line, session_options
from library.runtimes.parity import CHECKED_BATCHES, Disagreement, check, tolerance

#: The formats, with the suffix of their files.
FORMATS: Mapping[str, str] = {"onnx": ".onnx", "torch-export": ".pt2"}
#: Name of the entry of a .pt2 that holds what an ONNX file has as metadata.
FACTS = "striate.json"

_Run = Callable[[Mapping[str, NDArray[np.uint8]]], NDArray[np.float32]]


@dataclass(frozen=True)
class Exported:
    """An exported file that passed its check.

    Attributes:
        format: one of `FORMATS`.
        data: content of the file.
        inputs: the inputs of the graph.
        difference: largest difference of a probability from the bundle's.
        allowed: limit for `difference`.
        batches: batch sizes of the check.
    """

    format: str
    data: bytes
    inputs: tuple[GraphInput, ...]
    difference: float
    allowed: float
    batches: tuple[int, ...] = CHECKED_BATCHES


@dataclass(frozen=True)
class WrittenExport:
    """An export, the file that it was written to, and its bundle."""

    path: str
    bundle: Bundle
    exported: Exported

    def described(self) -> dict[str, Any]:
        """The export as plain data."""
        return {
            "file": self.path,
            "format": self.exported.format,
            "bytes": len(self.exported.data),
            "bundle_id": self.bundle.id,
            "classes": list(self.bundle.classes),
            "inputs": [
                {"name": one.name, "shape": ["N", *one.size, one.channels], "dtype": "uint8"}
                for one in self.exported.inputs
            ],
            "largest_difference": self.exported.difference,
            "allowed_difference": self.exported.allowed,
            "checked_batches": list(self.exported.batches),
        }


def write_export(bundle_uri: str, file_format: str, out: str | None = None) -> WrittenExport:
    """Exports a bundle into a file, on disk or in a store; writes nothing if the check fails.

    Args:
        bundle_uri: the bundle's folder.
        file_format: one of `FORMATS`.
        out: URI of the file; by default the bundle's name in the working folder.

    Raises:
        UsageError: there is no bundle, or an export cannot be written to `out`.
        StriateError: the bundle cannot be exported in this format, or the export gives other answers.
    """
    path = destination(bundle_uri, file_format, out)
    bundle = Bundle.load(bundle_uri, "cpu")
    exported = export(bundle, file_format)
    storage.write_bytes(path, exported.data)
    return WrittenExport(path, bundle, exported)


def export(bundle: Bundle, file_format: str) -> Exported:
    """Exports a bundle, runs the result, and compares it with the bundle.

    An ensemble becomes one graph, the weighted mean of its members; members with the same input pipeline share an
    input.

    `onnx` is one file for ONNX Runtime and other programs, at most 2 GiB. `torch-export` is for `torch.export.load`: a
    zip of the graph as JSON and of the weights as raw bytes, without pickles. (Load only your own .pt2 files: others
    may contain pickles, which `torch.export.load` runs.)

    Args:
        bundle: a bundle on the CPU.
        file_format: one of `FORMATS`.

    Raises:
        UsageError: an unknown format.
        StriateError: the network cannot be exported in this format, or the export gives other answers.
    """
    if file_format not in FORMATS:
        raise UsageError(f"there is no format '{file_format}'; there are {', '.join(FORMATS)}")
    graph, data = _onnx(bundle) if file_format == "onnx" else _torch(bundle)
    run = _onnx_runner(data) if file_format == "onnx" else _torch_runner(data, graph.inputs)

    def compute(pictures: Sequence[Any]) -> NDArray[np.float32]:
        inputs_of = [flattened(picture) for picture in pictures]
        return run(
            {
                one.name: np.stack([inputs[graph.input_of.index(number)] for inputs in inputs_of])
                for number, one in enumerate(graph.inputs)
            }
        )

    try:
        difference = check(bundle, compute)
    except Disagreement as error:
        raise StriateError(
            f"the {file_format} file does not answer as the bundle does, so nothing is written: {error}"
        ) from None
    return Exported(file_format, data, graph.inputs, difference, tolerance(bundle))


def destination(bundle_uri: str, file_format: str, out: str | None = None) -> str:
    """URI of the file to write: `out`, or by default the bundle's name in the working folder.

    Raises:
        UsageError: `out` is inside the bundle, is a folder, or has the suffix of another format.
    """
    uri = storage.normalize(bundle_uri)
    out = out or f"{storage.name_of(uri)}{FORMATS[file_format]}"
    path = storage.normalize(out)
    if storage.contains(uri, path):
        raise UsageError(f"{out} is inside the bundle, which must not change; choose another place with --out")
    if not storage.is_remote(path) and storage.is_folder(path):
        raise UsageError(
            f"{out} is a folder; name a file: {storage.join(out, storage.name_of(uri))}{FORMATS[file_format]}"
        )
    for other, suffix in FORMATS.items():
        if other != file_format and path.endswith(suffix):
            raise UsageError(f"{out} has the suffix of the format {other}, but the format asked for is {file_format}")
    return path


def facts(bundle: Bundle, inputs: Sequence[GraphInput]) -> dict[str, str]:
    """Metadata of an exported file: the bundle's id, model, classes and inputs; the last two as JSON."""
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
    # The exporter records the lines of code behind every node, with the paths of this machine.
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
        raise StriateError(f"ONNX Runtime cannot load the file: {first_line(error)}") from error
    return lambda inputs: session.run([OUTPUT], dict(inputs))[0]


def _torch(bundle: Bundle) -> tuple[Graph, bytes]:
    graph = Graph(bundle)
    try:
        program = graph.exported()
    except Exception as error:  # torch.export raises errors of any type for code it cannot trace
        raise StriateError(f"it cannot be written by torch.export: {first_line(error)}") from error
    # The only part of the file that would be pickled.
    program.example_inputs = None
    file = io.BytesIO()
    with quiet():
        torch.export.save(
            program, file, extra_files={FACTS: json.dumps(facts(bundle, graph.inputs), ensure_ascii=False)}
        )
    return graph, file.getvalue()


def _torch_runner(data: bytes, inputs: Sequence[GraphInput]) -> _Run:
    program: Any = torch.export.load(io.BytesIO(data)).module()

    def run(tensors: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return program(*(torch.from_numpy(tensors[one.name]) for one in inputs)).numpy()

    return run
