"""Fetches or reads pre-trained weights and fits them to a model with other channels or classes."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from library import storage
from library.errors import StriateError, UsageError
from library.models.call import ModelCall
from library.models.catalog import TIMM, ModelInfo
from library.models.classifier import Classifier

Tensors = dict[str, torch.Tensor]

#: Names under which training scripts store the tensors in a checkpoint.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_MAX_LISTED = 5


@dataclass(frozen=True)
class Origin:
    """How a model's library names the parts that may differ.

    Attributes:
        call: the model's call.
        facts: the model's facts.
        classifier: path of its classifier.
        first: paths of the convolutions on the input.
    """

    call: ModelCall
    facts: ModelInfo
    classifier: str
    first: tuple[str, ...]


@dataclass
class _Fit:
    """Which tensors of a file fit a model: to load, adapted to other channels, left random, and wrong."""

    loaded: Tensors = field(default_factory=dict[str, torch.Tensor])
    adapted: list[str] = field(default_factory=list[str])
    fresh: list[str] = field(default_factory=list[str])
    wrong: list[str] = field(default_factory=list[str])


def check_offered(call: ModelCall, facts: ModelInfo) -> None:
    """Checks that there are `pretrained` weights for a model.

    Raises:
        UsageError: there are none; says what works instead.
    """
    if not facts.weights_source:
        raise UsageError(f"there are no pre-trained weights of {call}; leave weights out, or give a file or a bundle")
    if call.parameters.get("small_input"):
        raise UsageError(
            f"{call}: the pre-trained weights have another first convolution; leave small_input out, or give a bundle "
            "of the same model"
        )


def load_weights(model: Classifier, weights: str, origin: Origin) -> str:
    """Loads weights into a model.

    Args:
        model: changed in place; the classifier is loaded only if it fits, the first convolution is adapted to other
            channels.
        weights: `pretrained`, or the URI of a .safetensors, .pth, .pt or .bin file.
        origin: how the model's library names its parts.

    Returns:
        A line for the log that says what was loaded.

    Raises:
        UsageError: a tensor fits nowhere, or one is missing.
        StriateError: the weights cannot be read or fetched.
    """
    tensors = _pretrained(origin) if weights == "pretrained" else _read(weights)
    source = origin.facts.weights_source if weights == "pretrained" else weights
    fit = _fit(model, _renamed(tensors, origin), origin)
    if fit.wrong:
        listed = "; ".join(fit.wrong[:_MAX_LISTED])
        more = f"; and {len(fit.wrong) - _MAX_LISTED} more" if len(fit.wrong) > _MAX_LISTED else ""
        raise UsageError(f"the weights {source} do not fit {origin.call}: {listed}{more}")
    model.load_state_dict(fit.loaded, strict=False)
    line = f"weights of {origin.call} from {source}: {len(fit.loaded)} tensors"
    if fit.adapted:
        line += f"; adapted to {model.in_chans} channels: {', '.join(fit.adapted)}"
    if fit.fresh:
        line += f"; initialised at random: {', '.join(fit.fresh)}"
    model.loaded = line
    return line


def adapt_channels(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Adapts the weights of the first convolution to another number of channels, like timm's `adapt_input_conv`.

    One channel gets their sum, so that a grey picture gives the same result as its RGB copy; more channels repeat them
    (R, G, B, R, ...), scaled so that the sum over channels stays the same.

    Args:
        weight: out x in x height x width.
        channels: new number of input channels.
    """
    known = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    index = torch.arange(channels, device=weight.device) % known
    return weight[:, index] * (known / channels)


def _fit(model: Classifier, source: Tensors, origin: Origin) -> _Fit:
    own = model.state_dict()
    auxiliary = tuple(f"net.{name}." for name in origin.facts.auxiliary)
    first = tuple(f"net.{path}.weight" for path in origin.first)
    # A head with other layers is not loaded at all, even where some shapes agree.
    same_head = {name for name in own if _is_head(name)} == {name for name in source if _is_head(name)}
    fit = _Fit()
    for name, expected in own.items():
        tensor = source.get(name)
        optional = _is_head(name) or name.startswith(auxiliary)
        if tensor is not None and tensor.shape == expected.shape and (same_head or not _is_head(name)):
            fit.loaded[name] = tensor
        elif optional:
            fit.fresh.append(name)
        elif tensor is None:
            # Old checkpoints have no batch counters; other libraries have no mean and std among their weights.
            if name not in ("mean", "std") and not name.endswith("num_batches_tracked"):
                fit.wrong.append(f"'{name}' is missing")
        elif name in first and tensor.shape[:1] + tensor.shape[2:] == expected.shape[:1] + expected.shape[2:]:
            fit.loaded[name] = adapt_channels(tensor.float(), expected.shape[1])
            fit.adapted.append(name)
        elif name not in ("mean", "std"):
            fit.wrong.append(f"'{name}' is {_shape(tensor)}, the model has {_shape(expected)}")
    fit.wrong += [
        f"'{name}' is not in the model"
        for name in source
        if name not in own and not _is_head(name) and not name.startswith(auxiliary)
    ]
    return fit


def _is_head(name: str) -> bool:
    return name.startswith("head.")


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _renamed(tensors: Tensors, origin: Origin) -> Tensors:
    """Tensors under their names in a `Classifier`: `net.` before the backbone's, `head.0.` for the classifier."""
    if any(name.startswith("net.") for name in tensors):
        return tensors
    if origin.facts.library_name.startswith("vgg") and "classifier.0.weight" in tensors:
        tensors = _timm_vgg(tensors)
    before = origin.classifier + "."
    return {
        f"head.0.{name.removeprefix(before)}" if name.startswith(before) else f"net.{name}": tensor
        for name, tensor in tensors.items()
    }


def _timm_vgg(tensors: Tensors) -> Tensors:
    """Weights of torchvision's VGG for timm's, which has convolutions in place of the dense layers."""
    renamed = {"classifier.0.": "pre_logits.fc1.", "classifier.3.": "pre_logits.fc2.", "classifier.6.": "head.fc."}
    result: Tensors = {}
    for name, tensor in tensors.items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        if name == "pre_logits.fc1.weight":
            tensor = tensor.reshape(4096, 512, 7, 7)
        elif name == "pre_logits.fc2.weight":
            tensor = tensor.reshape(4096, 4096, 1, 1)
        result[name] = tensor
    return result


def _read(uri: str) -> Tensors:
    """Tensors of a .safetensors or a .pth file, by name; nothing in it is ever run."""
    uri = storage.normalize(uri)
    name = storage.name_of(uri)
    if name.endswith(".safetensors"):
        return _from_safetensors(uri)
    if name.endswith((".pth", ".pt", ".bin")):
        return _from_pickle(uri)
    raise UsageError(f"weights: {uri} is not a .safetensors, .pth, .pt or .bin file, and not 'pretrained'")


def _from_safetensors(uri: str) -> Tensors:
    try:
        return load_safetensors(storage.read_bytes(uri))
    except SafetensorError as error:
        raise StriateError(f"{uri} is damaged, or not a safetensors file: {error}") from error


def _from_pickle(uri: str) -> Tensors:
    data = storage.read_bytes(uri)
    try:
        content: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise StriateError(
            f"{uri} holds more than tensors, which could run code, so it is not read; save only its tensors: "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise StriateError(f"{uri} is damaged, or not a file of torch.save: {error}") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = cast(Any, content)[wrapper]
    if not isinstance(content, Mapping):
        raise StriateError(f"{uri} holds a {type(content).__name__}, not tensors by name")
    named = cast("Mapping[Any, Any]", content)
    others = [str(name) for name, value in named.items() if not isinstance(value, torch.Tensor)]
    if others or not named:
        raise StriateError(
            f"{uri} must hold only tensors by name; these are not tensors: {', '.join(others[:_MAX_LISTED])}"
        )
    # Distributed training and torch.compile add these prefixes.
    return {str(name).removeprefix("module.").removeprefix("_orig_mod."): value for name, value in named.items()}


def _pretrained(origin: Origin) -> Tensors:
    """The published weights, with all classes and channels, under their names in the library."""
    facts = origin.facts
    model, _, tag = facts.library_name.partition(".")
    if facts.source == "torchvision":
        import torchvision

        return _fetched(origin, lambda: torchvision.models.get_model(model, weights=tag))
    import timm

    extra: dict[str, Any] = {
        name: value for name, value in origin.call.parameters.items() if name not in ("name", "in_chans")
    }
    if origin.call.name != TIMM:
        extra = {"aux_logits": True} if facts.auxiliary else {}
    return _fetched(origin, lambda: timm.create_model(facts.library_name, pretrained=True, **extra))


def _fetched(origin: Origin, make: Callable[[], Any]) -> Tensors:
    try:
        return make().state_dict()
    except (OSError, RuntimeError) as error:
        from huggingface_hub.constants import HF_HUB_CACHE

        source = origin.facts.weights_source
        from_hub = source.startswith("https://huggingface.co/")
        cache = f"{HF_HUB_CACHE} (HF_HUB_CACHE)" if from_hub else f"{torch.hub.get_dir()}/checkpoints (TORCH_HOME)"
        file = f"{source}/resolve/main/model.safetensors" if from_hub else source
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise StriateError(
            f"cannot get the pre-trained weights of {origin.call} from {source}: {reason}\n"
            f"without a network: download {file} elsewhere and set weights to that file, or copy a cache "
            f"that has it to {cache}"
        ) from error
