"""Where a classifier looks: Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391).

prepared = bundle.prepare(data)
seen = explain(bundle, prepared)           # of the most probable class
seen.heat                                  # height x width, 0 to 1
overlay_png(prepared, seen.heat)
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from library.bundle.bundle import Bundle
from library.errors import UsageError
from library.imaging import codec
from library.imaging.contact_sheet import visible
from library.imaging.picture import Pixels
from library.models.classifier import Classifier
from library.pipeline.inputs import Prepared

#: Shorter side of an overlay; smaller pictures are enlarged by whole factors.
_OVERLAY_PX = 224
#: How much of a pixel the colour of the greatest heat covers.
_COVER = 0.65
#: Of the colours' 0 to 255: past it the red turns dark.
_REDDEST = 220


@dataclass(frozen=True)
class Explanation:
    """What spoke for a class in one picture.

    Attributes:
        class_name: which class.
        heat: height x width of what the model sees (of an ensemble: its first network), float32; 1 where most spoke for
            the class, 0 where nothing did; all 0 when nothing did anywhere.
    """

    class_name: str
    heat: NDArray[np.float32]


def explain(bundle: Bundle, prepared: Prepared, class_name: str | None = None) -> Explanation:
    """Grad-CAM of one picture.

    The map is that of the last convolution that still has more than one position, as it is at the end of its block; of
    a vision transformer, of the last layer whose patches still reach the answer. Computed in float32. Call it from the
    thread that also asks the bundle.

    An ensemble's is the mean of its members' maps, by their weights.

    Args:
        bundle: of one network or an ensemble.
        prepared: of `Bundle.prepare`.
        class_name: the most probable by default.

    Raises:
        UsageError: for a class that it does not know, or a network without a map over the picture (`mlp`).
    """
    if class_name is None:
        class_name = bundle.classes[int(bundle.probabilities([prepared])[0].argmax())]
    elif class_name not in bundle.classes:
        raise UsageError(f"the bundle knows no class '{class_name}'; it knows {', '.join(bundle.classes)}")
    return Explanation(class_name, _heat(bundle, prepared, class_name))


def overlay(prepared: Prepared, heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Heat in colours over what the model saw (of an ensemble: its first network), from red, most, to blue, little.

    Returns:
        Height x width x 3, uint8; the shorter side is 224 or more.
    """
    while isinstance(prepared, tuple):
        prepared = prepared[0]
    factor = max(1, -(-_OVERLAY_PX // min(prepared.shape[:2])))
    picture = np.repeat(np.repeat(visible(prepared), factor, 0), factor, 1).astype(np.float32)
    large = np.clip(_resized(heat, *picture.shape[:2]), 0, 1)
    colours = cv2.applyColorMap(np.rint(_REDDEST * large).astype(np.uint8), cv2.COLORMAP_TURBO)[:, :, ::-1]
    # What does not matter stays as it is.
    cover = _COVER * large[:, :, None]
    return np.rint(picture * (1 - cover) + colours * cover).astype(np.uint8)


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
        mean += _resized(one, height, width) * (weight / sum(weights))
    return _stretched(mean)


def _grad_cam(model: Classifier, pixels: Pixels, target: int) -> NDArray[np.float32]:
    batch = torch.from_numpy(np.stack([pixels])).to(next(model.parameters()).device).permute(0, 3, 1, 2)
    with torch.enable_grad(), _Watch(model) as watch:
        logit = model(batch)[0, target]
        maps = watch.candidates()
        # One that does not reach the answer has None.
        gradients: Any = torch.autograd.grad(logit, maps, allow_unused=True) if maps else ()
        slopes: Sequence[torch.Tensor | None] = gradients
    for values, slope in zip(reversed(maps), reversed(slopes), strict=True):
        if slope is None:
            continue
        values, slope = watch.as_map(values.detach()), watch.as_map(slope)
        if bool(slope.any()):
            # Equation 1: what a channel counts is its mean slope; equation 2: only what speaks for the class is kept.
            cam = torch.relu((slope.mean((1, 2), keepdim=True) * values).sum(0)).float().cpu().numpy()
            height, width = pixels.shape[:2]
            return _stretched(_resized(cam, height, width))
    if maps:  # flat: no change of the picture would change the answer
        return np.zeros(pixels.shape[:2], np.float32)
    raise UsageError(f"{model.name} has no map over the picture that Grad-CAM could show: it takes convolutions")


class _Watch:
    """What the modules of a network give while one picture goes through, in the order in which they ran."""

    def __init__(self, model: Classifier) -> None:
        self._model, self._handles = model, list[Any]()
        self._seen: list[tuple[bool, torch.Tensor]] = []
        self._thread = threading.get_ident()
        self._size = (0, 0)

    def __enter__(self) -> _Watch:
        for module in self._model.net.modules():
            self._handles.append(module.register_forward_hook(self._see))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def candidates(self) -> Sequence[torch.Tensor]:
        """From the last convolution with more than one position on: all that has as many positions."""
        last = max(
            (n for n, (convolves, one) in enumerate(self._seen) if convolves and one.shape[2:].numel() > 1),
            default=None,
        )
        if last is None:
            return ()
        shape = self._seen[last][1].shape
        self._size = (shape[2], shape[3])
        kept: list[torch.Tensor] = []
        for _, one in self._seen[last:]:
            # Of tokens (n x tokens x channels) those as long as the convolution's maps: the stream between the layers.
            is_tokens = one.ndim == 3 and one.shape[1] >= self._size[0] * self._size[1] and one.shape[2] == shape[1]
            if (one.ndim == 4 and one.shape[2:] == shape[2:]) or is_tokens:
                kept.append(one)
        return kept

    def as_map(self, tensor: torch.Tensor) -> torch.Tensor:
        """Of one picture, channels x height x width; of tokens without those, at the front, that are no patches."""
        if tensor.ndim == 4:
            return tensor[0]
        return tensor[0, -self._size[0] * self._size[1] :].T.unflatten(1, self._size)

    def _see(self, module: nn.Module, _: Any, result: Any) -> None:
        # Others may ask the same network meanwhile.
        if threading.get_ident() == self._thread and isinstance(result, torch.Tensor) and result.requires_grad:
            self._seen.append((isinstance(module, nn.Conv2d) and result.ndim == 4, result))


def _resized(heat: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    return cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)


def _stretched(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    most = float(heat.max())
    return np.clip(heat / most, 0, 1).astype(np.float32) if most > 0 else np.zeros_like(heat)
