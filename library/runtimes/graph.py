"""Makes one network of a bundle, from stored pixels to probabilities, and writes it as ONNX."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from library.bundle.bundle import Bundle
from library.errors import StriateError
from library.models.call import parse_call
from library.models.classifier import probabilities
from library.models.lookup import info
from library.runtimes.onnx_session import OUTPUT, first_line
from library.runtimes.parity import expected_facts

_OPSET = 20
#: Limit for the weights: an ONNX file is a protocol buffer, which holds at most 2 GiB.
_MAX_BYTES = 2**31 - 2**20


@dataclass(frozen=True)
class GraphInput:
    """One input of a graph: uint8, N x height x width x channels, as `Bundle.prepare` returns pictures.

    Attributes:
        name: `pixels`; `pixels_0`, `pixels_1` ... where an ensemble's members take different inputs.
        steps: filters and selectors to apply to a picture first.
        fit: filters that then bring it to `size`.
        size: height and width in pixels.
        channels: number of channels.
    """

    name: str
    steps: str
    fit: str
    size: tuple[int, int]
    channels: int


class Graph(nn.Module):
    """A module that computes the probabilities (N x classes, float32) of a bundle or an ensemble.

    Args:
        bundle: its networks are shared, not copied.

    Attributes:
        inputs: the inputs of `forward`, in order.
        input_of: for each network, the index of its input.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        leaves = list(_leaves(bundle, 1.0))
        fields_of = [_input_fields(leaf) for leaf, _ in leaves]
        distinct = list(dict.fromkeys(fields_of))
        self.inputs = tuple(
            GraphInput("pixels" if len(distinct) == 1 else f"pixels_{number}", *fields)
            for number, fields in enumerate(distinct)
        )
        self.input_of = tuple(distinct.index(fields) for fields in fields_of)
        self._networks = nn.ModuleList([leaf.model for leaf, _ in leaves])
        self._multilabel = bundle.record.multilabel
        self._shares = tuple(share for _, share in leaves)
        for number, (leaf, _) in enumerate(leaves):
            order = [leaf.classes.index(name) for name in bundle.classes]
            same_order = order == list(range(len(order)))
            self.register_buffer(f"_order_{number}", None if same_order else torch.tensor(order), persistent=False)
        self.train(False)

    def forward(self, *pixels: torch.Tensor) -> torch.Tensor:
        """Computes probabilities, N x classes, from one uint8 tensor per input, N x height x width x channels."""
        mean: Any = 0.0
        for number, (network, share) in enumerate(zip(self._networks, self._shares, strict=True)):
            logits = network(pixels[self.input_of[number]].permute(0, 3, 1, 2))
            rows = probabilities(logits, multilabel=self._multilabel)
            order: torch.Tensor | None = getattr(self, f"_order_{number}")
            rows = rows if order is None else rows.index_select(1, order)
            mean = rows if len(self._networks) == 1 else mean + rows * share
        return mean

    def examples(self, pictures: int = 2) -> tuple[torch.Tensor, ...]:
        """Inputs of zeros to trace with, each `pictures` x height x width x channels, uint8."""
        return tuple(
            torch.zeros((pictures, *one.size, one.channels), dtype=torch.uint8, device=self._device)
            for one in self.inputs
        )

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Shapes for `torch.export` that leave the number of pictures open."""
        batch = torch.export.Dim("batch", min=1)
        # torch.export counts all of `*pixels` as one argument.
        return (tuple({0: batch} for _ in self.inputs),)

    def exported(self) -> Any:
        """Traces the graph into a `torch.export.ExportedProgram`; raises whatever tracing raises."""
        with torch.no_grad(), quiet():
            return torch.export.export(self, self.examples(), dynamic_shapes=self.dynamic_shapes())

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device


def onnx_model(bundle: Bundle) -> tuple[Graph, Any]:
    """Writes a bundle as an ONNX model (`onnx.ModelProto`) for batches of any size.

    Returns:
        The graph, and the ONNX model.

    Raises:
        StriateError: the network cannot be written as ONNX, or is too large for one file.
        ImportError: a package that the exporter needs is not installed.
    """
    graph = Graph(bundle)
    if sum(tensor.nbytes for tensor in graph.state_dict().values()) > _MAX_BYTES:
        raise StriateError("its weights are larger than the 2 GiB that an ONNX file holds")
    try:
        with torch.no_grad(), quiet():
            program: Any = torch.onnx.export(
                graph,
                graph.examples(),
                dynamo=True,
                dynamic_shapes=graph.dynamic_shapes(),
                input_names=[one.name for one in graph.inputs],
                output_names=[OUTPUT],
                opset_version=_OPSET,
                verbose=False,
            )
    except ImportError:  # of onnxscript, which an extra brings
        raise
    except Exception as error:  # the exporter raises errors of any type for operations it does not know
        raise StriateError(f"it cannot be written as ONNX: {first_line(error)}") from error
    return graph, program.model_proto


def onnx_graph(bundle: Bundle) -> bytes:
    """Writes a single network as ONNX, with what `library.runtimes.without_torch` checks the file with.

    Raises:
        StriateError: see `onnx_model`.
    """
    model = _traced_model(bundle) if _is_plain(bundle) else onnx_model(bundle)[1]
    for key, value in expected_facts(bundle).items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def _is_plain(bundle: Bundle) -> bool:
    """Whether the bundle is one of our own networks, whose layers do not depend on the shape of a batch."""
    return not bundle.members and info(parse_call(bundle.record.model)).source == "ours"


def _traced_model(bundle: Bundle) -> Any:
    """Writes one of our own networks as an ONNX model in a fiftieth of the time that `onnx_model` takes.

    PyTorch's older exporter follows one batch through the network. `onnx_model` imports and analyses for seconds, which
    is longer than predicting thousands of small pictures. Both graphs gave the same bits at the same speed.
    """
    import onnx

    graph, file = Graph(bundle), io.BytesIO()
    export: Any = torch.onnx.export  # its type has no files in memory
    (name,) = (one.name for one in graph.inputs)
    with torch.no_grad(), quiet():
        export(
            graph,
            graph.examples(),
            file,
            dynamo=False,
            dynamic_axes={name: {0: "batch"}},
            input_names=[name],
            output_names=[OUTPUT],
            opset_version=_OPSET,
        )
    return onnx.load_model_from_string(file.getvalue())


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Silences the deprecation messages that tracing logs, prints and warns."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _leaves(bundle: Bundle, share: float) -> Iterator[tuple[Bundle, float]]:
    """The bundles of single networks with the weight of each in the mean; the weights sum to 1."""
    if not bundle.members:
        yield bundle, share
        return
    total = sum(member.weight for member in bundle.record.members)
    for member, entry in zip(bundle.members, bundle.record.members, strict=True):
        yield from _leaves(member, share * entry.weight / total)


def _input_fields(leaf: Bundle) -> tuple[str, str, tuple[int, int], int]:
    record = leaf.record
    return record.steps, record.fit, record.input_size, record.channels


def flattened(prepared: Any) -> Sequence[Any]:
    """The input of each network for one prepared picture, in the order of `Graph.input_of`."""
    return [part for one in prepared for part in flattened(one)] if isinstance(prepared, tuple) else [prepared]
