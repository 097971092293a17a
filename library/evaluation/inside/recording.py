"""Records what the modules of a network compute, and shows it stage by stage.

for part in networks(bundle, bundle.prepare(data)):   # an ensemble has one for each member
    for maps in feature_maps(part.model, part.pixels):
        maps.stage, maps.values.shape                 # conv1, (64, 112, 112)
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from library.bundle.bundle import Bundle
from library.imaging.picture import Pixels
from library.models.classifier import Classifier
from library.models.tracing import Tracer, View
from library.pipeline.inputs import Prepared

#: The most tokens of a transformer that are not patches: class, distillation and register tokens.
_MOST_EXTRA_TOKENS = 16
#: After these a token depends on the whole picture, and no longer on its own patch alone.
_MIXES = ("attention", "product", "dense")
_CHANGES_NOTHING = (nn.Identity, nn.Dropout)


@dataclass(frozen=True)
class Part:
    """One network of a bundle with its input; an ensemble has several.

    Attributes:
        title: its model, with its number in an ensemble: `resnet18`, `member 2: resnet18`.
        weight: its weight in the ensemble's mean, as a fraction of all; 1 for a single network.
        bundle: a single network, with the name, classes and input of its own.
        pixels: height x width x channels, as it takes them.
    """

    title: str
    weight: float
    bundle: Bundle
    pixels: Pixels

    @property
    def model(self) -> Classifier:
        """The network."""
        return self.bundle.model


@dataclass(frozen=True)
class StageMaps:
    """What one stage of a network makes of a picture: its last result before the next stage begins.

    Attributes:
        stage: name of the stage, as `freeze` counts them.
        module: path of the module whose result it is.
        call: how often that module had run before, as some run several times.
        values: channels x height x width, float32; height and width are 1 after dense layers and the last pooling.
        view: which pixels each element depends on; None for the tokens of a transformer, which depend on all.
    """

    stage: str
    module: str
    call: int
    values: NDArray[np.float32]
    view: View | None

    @property
    def is_map(self) -> bool:
        """Whether the stage still has places, or only one number a unit."""
        return self.values.shape[1] * self.values.shape[2] > 1


@dataclass(frozen=True)
class Result:
    """What one module returned; `call` is how often it had run before."""

    path: str
    call: int
    module: nn.Module
    tensor: torch.Tensor


class Recorder:
    """Calls `keep` with the result of every module of a network's backbone that runs in this thread, in order.

    Other threads may call the same network meanwhile.
    """

    def __init__(self, model: Classifier, keep: Callable[[Result], None]) -> None:
        self._model, self._keep = model, keep
        self._handles = list[Any]()
        self._thread = threading.get_ident()

    def __enter__(self) -> Recorder:
        for path, module in self._model.net.named_modules():
            self._handles.append(module.register_forward_hook(self._hook(path)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, path: str) -> Callable[..., None]:
        calls = itertools.count()

        def record(module: nn.Module, _: Any, result: Any) -> None:
            if threading.get_ident() == self._thread and isinstance(result, torch.Tensor):
                self._keep(Result(path, next(calls), module, result))

        return record


def networks(bundle: Bundle, prepared: Prepared) -> Iterator[Part]:
    """The networks of a bundle with their inputs: one, or those of an ensemble and of ensembles in it."""
    parts = list(_networks(bundle, prepared, 1.0))
    for number, (weight, single, pixels) in enumerate(parts, start=1):
        name = single.record.model
        yield Part(name if len(parts) == 1 else f"member {number}: {name}", weight, single, pixels)


def _networks(bundle: Bundle, prepared: Prepared, share: float) -> Iterator[tuple[float, Bundle, Pixels]]:
    if not isinstance(prepared, tuple):
        yield share, bundle, prepared
        return
    whole = sum(member.weight for member in bundle.record.members)
    for member, entry, pixels in zip(bundle.members, bundle.record.members, prepared, strict=True):
        yield from _networks(member, pixels, share * entry.weight / whole)


def blank(bundle: Bundle) -> Prepared:
    """A black picture as a bundle takes it, for what depends on the network alone."""
    if bundle.members:
        return tuple(blank(member) for member in bundle.members)
    return np.zeros((*bundle.record.input_size, bundle.record.channels), np.uint8)


def feature_maps(model: Classifier, pixels: Pixels) -> tuple[StageMaps, ...]:
    """Computes what each stage makes of a picture, from the input on; without the head.

    Args:
        model: a network in evaluation mode.
        pixels: height x width x channels, as the network takes them.
    """
    picture = as_batch(model, [pixels])
    tracer = Tracer(picture)
    stages = _Stages(model)
    maps_by_stage: dict[str, StageMaps] = {}

    def keep(result: Result) -> None:
        stage = stages.after(result.module)
        values = stages.as_maps(result)
        if stage is None or values is None or not result.path or isinstance(result.module, _CHANGES_NOTHING):
            return
        if values.shape[2:].numel() == 1 and stage in maps_by_stage and maps_by_stage[stage].is_map:
            return  # the pooling after the last stage; its maps say more
        view = tracer.view_of(result.tensor)
        if view is not None and view.size != values.shape[2:]:  # tokens
            mixed = any(operation.kind in _MIXES for operation in tracer.operations)
            view = None if mixed or stages.patches is None else tracer.view_of(stages.patches)
        maps_by_stage[stage] = StageMaps(stage, result.path, result.call, _copied(values[0]), view)

    with torch.inference_mode(), Recorder(model, keep), tracer:
        model.features(picture)
    return tuple(maps_by_stage.values())


def activations(
    model: Classifier, pictures: Sequence[Pixels], stages: Sequence[StageMaps]
) -> list[NDArray[np.float32]]:
    """Computes what some stages make of a batch.

    Args:
        model: a network in evaluation mode.
        pictures: N pictures of one size and dtype, height x width x channels.
        stages: the stages, from `feature_maps` of any picture.

    Returns:
        For each stage N x channels x height x width, float32.
    """
    reader, values_by_call = _Stages(model), dict[tuple[str, int], NDArray[np.float32]]()
    wanted = {(stage.module, stage.call) for stage in stages}

    def keep(result: Result) -> None:
        values = reader.as_maps(result)
        if (result.path, result.call) in wanted and values is not None:
            values_by_call[result.path, result.call] = _copied(values)

    with torch.inference_mode(), Recorder(model, keep):
        model.features(as_batch(model, pictures))
    return [values_by_call[stage.module, stage.call] for stage in stages]


def as_batch(model: Classifier, pictures: Sequence[Pixels]) -> torch.Tensor:
    """Pictures as a network takes them, N x channels x height x width, on its device."""
    batch = torch.from_numpy(np.stack(list(pictures)))
    return batch.to(next(model.parameters()).device).permute(0, 3, 1, 2)


def _copied(tensor: torch.Tensor) -> NDArray[np.float32]:
    # A copy, as the next module may change its input in place.
    return tensor.detach().float().cpu().numpy().copy()


class _Stages:
    """Which stage runs, from the modules that have run so far; and tensors as maps.

    Attributes:
        patches: the last result of a convolution: the patches of a transformer before they become tokens.
    """

    def __init__(self, model: Classifier) -> None:
        names = model.stage_names[:-1]
        self._of = {
            id(inner): name
            for name, modules in zip(names, model.stages()[:-1], strict=True)
            for module in modules
            for inner in module.modules()
        }
        self._channels_last = getattr(model.net, "output_fmt", None) == "NHWC"
        self._current: str | None = None
        self._grid = (0, 0)
        self.patches: torch.Tensor | None = None

    def after(self, module: nn.Module) -> str | None:
        """The stage that runs when a module has run; None before the first."""
        self._current = self._of.get(id(module), self._current)
        return self._current

    def as_maps(self, result: Result) -> torch.Tensor | None:
        """A result as N x channels x height x width; None if it is something else.

        A transformer's tokens become the grid of its patches, without the class token.
        """
        tensor = result.tensor
        if tensor.ndim == 4:
            if self._channels_last and tensor.shape[1] == tensor.shape[2] != tensor.shape[3]:
                return tensor.permute(0, 3, 1, 2)
            if isinstance(result.module, nn.Conv2d):
                self._grid, self.patches = (int(tensor.shape[2]), int(tensor.shape[3])), tensor
            return tensor
        if tensor.ndim == 3:
            count = self._grid[0] * self._grid[1]
            if 0 <= tensor.shape[1] - count <= _MOST_EXTRA_TOKENS and count > 1:
                return tensor[:, tensor.shape[1] - count :].transpose(1, 2).unflatten(2, self._grid)
            return None
        return tensor[:, :, None, None] if tensor.ndim == 2 else None
