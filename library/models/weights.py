"""Pre-trained weights: fetched, read from a file or a bundle, and fitted to a model that may differ at its two ends."""

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

#: Under which name a training script keeps the tensors in its checkpoint.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_SHOWN = 5


@dataclass(frozen=True)
class Origin:
    """How a model's library names what may differ.

    Attributes:
        call: of the model.
        facts: of the model.
        classifier: path of its classifier.
        first: paths of the convolutions that see the input.
    """

    call: ModelCall
    facts: ModelInfo
    classifier: str
    first: tuple[str, ...]


@dataclass
class _Fit:
    """Which tensors of a file go into a model, and which do not."""

    taken: Tensors = field(default_factory=dict[str, torch.Tensor])
    adapted: list[str] = field(default_factory=list[str])
    fresh: list[str] = field(default_factory=list[str])
    wrong: list[str] = field(default_factory=list[str])


def check_offered(call: ModelCall, facts: ModelInfo) -> None:
    """Refuse `pretrained` where there is nothing to fetch.

    Raises:
        UsageError: says what works instead.
    """
    if not facts.weights_source:
        raise UsageError(f"there are no pre-trained weights of {call}; leave weights out, or give a file or a bundle")
    if call.parameters.get("small_input"):
        raise UsageError(
            f"{call}: the pre-trained weights have another first convolution; leave small_input out, or give a bundle "
            "of the same model"
        )


def load_weights(model: Classifier, weights: str, origin: Origin) -> str:
    """Put weights into a model.

    Args:
        model: changed in place; the classifier only if it fits, the first convolution adapted to other channels.
        weights: `pretrained`, or a file or bundle, here or s3://.
        origin: how the model's library names its parts.

    Returns:
        A line that says what was taken.

    Raises:
        UsageError: when a tensor fits nowhere, or one is missing.
        StriateError: when the weights cannot be read or fetched.
    """
    tensors = _pretrained(origin) if weights == "pretrained" else _read(weights)
    source = origin.facts.weights_source if weights == "pretrained" else weights
    fit = _fit(model, _in_our_names(tensors, origin), origin)
    if fit.wrong:
        listed = "; ".join(fit.wrong[:_SHOWN])
        more = f"; and {len(fit.wrong) - _SHOWN} more" if len(fit.wrong) > _SHOWN else ""
        raise UsageError(f"the weights {source} do not fit {origin.call}: {listed}{more}")
    model.load_state_dict(fit.taken, strict=False)
    line = f"weights of {origin.call} from {source}: {len(fit.taken)} tensors"
    if fit.adapted:
        line += f"; adapted to {model.in_chans} channels: {', '.join(fit.adapted)}"
    if fit.fresh:
        line += f"; begin at random: {', '.join(fit.fresh)}"
    model.loaded = line
    return line


def adapt_channels(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """The first convolution's weights for another number of channels, as timm's `adapt_input_conv`.

    One channel gets their sum, so that a grey picture gives what its RGB copy gave; more repeat them (R, G, B, R, ...),
    scaled so that the sum over channels keeps its size.

    Args:
        weight: out x in x height x width.
        channels: wanted instead of `in`.
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
    # A head of other layers is another head, even where one of its shapes happens to agree.
    same_head = {name for name in own if _is_head(name)} == {name for name in source if _is_head(name)}
    fit = _Fit()
    for name, wanted in own.items():
        given = source.get(name)
        optional = _is_head(name) or name.startswith(auxiliary)
        if given is not None and given.shape == wanted.shape and (same_head or not _is_head(name)):
            fit.taken[name] = given
        elif optional:
            fit.fresh.append(name)
        elif given is None:
            # Old checkpoints count no batches; other libraries keep mean and deviation elsewhere.
            if name not in ("mean", "std") and not name.endswith("num_batches_tracked"):
                fit.wrong.append(f"'{name}' is missing")
        elif name in first and given.shape[:1] + given.shape[2:] == wanted.shape[:1] + wanted.shape[2:]:
            fit.taken[name] = adapt_channels(given.float(), wanted.shape[1])
            fit.adapted.append(name)
        elif name not in ("mean", "std"):
            fit.wrong.append(f"'{name}' is {_shape(given)}, the model has {_shape(wanted)}")
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


def _in_our_names(tensors: Tensors, origin: Origin) -> Tensors:
    """Names as in a `Classifier`: `net.` before the backbone's, the classifier is `head.0`."""
    if any(name.startswith("net.") for name in tensors):
        return tensors
    if origin.facts.library_name.startswith("vgg") and "classifier.0.weight" in tensors:
        tensors = _of_torchvision_vgg(tensors)
    before = origin.classifier + "."
    return {
        f"head.0.{name.removeprefix(before)}" if name.startswith(before) else f"net.{name}": tensor
        for name, tensor in tensors.items()
    }


def _of_torchvision_vgg(tensors: Tensors) -> Tensors:
    """torchvision's VGG ends in dense layers, timm's in convolutions with the same numbers."""
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
        raise StriateError(f"{uri} is damaged or no safetensors file: {error}") from error


def _from_pickle(uri: str) -> Tensors:
    data = storage.read_bytes(uri)
    try:
        content: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise StriateError(
            f"{uri} holds more than tensors, and what else is in it could run code, so it is not read; save only its "
            "tensors: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise StriateError(f"{uri} is damaged or no file of torch.save: {error}") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = cast(Any, content)[wrapper]
    if not isinstance(content, Mapping):
        raise StriateError(f"{uri} holds a {type(content).__name__}, not tensors by name")
    named = cast("Mapping[Any, Any]", content)
    others = [str(name) for name, value in named.items() if not isinstance(value, torch.Tensor)]
    if others or not named:
        raise StriateError(
            f"{uri} holds no plain tensors by name; these are something else: {', '.join(others[:_SHOWN])}"
        )
    # Distributed training and torch.compile put their own names before each.
    return {str(name).removeprefix("module.").removeprefix("_orig_mod."): value for name, value in named.items()}


def _pretrained(origin: Origin) -> Tensors:
    """The published network whole, with its own classes and channels, in its library's names."""
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
            f"without a network: fetch {file} elsewhere and give that file as weights, or copy there a cache that has "
            f"them; it lies in {cache}"
        ) from error
