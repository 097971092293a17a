"""Counts the layers of a network in every usual way, as tables of networks disagree about what a layer is.

counts = count_layers("resnet50")
counts.depth           # 50: convolutions and dense layers on the longest path, as papers count
counts.with_norms      # 107: everything that holds weights, as Keras's table counts
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from library.models.analysis import analyse
from library.models.build import create
from library.models.call import parse_call
from library.models.lookup import info

#: What Keras's own table (https://keras.io/api/applications) calls depth, by our name of the network.
KERAS_DEPTHS: Mapping[str, int] = {
    "vgg16": 16,
    "vgg19": 19,
    "inception_v3": 189,
    "resnet50": 107,
    "resnet101": 209,
    "resnet152": 311,
    "xception": 81,
    "inception_resnet_v2": 449,
}
#: Layers in the table of the course that this project grew from; only these two of its entries are known here.
COURSE_LAYERS: Mapping[str, int] = {"vgg16": 19, "resnet50": 150}

_ACTIVATIONS = ("relu", "hardtanh", "silu", "gelu", "tanh", "sigmoid", "hardswish")


@dataclass(frozen=True)
class LayerCounts:
    """Numbers of layers of one network, for one picture; each count holds those before it.

    Attributes:
        depth: convolutions and dense layers on the longest path from the picture to the logits, as papers count.
        weighted: all convolutions and dense layers, branches and shortcuts too; a depthwise convolution belongs to the
            pointwise one after it, as in the paper on Xception.
        with_norms: all layers that hold weights: those and the normalisations.
        with_pools: those and the pooling layers.
        with_activations: those and the activations.
        with_additions: those and the sums of two paths: all that computes.
        megabytes: of the weights and running statistics in float32, in units of 2**20 bytes.
    """

    depth: int
    weighted: int
    with_norms: int
    with_pools: int
    with_activations: int
    with_additions: int
    megabytes: float


@functools.cache
def count_layers(name: str) -> LayerCounts:
    """Counts the layers of a model of the catalogue; computes nothing but shapes.

    Args:
        name: of the model, or its call.

    Raises:
        UsageError: the model does not exist.
    """
    call = parse_call(name)
    analysis = analyse(call)
    kinds = Counter(layer.kind.split()[0] for layer in analysis.layers)
    norms = sum(layer.kind.endswith("norm") for layer in analysis.layers)
    weighted = kinds["conv"] + kinds["dense"]
    pools = kinds["max"] + kinds["avg"]
    with torch.device("meta"), torch.no_grad():
        model = create(call, num_classes=info(call).num_classes, auxiliary=False).eval()
        picture = torch.empty(1, *analysis.input_size)
        with _Others() as others:
            model.net(picture)
    tensors = [*model.net.parameters(), *model.net.buffers(), *model.head.parameters()]
    return LayerCounts(
        depth=analysis.depth,
        weighted=weighted,
        with_norms=weighted + norms,
        with_pools=weighted + norms + pools,
        with_activations=weighted + norms + pools + others.activations,
        with_additions=weighted + norms + pools + others.activations + others.additions,
        megabytes=sum(tensor.numel() for tensor in tensors) * 4 / 2**20,
    )


class _Others(TorchDispatchMode):
    """Counts the activations and the sums of two maps while a network runs."""

    def __init__(self) -> None:
        super().__init__()
        self.activations = self.additions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = str(func.overloadpacket.__name__).rstrip("_")
        self.activations += operation in _ACTIVATIONS
        maps = [one for one in args[:2] if isinstance(one, torch.Tensor) and one.ndim == 4]
        self.additions += operation == "add" and len(maps) == 2
        return func(*args, **(kwargs or {}))
