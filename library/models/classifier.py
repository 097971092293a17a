"""A network that is given pictures as they are stored, and knows its parts."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from library.errors import UsageError
from library.models.stages import Stages, frozen_count

_FULL_SCALE = {torch.uint8: 255.0, torch.uint16: 65535.0}


class Classifier(nn.Module):
    """A backbone that gives features, and a head that gives logits. Scaling, mean and deviation are inside.

    Made by `library.models.create`.

    Attributes:
        net: pictures to features; auxiliary heads hang in it.
        head: features to logits: dense layers.
        mean: of each channel, for pixels of 0..1; a buffer.
        std: likewise.
        num_classes: outputs.
        num_features: length of a feature vector.
        in_chans: channels of the input.
        name: the model's call.
        loaded: what was taken from pre-trained weights, for the log; None with random ones.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        net: nn.Module,
        head: nn.Sequential,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        in_chans: int,
        stages: Stages,
        auxiliary: tuple[tuple[str, float], ...],
        name: str,
    ) -> None:
        super().__init__()
        self.net: Any = net
        self.head = head
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        first, last = head[0], head[-1]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        self.num_features, self.num_classes = first.in_features, last.out_features
        self.in_chans, self.name = in_chans, name
        self.loaded: str | None = None
        self._auxiliary = auxiliary
        # A tuple, as a list or a dict of modules would not be left alone by nn.Module's own bookkeeping of names.
        self._stages = tuple((title, tuple(modules)) for title, modules in stages.items())
        self._frozen = 0
        self.train(self.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits.

        Args:
            x: n x channels x height x width; uint8, uint16, or floating with pixels in 0..1. Any memory format.

        Returns:
            n x num_classes.

        Raises:
            UsageError: another number of channels or dtype.
        """
        return self.head(self.features(x))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What the head sees, n x num_features; takes the same as `forward`."""
        return self._run(x)[0]

    def head_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (n x num_classes) of features (n x num_features)."""
        return self.head(features)

    def forward_train(self, x: torch.Tensor) -> list[tuple[torch.Tensor, float]]:
        """Logits of every head, each with what its loss counts: the main one 1, then the auxiliary ones, if any.

        Auxiliary heads rest in evaluation, and when the whole backbone is frozen.
        """
        features, others = self._run(x)
        heads = [(self.head(features), 1.0)]
        return heads + [(logits, share) for logits, (_, share) in zip(others, self._auxiliary, strict=bool(others))]

    def stages(self) -> list[list[nn.Module]]:
        """Modules with parameters, by stage: the input's side first, the head (and auxiliary heads) last.

        Every parameter is in exactly one module of one stage.
        """
        heads: list[nn.Module] = [self.head, *(self.net.get_submodule(name) for name, _ in self._auxiliary)]
        return [*(list(modules) for _, modules in self._stages), heads]

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages, `head` last."""
        return (*(title for title, _ in self._stages), "head")

    def freeze(self, stages: int | str) -> None:
        """Let only the last stages learn.

        Frozen parameters get no gradient, and frozen batch norms keep their statistics, in training too. A backbone
        that is frozen whole computes in training what it does in evaluation (its dropout rests).

        Args:
            stages: how many, from the input's side; `all` but the head; or `none`.

        Raises:
            UsageError: for more stages than there are.
        """
        self._frozen = frozen_count(stages, self.stage_names[:-1])
        for parameter in self.parameters():
            parameter.requires_grad_(True)
        for modules in self.stages()[: self._frozen]:
            for module in modules:
                module.requires_grad_(False)
        if self._is_whole_net_frozen:
            self.net.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Classifier:
        """As of any module, but what is frozen stays as in evaluation."""
        super().train(mode)
        if self._is_whole_net_frozen:
            self.net.eval()
        for _, modules in self._stages[: self._frozen]:
            for module in modules:
                module.eval()
        if self._auxiliary:
            # Inception v3 would run its auxiliary head in evaluation too.
            self.net.aux_logits = self.net.training
        return self

    def without_auxiliary(self) -> dict[str, torch.Tensor]:
        """The state that predictions need: a model made with `auxiliary=False` takes it."""
        skipped = tuple(f"net.{name}." for name, _ in self._auxiliary)
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(skipped)}

    @property
    def _is_whole_net_frozen(self) -> bool:
        return self._frozen == len(self._stages)

    def _run(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Features, and the auxiliary heads' logits in the order of `_auxiliary`."""
        result = self.net(self._normalised(x))
        if isinstance(result, torch.Tensor):
            return result, []
        features, *others = result
        # GoogLeNet gives its later head first.
        return features, others[::-1]

    def _normalised(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            got = " x ".join(map(str, x.shape))
            raise UsageError(f"{self.name} takes batches of n x {self.in_chans} x height x width; got {got}")
        scale = _FULL_SCALE.get(x.dtype, 1.0)
        if scale == 1.0 and not x.dtype.is_floating_point:
            raise UsageError(f"{self.name} takes uint8, uint16 or floating pixels; got {x.dtype}")
        factor = (1.0 / (self.std * scale)).view(1, -1, 1, 1)
        offset = (-self.mean / self.std).view(1, -1, 1, 1)
        return torch.addcmul(offset, x.float(), factor)


def choose_device(wanted: str = "auto") -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU.

    Raises:
        UsageError: for a device that this machine lacks.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UsageError(f"unknown device '{wanted}'; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device '{wanted}': this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def autocast(device: torch.device, precision: str = "auto") -> contextlib.AbstractContextManager[Any]:
    """bfloat16 autocast for `auto` on CUDA and for `bf16`; nothing for `fp32` and on the CPU."""
    enabled = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16) if enabled else contextlib.nullcontext()
