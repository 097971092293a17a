"""Builds networks of timm, of torchvision and our own as a `Classifier`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from library.errors import UsageError
from library.models.call import ModelCall, parse_call
from library.models.catalog import TIMM, ModelInfo
from library.models.classifier import Classifier
from library.models.lookup import info
from library.models.small_networks import FilterNet, LeNet5, Mlp, ResNet9
from library.models.stages import stages_of
from library.models.weights import Origin, check_offered, load_weights

_log = logging.getLogger(__name__)


_INITIALISERS: tuple[Callable[..., Any], ...] = (torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.erfinv_)


class SkipInitialisation(TorchFunctionMode):
    """Leaves the parameters of models that are built within it uninitialised; load every weight before using one.

    Building a VGG-19 takes 0.01 s instead of 1.5, and torch's generator keeps its state.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _INITIALISERS or getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@dataclass(frozen=True)
class _Network:
    """A network from its library, with the paths of its classifier and its first convolutions."""

    net: Any
    classifier: str
    first: tuple[str, ...]


def create(
    call: str | ModelCall,
    *,
    num_classes: int,
    weights: str | None = None,
    head: Sequence[int] = (),
    auxiliary: bool = True,
) -> Classifier:
    """Builds a model.

    Args:
        call: e.g. `lenet5`, `resnet18(in_chans=4, small_input=True)`, `timm("convnext_tiny")`.
        num_classes: number of outputs.
        weights: None for random ones (from torch's generator); `pretrained` for those of timm or torchvision; or the
            URI of a .safetensors, .pth, .pt or .bin file (`library.bundle.description.weights_file` gives a bundle's).
            The classifier is loaded only if it fits; the first convolution is adapted to other channels.
        head: units of dense layers, each with ReLU, between the features and the classifier.
        auxiliary: include the auxiliary heads that GoogLeNet and Inception v3 have in training.

    Raises:
        UsageError: the model does not exist, or the weights do not fit it (names the tensors).
        StriateError: the weights cannot be read or fetched.
    """
    call = parse_call(call) if isinstance(call, str) else call
    facts = info(call)
    if num_classes < 1 or any(units < 1 for units in head):
        raise UsageError(f"num_classes and every width of head are at least 1; got {num_classes} and {list(head)}")
    if weights == "pretrained":
        check_offered(call, facts)
    network = _network(call, facts, num_classes, auxiliary=auxiliary)
    last = network.net.get_submodule(network.classifier)
    if not isinstance(last, nn.Linear):
        raise UsageError(f"{call} ends in {type(last).__name__}; only networks that end in a dense layer are supported")
    network.net.set_submodule(network.classifier, nn.Identity())
    aux = {name: share for name, share in facts.auxiliary.items() if getattr(network.net, name, None) is not None}
    model = Classifier(
        network.net,
        _head(last, tuple(head), num_classes),
        mean=facts.mean,
        std=facts.std,
        in_chans=call.in_chans,
        stages=stages_of(network.net, facts, skip=tuple(aux)),
        auxiliary=tuple(aux.items()),
        name=str(call),
    )
    if weights is not None:
        origin = Origin(call, facts, network.classifier, network.first)
        _log.info("%s", load_weights(model, weights, origin))
    return model


def _head(last: nn.Linear, hidden: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """The network's own classifier, or dense layers with ReLU and a new one."""
    if not hidden:
        return nn.Sequential(last)
    layers: list[nn.Module] = []
    units = last.in_features
    for width in hidden:
        layers += [nn.Linear(units, width), nn.ReLU()]
        units = width
    return nn.Sequential(*layers, nn.Linear(units, num_classes))


def _network(call: ModelCall, facts: ModelInfo, num_classes: int, *, auxiliary: bool) -> _Network:
    parameters = dict(call.parameters)
    small_input = parameters.pop("small_input", False)
    with_heads = parameters.pop("auxiliary", False) and auxiliary
    if facts.source == "ours":
        return _own_network(call.name, parameters, num_classes)
    if facts.source == "torchvision":
        return _torchvision_network(call, num_classes, with_heads=with_heads)
    import timm  # takes seconds, which our own models need not wait for

    if call.name == TIMM:
        parameters.pop("name")
    elif with_heads:
        parameters["aux_logits"] = True
    try:
        net: Any = timm.create_model(facts.library_name, num_classes=num_classes, **parameters)
    except UsageError:
        raise
    except Exception as error:  # timm does not check parameters, and raises errors of any type
        if call.name != TIMM:
            raise
        raise UsageError(f"timm cannot build {call}: {error or type(error).__name__}") from error
    config = net.pretrained_cfg
    classifier, first = config.get("classifier"), config.get("first_conv")
    if not isinstance(classifier, str):
        raise UsageError(f"{call} has {classifier or 'no classifier'}; only networks with one classifier are supported")
    if small_input:
        net.conv1 = nn.Conv2d(call.in_chans, 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    return _Network(net, classifier, (first,) if isinstance(first, str) else tuple(first or ()))


def _own_network(name: str, parameters: dict[str, Any], num_classes: int) -> _Network:
    if name == "lenet5":
        return _Network(LeNet5(num_classes, **parameters), "classifier", ("c1",))
    if name == "mlp":
        return _Network(Mlp(num_classes, **parameters), "classifier", ())
    if name == "filter_net":
        return _Network(FilterNet(num_classes, **parameters), "classifier", ("kernels",))
    return _Network(ResNet9(num_classes, **parameters), "classifier", ("prep.0",))


def _torchvision_network(call: ModelCall, num_classes: int, *, with_heads: bool) -> _Network:
    import torchvision  # takes seconds, like timm

    drop = float(call.parameters["drop_rate"])
    if call.name == "alexnet":
        net: Any = torchvision.models.alexnet(num_classes=num_classes, dropout=drop)
        classifier, first = "classifier.6", "features.0"
    else:
        # torchvision's initialisation is slow, and with batch normalisation the default works as well.
        net = torchvision.models.googlenet(
            num_classes=num_classes, aux_logits=with_heads, init_weights=False, dropout=drop
        )
        classifier, first = "fc", "conv1.conv"
    if call.in_chans != 3:
        old = net.get_submodule(first)
        new = nn.Conv2d(
            call.in_chans, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None
        )
        net.set_submodule(first, new)
    return _Network(net, classifier, (first,))
