"""The parameters of each model's call, checked when the call is parsed.

Never change a default: a bundle stores only the parameters that differ from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, dataclass_transform

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

Count: TypeAlias = Annotated[int, Field(ge=1, le=2**20)]
MAX_CHANNELS = 4096
Channels = Annotated[
    int, Field(ge=1, le=MAX_CHANNELS, description="channels of the input: 1, 3, or as many bands as there are")
]
DropRate = Annotated[
    float, Field(ge=0, lt=1, description="share of features dropped before the classifier in training")
]
Auxiliary = Annotated[bool, Field(description="with auxiliary heads in training; they need large pictures")]

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, field_specifiers=(pydantic.Field,))
def _parameters(cls: type[_T]) -> type[_T]:
    checked: Any = checked_dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid", strict=True))(cls)
    return checked


@_parameters
class LeNet5Parameters:
    """Parameters of `lenet5`."""

    in_chans: Channels = 1
    size: Annotated[Literal[28, 32], Field(description="side of the input; 28 is padded to the paper's 32")] = 28
    activation: Annotated[Literal["tanh", "relu"], Field(description="after every layer but the last")] = "tanh"
    pooling: Annotated[Literal["avg", "max"], Field(description="of 2x2 pixels")] = "avg"


@_parameters
class MlpParameters:
    """Parameters of `mlp`."""

    hidden: Annotated[tuple[Count, ...], Field(min_length=1, description="units of each hidden layer")] = (300,)
    in_chans: Channels = 1
    size: Annotated[int, Field(ge=1, le=1024, description="side of the input")] = 28


@_parameters
class ResNet9Parameters:
    """Parameters of `resnet9`."""

    width: Annotated[int, Field(ge=1, le=1024, description="channels of the first layer; Page's has 64")] = 16
    in_chans: Channels = 3


@_parameters
class FilterNetParameters:
    """Parameters of `filter_net`."""

    count: Annotated[int, Field(ge=1, le=256, description="kernels of the first layer")] = 8
    # Not `size`, which is the side of the picture in every other call.
    kernel_size: Annotated[Literal[3, 5, 7, 9, 11], Field(description="side of a kernel in pixels")] = 5
    gates: Annotated[bool, Field(description="learn a weight for each of a list of filters before the kernels")] = False
    in_chans: Channels = 3


@_parameters
class NetworkParameters:
    """Parameters of every network of the catalogue that is not listed in this file."""

    in_chans: Channels = 3
    drop_rate: DropRate = 0.0


@_parameters
class DenseNetworkParameters:
    """Parameters of networks with several dense layers: `alexnet`, `vgg16`, `vgg19`."""

    in_chans: Channels = 3
    drop_rate: Annotated[float, Field(ge=0, lt=1, description="share of features dropped before each dense layer")] = (
        0.5
    )


@_parameters
class ResNetParameters:
    """Parameters of `resnet18` to `resnet152`."""

    in_chans: Channels = 3
    small_input: Annotated[
        bool, Field(description="for pictures of about 32x32: first convolution 3x3 with stride 1, no pooling after it")
    ] = False
    drop_rate: DropRate = 0.0


@_parameters
class GoogLeNetParameters:
    """Parameters of `googlenet`."""

    in_chans: Channels = 3
    auxiliary: Auxiliary = True
    drop_rate: DropRate = 0.2


@_parameters
class InceptionV3Parameters:
    """Parameters of `inception_v3`."""

    in_chans: Channels = 3
    auxiliary: Auxiliary = True
    drop_rate: DropRate = 0.0


_PARAMETERS: Mapping[str, Callable[..., Any]] = {
    "lenet5": LeNet5Parameters,
    "mlp": MlpParameters,
    "resnet9": ResNet9Parameters,
    "filter_net": FilterNetParameters,
    "alexnet": DenseNetworkParameters,
    "vgg16": DenseNetworkParameters,
    "vgg19": DenseNetworkParameters,
    "googlenet": GoogLeNetParameters,
    "inception_v3": InceptionV3Parameters,
    **{f"resnet{layers}": ResNetParameters for layers in (18, 34, 50, 101, 152)},
}


def parameters_of(name: str) -> Any:
    """The frozen dataclass whose fields are the parameters of a model of the catalogue."""
    return _PARAMETERS.get(name, NetworkParameters)
