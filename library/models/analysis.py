"""Computes the layers, parameters, operations and receptive fields of a model from the model itself.

One multiply-add counts as two FLOPs, as in torch's counter and in processor specifications. Papers mostly count it as
one: their "FLOPs" are `multiply_adds`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from library.errors import UsageError
from library.models.build import create
from library.models.call import ModelCall, parse_call
from library.models.classifier import Classifier
from library.models.lookup import info
from library.models.tracing import Operation, Tracer


@dataclass(frozen=True)
class Layer:
    """Figures of one layer, for one picture.

    Attributes:
        name: path in the model; `net.` is the backbone, `head.` the classifier.
        kind: e.g. `conv 3x3/2`: kernel 3x3, stride 2.
        stage: name of the stage that it is frozen with.
        output: shape of its result: channels, height and width, or a length.
        parameters: number of its own trainable parameters.
        receptive_field: height and width, in pixels, of the part of the input that one output depends on, including
            padding.
        connections: number of inputs of each output, summed over outputs; a bias counts as an input.
        multiply_adds: number of multiply-adds.
        flops: twice `multiply_adds`.
        dense_weights: number of weights of a dense layer with the same inputs and outputs; None except for
            convolutions.
    """

    name: str
    kind: str
    stage: str
    output: tuple[int, ...]
    parameters: int
    receptive_field: tuple[int, int]
    connections: int
    multiply_adds: int
    flops: int
    dense_weights: int | None


@dataclass(frozen=True)
class Analysis:
    """Figures of a model, for one picture.

    Attributes:
        call: the model's canonical call.
        input_size: channels, height and width.
        num_classes: number of outputs.
        layers: in the order in which they run.
        parameters: number of trainable parameters without auxiliary heads.
        depth: number of convolutions and dense layers on the longest path from the picture to the logits.
        multiply_adds: of convolutions, dense layers and attention.
        flops: twice `multiply_adds`.
        stages: names of the stages, from the input to the head.
    """

    call: str
    input_size: tuple[int, int, int]
    num_classes: int
    layers: tuple[Layer, ...]
    parameters: int
    depth: int
    multiply_adds: int
    flops: int
    stages: tuple[str, ...]


def analyse(call: str | ModelCall, *, num_classes: int | None = None, size: tuple[int, int] | None = None) -> Analysis:
    """Traces one picture through a model; computes nothing but shapes.

    Args:
        call: the model's call.
        num_classes: number of outputs; None for the published number.
        size: height and width of the picture in pixels; None for the model's own.

    Raises:
        UsageError: the model does not exist, or cannot take pictures of this size.
    """
    call = parse_call(call) if isinstance(call, str) else call
    facts = info(call)
    height, width = size or facts.input_size[1:]
    num_classes = num_classes or facts.num_classes
    with torch.device("meta"), torch.no_grad():
        model = create(call, num_classes=num_classes, auxiliary=False).eval()
        picture = torch.empty(1, call.in_chans, height, width)
        tracer = Tracer(picture)
        with tracer.naming(model), tracer:
            run(model, picture, training=False)
    layers = _layers(model, tracer.operations)
    multiply_adds = sum(layer.multiply_adds for layer in layers)
    return Analysis(
        call=str(call),
        input_size=(call.in_chans, height, width),
        num_classes=num_classes,
        layers=layers,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        depth=max((operation.view.depth for operation in tracer.operations), default=0),
        multiply_adds=multiply_adds,
        flops=2 * multiply_adds,
        stages=model.stage_names,
    )


def check_input(call: str | ModelCall, size: tuple[int, int]) -> None:
    """Checks that a model can be trained on pictures of a size; computes nothing but shapes.

    Args:
        call: the model's call.
        size: height and width in pixels.

    Raises:
        UsageError: the pictures are too small, or the model takes one size only.
    """
    call = parse_call(call) if isinstance(call, str) else call
    with torch.device("meta"), torch.no_grad():
        model = create(call, num_classes=2)
        # Batch norm needs at least two pictures in training.
        run(model, torch.empty(2, call.in_chans, *size), training=True)


def run(model: Classifier, pictures: torch.Tensor, *, training: bool) -> None:
    """Runs a model on pictures (N x channels x height x width).

    Raises:
        UsageError: the model cannot take them; names its own size.
    """
    height, width = pictures.shape[-2:]
    try:
        if training:
            model.train().forward_train(pictures)
        else:
            model(pictures)
    except (RuntimeError, AssertionError, ValueError) as error:
        own = info(model.name).input_size
        hint = f"; its own size is {own[1]}x{own[2]}"
        if training and len(model.stages()[-1]) > 1:
            hint += "; its auxiliary heads need the largest pictures; auxiliary=False leaves them out"
        raise UsageError(f"{model.name} cannot take pictures of {height}x{width}: {error}{hint}") from error


def _layers(model: Classifier, operations: list[Operation]) -> tuple[Layer, ...]:
    stage_of = {id(module): name for name, stage in _named_stages(model) for module in stage}
    counted: set[str] = set()
    layers: list[Layer] = []
    for operation in operations:
        module = model.get_submodule(operation.module)
        # The parameters of a module that runs twice count once.
        parameters = 0 if operation.module in counted else sum(p.numel() for p in module.parameters(recurse=False))
        counted.add(operation.module)
        is_convolution = operation.weights and operation.kind != "dense"
        layers.append(
            Layer(
                name=operation.module,
                kind=operation.kind,
                stage=stage_of.get(id(module), ""),
                output=operation.output,
                parameters=parameters,
                receptive_field=(round(operation.view.field[0]), round(operation.view.field[1])),
                connections=operation.connections,
                multiply_adds=operation.multiply_adds,
                flops=2 * operation.multiply_adds,
                dense_weights=operation.inputs * _product(operation.output) if is_convolution else None,
            )
        )
    return tuple(layers)


def _named_stages(model: Classifier) -> list[tuple[str, list[nn.Module]]]:
    return [
        (name, [inner for module in modules for inner in module.modules()])
        for name, modules in zip(model.stage_names, model.stages(), strict=True)
    ]


def _product(sizes: tuple[int, ...]) -> int:
    return torch.Size(sizes).numel()
