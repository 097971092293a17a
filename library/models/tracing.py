"""Records the operations of a network, with sizes, receptive fields and multiply-adds, while one picture runs through.

On torch's meta device nothing is computed, so even a large network takes only milliseconds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

Pair = tuple[float, float]


@dataclass(frozen=True)
class View:
    """The part of the picture that one element of a tensor depends on, as (height, width) in pixels of the input.

    Attributes:
        field: size of the receptive field.
        jump: distance between the receptive fields of neighbouring elements.
        size: size of the map, in elements.
        depth: number of convolutions and dense layers on the longest path from the input.
        centre: centre of the first element's receptive field; 0 is the middle of the first pixel, and padding makes it
            less than the field suggests (Araujo, Norris, Sim 2019, https://distill.pub/2019/computing-receptive-fields).
    """

    field: Pair
    jump: Pair
    size: tuple[int, int]
    depth: int
    centre: Pair = (0, 0)

    def through(
        self, kernel: Pair, stride: Pair, size: tuple[int, int], depth: int = 0, padding: Pair = (0, 0)
    ) -> View:
        """The view after a window of `kernel` elements (including dilation) that moves by `stride`.

        `padding` is the number of elements that are added above and to the left of the map.
        """
        return View(
            (self.field[0] + (kernel[0] - 1) * self.jump[0], self.field[1] + (kernel[1] - 1) * self.jump[1]),
            (self.jump[0] * stride[0], self.jump[1] * stride[1]),
            size,
            self.depth + depth,
            (
                self.centre[0] + ((kernel[0] - 1) / 2 - padding[0]) * self.jump[0],
                self.centre[1] + ((kernel[1] - 1) / 2 - padding[1]) * self.jump[1],
            ),
        )

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """The receptive field of one element: top, left, bottom, right in pixels, the last two excluded.

        It reaches outside the picture where the element depends on padding.
        """
        top, left = (
            math.floor(centre + place * jump - (field - 1) / 2 + 0.5)
            for centre, place, jump, field in zip(self.centre, (row, column), self.jump, self.field, strict=True)
        )
        return top, left, top + round(self.field[0]), left + round(self.field[1])

    def pooled(self) -> View:
        """The view after the whole map is reduced to one element."""
        return self.through(self.size, (1, 1), (1, 1))


@dataclass(frozen=True)
class Operation:
    """One operation that ran.

    Attributes:
        module: path of the module that ran it.
        kind: a short description, e.g. `conv 3x3/2`.
        weights: whether it is a convolution or a dense layer.
        inputs: number of input elements, for one picture.
        output: shape of its result without the batch.
        view: the view of its result.
        multiply_adds: number of multiply-adds, for one picture.
        connections: `multiply_adds`, plus one per output with a bias.
    """

    module: str
    kind: str
    weights: bool
    inputs: int
    output: tuple[int, ...]
    view: View
    multiply_adds: int
    connections: int


class Tracer(TorchFunctionMode):
    """Records the `operations` of a network, in the order in which they run.

    Args:
        picture: 1 x channels x height x width. One picture only, because some networks split it along the batch.
    """

    def __init__(self, picture: torch.Tensor) -> None:
        super().__init__()
        height, width = picture.shape[-2:]
        self.operations: list[Operation] = []
        self._views: Any = WeakTensorKeyDictionary()
        self._views[picture] = View((1, 1), (1, 1), (height, width), 0)
        self._path: list[str] = []

    @contextmanager
    def naming(self, root: nn.Module) -> Generator[None]:
        """Records which module of `root` runs each operation."""
        handles: list[Any] = []
        for path, module in root.named_modules():
            handles += [
                module.register_forward_pre_hook(self._entering(path)),
                module.register_forward_hook(self._leave),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def view_of(self, tensor: torch.Tensor) -> View | None:
        """The view of a tensor that was computed from the picture while the tracer was active."""
        return self._views.get(tensor)

    def _entering(self, path: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._path.append(path)

        return enter

    def _leave(self, *_: Any) -> None:
        self._path.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # The shape is read first: some operations change their input in place.
        views = [self._views[tensor] for tensor in _tensors((args, kwargs)) if tensor in self._views]
        before = args[0].shape if args and isinstance(args[0], torch.Tensor) else torch.Size()
        result = func(*args, **kwargs)
        if views:
            self._follow(str(getattr(func, "__name__", "")), before, args, kwargs, result, _widest(views))
        return result

    def _follow(
        self, name: str, before: torch.Size, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, view: View
    ) -> None:
        outputs = list(_tensors(result))
        if not outputs:
            return
        arguments = _Arguments(args, kwargs)
        after, kind, multiply_adds, bias = view, "", 0, 0
        if name in ("conv1d", "conv2d", "conv3d"):
            after, kind, multiply_adds, bias = _convolved(view, arguments, outputs[0])
        elif name == "linear":
            weight: torch.Tensor = arguments.get(1, "weight", None)
            after = dataclasses.replace(view, depth=view.depth + 1)
            kind = "dense"
            multiply_adds = outputs[0].numel() * weight.shape[1]
            bias = 0 if arguments.get(2, "bias", None) is None else outputs[0].numel()
        elif name in ("max_pool2d", "avg_pool2d"):
            after, kind = _pooled(view, arguments, outputs[0], name[:3])
        elif name in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
            after, kind = _adapted(view, outputs[0], name[9:12])
        elif name in _PRODUCTS:
            multiply_adds = _product(name, arguments, outputs[0])
            kind = "attention" if name == "scaled_dot_product_attention" else "product" if multiply_adds else ""
        elif name in _NORMS:
            kind = _NORMS[name]
        if len(before) == 4 and (outputs[0].ndim < 4 or name in _REDUCTIONS):
            after = after.pooled()
        elif outputs[0].ndim == 4 and name in ("interpolate", "pad"):
            height, width = outputs[0].shape[-2:]
            zoom = (view.size[0] / height, view.size[1] / width) if name == "interpolate" else (1, 1)
            after = view.through((1, 1), zoom, (height, width), padding=_added(name, arguments))
        for output in outputs:
            self._views[output] = after
        if kind:
            self.operations.append(
                Operation(
                    self._path[-1] if self._path else "",
                    kind,
                    name.startswith("conv") or name == "linear",
                    before.numel(),
                    tuple(outputs[0].shape[1:]),
                    after,
                    multiply_adds,
                    multiply_adds + bias,
                )
            )


_PRODUCTS = ("matmul", "bmm", "baddbmm", "scaled_dot_product_attention", "__matmul__")
_REDUCTIONS = ("mean", "sum", "amax", "max")
_NORMS = {"batch_norm": "batch norm", "layer_norm": "layer norm", "group_norm": "group norm", "rms_norm": "rms norm"}


@dataclass(frozen=True)
class _Arguments:
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    def get(self, position: int, name: str, default: Any) -> Any:
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)


def _added(name: str, arguments: _Arguments) -> Pair:
    """Rows above and columns to the left that `pad` adds to a map."""
    amounts: Sequence[int] = arguments.get(1, "pad", ()) if name == "pad" else ()
    return (float(amounts[2]) if len(amounts) > 2 else 0.0, float(amounts[0]) if amounts else 0.0)


def _convolved(view: View, arguments: _Arguments, output: torch.Tensor) -> tuple[View, str, int, int]:
    weight: torch.Tensor = arguments.get(1, "weight", None)
    stride, dilation = (_pair(arguments.get(position, name, 1)) for position, name in ((3, "stride"), (5, "dilation")))
    groups = int(arguments.get(6, "groups", 1))
    height, width = (int(side) for side in weight.shape[-2:]) if weight.ndim == 4 else (int(weight.shape[-1]), 1)
    span = (dilation[0] * (height - 1) + 1, dilation[1] * (width - 1) + 1)
    sizes = output.shape[-2:] if weight.ndim == 4 else (output.shape[-1], 1)
    added = arguments.get(4, "padding", 0)
    if isinstance(added, str):  # `same` adds the odd one below and to the right
        added = tuple((side - 1) // 2 for side in span) if added == "same" else 0
    after = view.through(span, stride, (int(sizes[0]), int(sizes[1])), depth=1, padding=_pair(added))
    elements = output.numel()
    name = "conv" if groups == 1 else "depthwise" if weight.shape[1] == 1 else f"conv ({groups} groups)"
    kind = f"{name} {height}x{width}" + _by(stride)
    bias = 0 if arguments.get(2, "bias", None) is None else elements
    return after, kind, elements * weight[0].numel(), bias


def _pooled(view: View, arguments: _Arguments, output: torch.Tensor, name: str) -> tuple[View, str]:
    kernel = _pair(arguments.get(1, "kernel_size", 1))
    argument = arguments.get(2, "stride", None)
    stride = kernel if argument is None or argument == [] else _pair(argument)
    height, width = output.shape[-2:]
    after = view.through(kernel, stride, (height, width), padding=_pair(arguments.get(3, "padding", 0)))
    return after, f"{name} pool {kernel[0]:g}x{kernel[1]:g}{_by(stride)}"


def _adapted(view: View, output: torch.Tensor, name: str) -> tuple[View, str]:
    """The view after pooling to a fixed number of outputs, whose windows may differ in size."""
    size = (int(output.shape[-2]), int(output.shape[-1]))
    if size == view.size:
        return view, ""
    kernel = tuple(
        max(-(-(index + 1) * was // now) - index * was // now for index in range(now))
        for was, now in zip(view.size, size, strict=True)
    )
    stride = (view.size[0] / size[0], view.size[1] / size[1])
    return view.through((kernel[0], kernel[1]), stride, size), f"{name} pool to {size[0]}x{size[1]}"


def _product(name: str, arguments: _Arguments, output: torch.Tensor) -> int:
    """Multiply-adds of a product of two tensors that both depend on the picture."""
    if name == "scaled_dot_product_attention":
        query, key, value = (arguments.get(n, word, None) for n, word in enumerate(("query", "key", "value")))
        pairs = query[..., 0].numel() * key.shape[-2]
        return int(pairs * (query.shape[-1] + value.shape[-1]))
    first = arguments.get(1 if name == "baddbmm" else 0, "input", None)
    return int(output.numel() * first.shape[-1])


def _by(stride: Pair) -> str:
    if stride[0] == stride[1]:
        return "" if stride[0] == 1 else f"/{stride[0]:g}"
    return f"/{stride[0]:g}x{stride[1]:g}"


def _pair(value: Any) -> Pair:
    if isinstance(value, tuple | list):
        values = cast("Sequence[Any]", value)
        return float(values[0]), float(values[-1])
    return float(value), float(value)


def _widest(views: Sequence[View]) -> View:
    """The view where branches meet: each element depends on all that any branch depends on."""
    largest = max(views, key=lambda view: view.jump)
    # Squeeze and excitation scales a map by what was pooled over all of it: its elements keep their own places.
    widest = max(views, key=lambda view: (view.size, view.field))
    return View(
        (max(view.field[0] for view in views), max(view.field[1] for view in views)),
        largest.jump,
        max(view.size for view in views),
        max(view.depth for view in views),
        widest.centre,
    )


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(cast("Mapping[Any, Any]", value).values()))
    elif isinstance(value, tuple | list):
        for item in cast("Sequence[Any]", value):
            yield from _tensors(item)
