"""A bundle as one network from stored pixels to probabilities, and that as ONNX."""

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

OUTPUT = "probabilities"
_OPSET = 20
#: Protocol buffers end at 2 GiB; weights alone may fill them up.
_MAX_BYTES = 2**31 - 2**20


@dataclass(frozen=True)
class GraphInput:
    """One input of a graph: uint8, N x height x width x channels, as `Bundle.prepare` gives pictures.

    Attributes:
        name: `pixels`; `pixels_0`, `pixels_1` ... where an ensemble's members see different pictures.
        steps: filters and selectors that a picture goes through.
        fit: filters that then give it its size.
        size: height and width.
        channels: of it.
    """

    name: str
    steps: str
    fit: str
    size: tuple[int, int]
    channels: int


class Graph(nn.Module):
    """Probabilities (N x classes, float32) of a bundle, ensembles too; `inputs` says of what.

    Args:
        bundle: its networks are shared, not copied.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        leaves = list(_leaves(bundle, 1.0))
        seen = [_input(leaf) for leaf, _ in leaves]
        distinct = list(dict.fromkeys(seen))
        self.inputs = tuple(
            GraphInput("pixels" if len(distinct) == 1 else f"pixels_{number}", *fields)
            for number, fields in enumerate(distinct)
        )
        #: Which input each network sees.
        self.input_of = tuple(distinct.index(fields) for fields in seen)
        self._networks = nn.ModuleList([leaf.model for leaf, _ in leaves])
        self._shares = tuple(share for _, share in leaves)
        for number, (leaf, _) in enumerate(leaves):
            order = [leaf.classes.index(name) for name in bundle.classes]
            plain = order == list(range(len(order)))
            self.register_buffer(f"_order_{number}", None if plain else torch.tensor(order), persistent=False)
        self.train(False)

    def forward(self, *pixels: torch.Tensor) -> torch.Tensor:
        """One tensor an input."""
        mean: Any = 0.0
        for number, (network, share) in enumerate(zip(self._networks, self._shares, strict=True)):
            rows = torch.softmax(network(pixels[self.input_of[number]].permute(0, 3, 1, 2)), 1)
            order: torch.Tensor | None = getattr(self, f"_order_{number}")
            rows = rows if order is None else rows.index_select(1, order)
            mean = rows if len(self._networks) == 1 else mean + rows * share
        return mean

    def examples(self, pictures: int = 2) -> tuple[torch.Tensor, ...]:
        """Empty inputs, to trace with."""
        return tuple(
            torch.zeros((pictures, *one.size, one.channels), dtype=torch.uint8, device=self._device)
            for one in self.inputs
        )

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Any number of pictures."""
        batch = torch.export.Dim("batch", min=1)
        # As one name for all of `*pixels`.
        return (tuple({0: batch} for _ in self.inputs),)

    def exported(self) -> Any:
        """The traced graph, a `torch.export.ExportedProgram`; raises whatever the tracing of a network raises."""
        with torch.no_grad(), quiet():
            return torch.export.export(self, self.examples(), dynamic_shapes=self.dynamic_shapes())

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device


def onnx_model(bundle: Bundle) -> tuple[Graph, Any]:
    """A bundle as an ONNX model (`onnx.ModelProto`), with the batch left open.

    Raises:
        StriateError: a network that cannot be written so, or is too large for one file.
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
    except Exception as error:  # a network may use whatever operation the exporter does not know
        raise StriateError(f"it cannot be written as ONNX: {first_line(error)}") from error
    return graph, program.model_proto


def first_line(error: BaseException) -> str:
    """What went wrong, short: tracers' messages run over pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Tracing tells of its own deprecations, on every channel there is."""
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
    """Networks, and what each counts; the shares of all come to 1."""
    if not bundle.members:
        yield bundle, share
        return
    whole = sum(member.weight for member in bundle.record.members)
    for member, told in zip(bundle.members, bundle.record.members, strict=True):
        yield from _leaves(member, share * told.weight / whole)


def _input(leaf: Bundle) -> tuple[str, str, tuple[int, int], int]:
    record = leaf.record
    return record.steps, record.fit, record.input_size, record.channels


def flattened(prepared: Any) -> Sequence[Any]:
    """What each network sees of one prepared picture, in the order of `Graph.input_of`."""
    return [part for one in prepared for part in flattened(one)] if isinstance(prepared, tuple) else [prepared]
