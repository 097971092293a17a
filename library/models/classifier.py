"""A network that takes stored pixels, its stages, and the device and precision it computes in."""

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
    """A backbone that computes features and a head that computes logits; scaling and normalisation are inside.

    Built by `library.models.build.create`.

    Attributes:
        net: the backbone, from pictures to features; contains the auxiliary heads.
        head: dense layers from features to logits.
        mean: mean of each channel, for pixels of 0..1; a buffer.
        std: standard deviation of each channel, for pixels of 0..1; a buffer.
        num_classes: number of outputs.
        num_features: length of a feature vector.
        in_chans: channels of the input.
        name: the model's call.
        loaded: which pre-trained weights were loaded, for the log; None with random weights.
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
        # Tuples: nn.Module does not register modules in them a second time.
        self._stages = tuple((title, tuple(modules)) for title, modules in stages.items())
        self._frozen = 0
        self.train(self.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes logits.

        Args:
            x: N x channels x height x width; uint8, uint16, or floating with pixels in 0..1. Any memory format.

        Returns:
            N x num_classes.

        Raises:
            UsageError: a wrong number of channels, or another dtype.
        """
        return self.head(self.features(x))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Features of the same pictures that `forward` takes, N x num_features."""
        return self._run(x)[0]

    def head_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (N x num_classes) of features (N x num_features)."""
        return self.head(features)

    def forward_train(self, x: torch.Tensor) -> list[tuple[torch.Tensor, float]]:
        """Logits of every head, N x num_classes, with the weight of its loss: the main head (1) first.

        Auxiliary heads do not run in evaluation, nor when the whole backbone is frozen.
        """
        features, others = self._run(x)
        heads = [(self.head(features), 1.0)]
        return heads + [(logits, share) for logits, (_, share) in zip(others, self._auxiliary, strict=bool(others))]

    def stages(self) -> list[list[nn.Module]]:
        """Modules with parameters by stage, from the input on; the head and the auxiliary heads are the last stage.

        Every parameter is in exactly one of these modules.
        """
        heads: list[nn.Module] = [self.head, *(self.net.get_submodule(name) for name, _ in self._auxiliary)]
        return [*(list(modules) for _, modules in self._stages), heads]

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages, `head` last."""
        return (*(title for title, _ in self._stages), "head")

    def freeze(self, stages: int | str) -> None:
        """Freezes the first stages, so that only the others are trained.

        Frozen parameters get no gradient, and frozen batch norms keep their statistics in training. A backbone that is
        frozen whole computes the same in training as in evaluation (without dropout).

        Args:
            stages: number of stages, from the input on; `all` for all but the head; or `none`.

        Raises:
            UsageError: there are fewer stages.
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
        """Sets training mode like any module, but leaves frozen stages in evaluation mode."""
        super().train(mode)
        if self._is_whole_net_frozen:
            self.net.eval()
        for _, modules in self._stages[: self._frozen]:
            for module in modules:
                module.eval()
        if self._auxiliary:
            # Otherwise Inception v3 would run its auxiliary head in evaluation too.
            self.net.aux_logits = self.net.training
        return self

    def without_auxiliary(self) -> dict[str, torch.Tensor]:
        """The state without auxiliary heads, as a model built with `auxiliary=False` loads it."""
        skipped = tuple(f"net.{name}." for name, _ in self._auxiliary)
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(skipped)}

    @property
    def _is_whole_net_frozen(self) -> bool:
        return self._frozen == len(self._stages)

    def _run(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Features, and the logits of the auxiliary heads in the order of `_auxiliary`."""
        result = self.net(self._normalised(x))
        if isinstance(result, torch.Tensor):
            return result, []
        features, *others = result
        # GoogLeNet returns its later head first.
        return features, others[::-1]

    def _normalised(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            got = " x ".join(map(str, x.shape))
            raise UsageError(f"{self.name} takes batches of N x {self.in_chans} x height x width; got {got}")
        scale = _FULL_SCALE.get(x.dtype, 1.0)
        if scale == 1.0 and not x.dtype.is_floating_point:
            raise UsageError(f"{self.name} takes uint8, uint16 or floating pixels; got {x.dtype}")
        factor = (1.0 / (self.std * scale)).view(1, -1, 1, 1)
        offset = (-self.mean / self.std).view(1, -1, 1, 1)
        return torch.addcmul(offset, x.float(), factor)


def choose_device(name: str = "auto") -> torch.device:
    """The torch device of a name: auto, cpu, cuda, cuda:1 ...; `auto` is the first GPU, or the CPU if there is none.

    Raises:
        UsageError: this machine does not have the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device '{name}'; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device '{name}': this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def autocast(device: torch.device, precision: str = "auto") -> contextlib.AbstractContextManager[Any]:
    """bfloat16 autocast if `precision` is `bf16`, or `auto` on CUDA; otherwise a context that does nothing."""
    enabled = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16) if enabled else contextlib.nullcontext()


def probabilities(logits: torch.Tensor, *, multilabel: bool) -> torch.Tensor:
    """Probabilities of the classes (N x classes): of one among all, or with `multilabel` of each by itself."""
    return torch.sigmoid(logits) if multilabel else torch.softmax(logits, 1)


def log_probabilities(logits: torch.Tensor, *, multilabel: bool) -> torch.Tensor:
    """Natural logarithms of `probabilities`."""
    return nn.functional.logsigmoid(logits) if multilabel else torch.log_softmax(logits, 1)
