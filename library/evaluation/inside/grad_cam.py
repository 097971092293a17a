"""Shows which parts of a picture speak for a class: Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391).

prepared = bundle.prepare(data)
explanation = explain(bundle, prepared)    # of the most probable class
explanation.heat                           # height x width, 0 to 1
overlay_png(prepared, explanation.heat)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from library.bundle.bundle import Bundle
from library.errors import UsageError
from library.evaluation.inside.recording import Recorder, Result, as_batch
from library.imaging import codec
from library.imaging.contact_sheet import visible
from library.imaging.picture import Pixels
from library.models.classifier import Classifier
from library.pipeline.inputs import Prepared

#: Shorter side of an overlay; smaller pictures are enlarged by whole factors.
_OVERLAY_PX = 224
#: Opacity of the colour of the greatest heat.
_OPACITY = 0.65
#: Largest index into the colour map of 0 to 255 that is used: beyond it the red turns dark.
_REDDEST = 220


@dataclass(frozen=True)
class Explanation:
    """The parts of a picture that speak for a class.

    Attributes:
        class_name: the class that is explained.
        heat: height x width of the model's input (for an ensemble: of its first network), float32; 1 where the evidence
            for the class is greatest, 0 where there is none.
    """

    class_name: str
    heat: NDArray[np.float32]


def explain(bundle: Bundle, prepared: Prepared, class_name: str | None = None) -> Explanation:
    """Computes Grad-CAM for one picture, in float32.

    The map comes from the last convolution with more than one position, at the end of its block; in a vision
    transformer, from the last layer whose patches still reach the answer. An ensemble's map is the weighted mean of its
    members' maps. Call it from the thread that also calls the bundle.

    Args:
        bundle: a single network or an ensemble.
        prepared: the picture, from `Bundle.prepare`.
        class_name: the class to explain; None for the most probable.

    Raises:
        UsageError: the bundle does not have this class, or the network has no map over the picture (`mlp`).
    """
    if class_name is None:
        class_name = bundle.classes[int(bundle.probabilities([prepared])[0].argmax())]
    elif class_name not in bundle.classes:
        raise UsageError(f"the bundle has no class '{class_name}'; it has {', '.join(bundle.classes)}")
    return Explanation(class_name, _heat(bundle, prepared, class_name))


def overlay(prepared: Prepared, heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draws heat over the model's input (for an ensemble: of its first network), from red (most) to blue (little).

    Args:
        prepared: the picture, from `Bundle.prepare`.
        heat: height x width, 0 to 1, as in `Explanation`.

    Returns:
        Height x width x 3, uint8; the shorter side has 224 pixels or more.
    """
    while isinstance(prepared, tuple):
        prepared = prepared[0]
    factor = max(1, -(-_OVERLAY_PX // min(prepared.shape[:2])))
    picture = np.repeat(np.repeat(visible(prepared), factor, 0), factor, 1).astype(np.float32)
    large = np.clip(resized(heat, *picture.shape[:2]), 0, 1)
    colours = cv2.applyColorMap(np.rint(_REDDEST * large).astype(np.uint8), cv2.COLORMAP_TURBO)[:, :, ::-1]
    # Where there is no heat the picture stays as it is.
    opacity = _OPACITY * large[:, :, None]
    return np.rint(picture * (1 - opacity) + colours * opacity).astype(np.uint8)


def overlay_png(prepared: Prepared, heat: NDArray[np.float32]) -> bytes:
    """`overlay` as a PNG file."""
    return codec.encode(overlay(prepared, heat), codec.Encoding("png"))[0]


def _heat(bundle: Bundle, prepared: Prepared, class_name: str) -> NDArray[np.float32]:
    if not isinstance(prepared, tuple):
        return _grad_cam(bundle.model, prepared, bundle.classes.index(class_name))
    maps = [_heat(member, part, class_name) for member, part in zip(bundle.members, prepared, strict=True)]
    weights = [member.weight for member in bundle.record.members]
    height, width = maps[0].shape
    mean = np.zeros((height, width), np.float32)
    for one, weight in zip(maps, weights, strict=True):
        mean += resized(one, height, width) * (weight / sum(weights))
    return _normalised(mean)


def _grad_cam(model: Classifier, pixels: Pixels, target: int) -> NDArray[np.float32]:
    recorded = _Maps()
    with torch.enable_grad(), Recorder(model, recorded.add):
        logit = model(as_batch(model, [pixels]))[0, target]
        maps = recorded.candidates()
        # The gradient of a map that does not reach the answer is None.
        gradients: Sequence[torch.Tensor | None] = (
            cast(Any, torch.autograd.grad(logit, maps, allow_unused=True)) if maps else ()
        )
    for values, gradient in zip(reversed(maps), reversed(gradients), strict=True):
        if gradient is None:
            continue
        values, gradient = recorded.as_map(values.detach()), recorded.as_map(gradient)
        if bool(gradient.any()):
            # Equation 1: a channel's weight is its mean gradient; equation 2: only positive evidence counts.
            cam = torch.relu((gradient.mean((1, 2), keepdim=True) * values).sum(0)).float().cpu().numpy()
            height, width = pixels.shape[:2]
            return _normalised(resized(cam, height, width))
    if maps:  # all gradients are 0: no change of the picture would change the answer
        return np.zeros(pixels.shape[:2], np.float32)
    raise UsageError(
        f"the network {model.name} has no map over the picture, which Grad-CAM needs: use a network with convolutions"
    )


class _Maps:
    """The maps of a network that Grad-CAM may use, from all results that have a gradient."""

    def __init__(self) -> None:
        self._results: list[tuple[bool, torch.Tensor]] = []
        self._size = (0, 0)

    def add(self, result: Result) -> None:
        """Keeps what a module returned."""
        if result.tensor.requires_grad:
            self._results.append((isinstance(result.module, nn.Conv2d) and result.tensor.ndim == 4, result.tensor))

    def candidates(self) -> Sequence[torch.Tensor]:
        """Results from the last convolution with more than one position onwards that have as many positions."""
        last = max(
            (n for n, (convolves, one) in enumerate(self._results) if convolves and one.shape[2:].numel() > 1),
            default=None,
        )
        if last is None:
            return ()
        shape = self._results[last][1].shape
        self._size = (shape[2], shape[3])
        maps: list[torch.Tensor] = []
        for _, one in self._results[last:]:
            # Tokens (n x tokens x channels) with the convolution's channels: the stream between a transformer's layers.
            is_tokens = one.ndim == 3 and one.shape[1] >= self._size[0] * self._size[1] and one.shape[2] == shape[1]
            if (one.ndim == 4 and one.shape[2:] == shape[2:]) or is_tokens:
                maps.append(one)
        return maps

    def as_map(self, tensor: torch.Tensor) -> torch.Tensor:
        """The map of one picture, channels x height x width; without the leading tokens that are not patches."""
        if tensor.ndim == 4:
            return tensor[0]
        return tensor[0, -self._size[0] * self._size[1] :].T.unflatten(1, self._size)


def resized(heat: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """A map of another size, by bilinear interpolation."""
    return cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)


def _normalised(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    largest = float(heat.max())
    return np.clip(heat / largest, 0, 1).astype(np.float32) if largest > 0 else np.zeros_like(heat)
