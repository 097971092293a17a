"""Which parts of a picture an answer needs: the probability of a class while a square hides one part after another.

Zeiler and Fergus 2014, https://arxiv.org/abs/1311.2901, section 4.2. Unlike a gradient it asks the classifier itself,
so it works for every network and ensemble, at the price of tens or hundreds of predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from library.bundle.bundle import Bundle
from library.errors import UsageError
from library.imaging.picture import Pixels
from library.pipeline.inputs import Prepared

#: Probabilities, N x classes, of prepared pictures.
Classify: TypeAlias = Callable[[Sequence[Prepared]], NDArray[np.float32]]

_BATCH = 32
_WINDOWS = 7
_FULL_SCALE = {"uint8": 255.0, "uint16": 65535.0}


@dataclass(frozen=True)
class Occlusion:
    """How much each part of a picture adds to the probability of a class.

    Attributes:
        class_name: the class.
        probability: of the class for the whole picture.
        drop: height x width of the model's input (for an ensemble: of its first network), float32: how much lower the
            probability is while the pixel is hidden, as the mean of all windows that hide it; below 0 where hiding it
            raises the probability.
        window: height and width of the window in pixels.
        stride: rows and columns between windows in pixels.
    """

    class_name: str
    probability: float
    drop: NDArray[np.float32]
    window: tuple[int, int]
    stride: tuple[int, int]


def occlusion(
    bundle: Bundle,
    prepared: Prepared,
    class_name: str | None = None,
    *,
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
    classify: Classify | None = None,
) -> Occlusion:
    """Measures how much the probability of a class drops while a window of the mean colour hides a part.

    The colour is the mean of the network's training pixels, which its normalisation turns into 0. An ensemble is asked
    as a whole: the same part is hidden from each member.

    Args:
        bundle: a single network or an ensemble.
        prepared: the picture, from `Bundle.prepare`.
        class_name: the class; None for the most probable.
        window: height and width in pixels of the first network's input; None for two sevenths of its sides.
        stride: in pixels; None for half a window.
        progress: is called with the number of windows that are done, and of all.
        classify: returns probabilities, N x classes, of at most 32 pictures; None for the bundle itself.

    Raises:
        UsageError: the bundle does not have this class, or the window or stride is not at least 1.
    """
    classify = classify or bundle.probabilities
    target, class_name, probability = class_of(bundle, prepared, class_name, classify)
    height, width = first_of(prepared).shape[:2]
    window = window or (max(1, round(2 * height / _WINDOWS)), max(1, round(2 * width / _WINDOWS)))
    stride = stride or (max(1, window[0] // 2), max(1, window[1] // 2))
    if min(*window, *stride) < 1:
        raise UsageError(f"a window and its stride are at least 1 pixel; got {window} and {stride}")
    boxes = [
        (top, left, min(top + window[0], height), min(left + window[1], width))
        for top in _starts(height, window[0], stride[0])
        for left in _starts(width, window[1], stride[1])
    ]
    total, count = np.zeros((height, width)), np.zeros((height, width))
    fill = fill_of(bundle, prepared)
    done = 0
    for batch in _batches(boxes):
        hidden = [_hide(prepared, fill, box, (height, width)) for box in batch]
        for box, row in zip(batch, classify(hidden), strict=True):
            place = (slice(box[0], box[2]), slice(box[1], box[3]))
            total[place] += probability - float(row[target])
            count[place] += 1
        done += len(batch)
        if progress is not None:
            progress(done, len(boxes))
    return Occlusion(class_name, probability, (total / np.maximum(count, 1)).astype(np.float32), window, stride)


def class_of(
    bundle: Bundle, prepared: Prepared, class_name: str | None, classify: Classify | None = None
) -> tuple[int, str, float]:
    """The number, name and probability of a class for a picture; of the most probable one if no name is given.

    Raises:
        UsageError: the bundle does not have this class.
    """
    if class_name is not None and class_name not in bundle.classes:
        raise UsageError(f"the bundle has no class '{class_name}'; it has {', '.join(bundle.classes)}")
    row = (classify or bundle.probabilities)([prepared])[0]
    number = int(row.argmax()) if class_name is None else bundle.classes.index(class_name)
    return number, bundle.classes[number], float(row[number])


def first_of(prepared: Prepared) -> Pixels:
    """The input of an ensemble's first network, or of the single one."""
    while isinstance(prepared, tuple):
        prepared = prepared[0]
    return prepared


def fill_of(bundle: Bundle, prepared: Prepared) -> Prepared:
    """The mean colour of the training pixels in the range of a picture: 1 x 1 x channels for each network."""
    if isinstance(prepared, tuple):
        return tuple(fill_of(member, part) for member, part in zip(bundle.members, prepared, strict=True))
    scale = _FULL_SCALE.get(str(prepared.dtype), 1.0)
    mean = bundle.model.mean.float().cpu().numpy() * scale
    colour: Pixels = (np.rint(mean) if scale > 1 else mean).astype(prepared.dtype)
    return colour[None, None, :]


def _hide(prepared: Prepared, fill: Prepared, box: tuple[int, int, int, int], size: tuple[int, int]) -> Prepared:
    if isinstance(prepared, tuple):
        return tuple(_hide(one, part, box, size) for one, part in zip(prepared, fill, strict=True))
    scale = (prepared.shape[0] / size[0], prepared.shape[1] / size[1])
    top, left, bottom, right = (round(edge * scale[number % 2]) for number, edge in enumerate(box))
    hidden = prepared.copy()
    hidden[top:bottom, left:right] = fill
    return hidden


def _starts(side: int, window: int, stride: int) -> Iterator[int]:
    """Where windows begin; the last may reach over the edge, as the others leave a rest."""
    start = 0
    yield start
    while start + window < side:
        start += stride
        yield start


def _batches(boxes: Sequence[tuple[int, int, int, int]]) -> Iterator[Sequence[tuple[int, int, int, int]]]:
    for first in range(0, len(boxes), _BATCH):
        yield boxes[first : first + _BATCH]
