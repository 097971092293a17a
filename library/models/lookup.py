"""Looks up the facts of a model for its call: with its channels and input size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from library.errors import UsageError
from library.grammar import nearest
from library.models.call import ModelCall, parse_call
from library.models.catalog import CATALOG, TIMM, ModelInfo


def names() -> tuple[str, ...]:
    """Names of the models of the catalogue, oldest first; all others are written `timm("...")`."""
    return tuple(CATALOG)


def info(model: str | ModelCall) -> ModelInfo:
    """The facts of a model.

    Args:
        model: its name or call. Only `timm("...")` imports torch.

    Raises:
        UsageError: the model does not exist.
    """
    call = parse_call(model) if isinstance(model, str) else model
    facts = _timm_info(call) if call.name == TIMM else CATALOG[call.name]
    _, height, width = facts.input_size
    if call.name != TIMM:
        height = width = 32 if call.parameters.get("small_input") else call.parameters.get("size", height)
    return dataclasses.replace(
        facts,
        input_size=(call.in_chans, height, width),
        mean=for_channels(facts.mean, call.in_chans),
        std=for_channels(facts.std, call.in_chans),
    )


def for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Means or deviations for another number of channels: one gets their mean, more repeat them (R, G, B, R, ...).

    `library.models.weights.adapt_channels` adapts the weights to match.
    """
    if channels == 1:
        return (round(sum(values) / len(values), 6),)
    return tuple(values[index % len(values)] for index in range(channels))


def _timm_info(call: ModelCall) -> ModelInfo:
    import timm

    name = str(call.parameters["name"])
    if not timm.is_model(name):
        close = nearest(name.partition(".")[0], timm.list_models())
        raise UsageError(f"timm has no model '{name}'{close}; timm.list_models() gives its names")
    config: Any = timm.get_pretrained_cfg(name)
    if config is None:
        raise UsageError(f"timm gives no input size and normalisation for '{name}'; choose another model")
    channels, height, width = config.input_size
    size = call.parameters.get("img_size")
    if isinstance(size, int):
        height = width = size
    elif isinstance(size, tuple):
        height, width = size
    full_name = f"{config.architecture}.{config.tag}" if config.tag else str(config.architecture)
    return ModelInfo(
        TIMM,
        "timm",
        (channels, height, width),
        mean=tuple(config.mean),
        std=tuple(config.std),
        library_name=full_name,
        interpolation="linear" if config.interpolation == "bilinear" else "cubic",
        crop_fraction=float(config.crop_pct),
        weights_source=f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else str(config.url or ""),
        num_classes=int(config.num_classes),
    )
